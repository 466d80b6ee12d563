"""`python -m ddag_jax.data people|prepare|check|rehearse|augmentations`."""

import dataclasses
import os
import pathlib
from typing import Annotated, Any, Literal

import numpy as np
import tensorflow_datasets as tfds
import tyro
from etils import epath

from ddag_jax.cli import environment
from ddag_jax.cli.options import parse
from ddag_jax.config import AugmentConfig, Config, DataConfig
from ddag_jax.datasets.dataset import Dataset
from ddag_jax.datasets.find import find_dataset
from ddag_jax.datasets.folder import FOLDER, Drawn, folder_dataset
from ddag_jax.datasets.prepare import check, prepare, read_folder
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config
from ddag_jax.io.files import check_new_file, whole_file
from ddag_jax.io.progress import silence
from ddag_jax.synthetic.files import contact_sheet, write_people
from ddag_jax.synthetic.image import People
from ddag_jax.synthetic.rehearsal import rehearsal_tree, write_tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Options of every command."""

    quiet: bool = False
    """Show no progress."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeopleCommand(Command):
    """Draw built-in people into a folder laid out like SYSU-MM01."""

    to: str
    """Folder to write; must not exist."""
    people: tyro.conf.OmitArgPrefixes[People] = dataclasses.field(default_factory=People)
    workers: int | None = None
    """Processes; by default as many as there are cores."""
    sheet: str | None = None
    """Also write a picture of up to eight people, two images of each camera, to this file."""

    def run(self) -> None:
        """Write the folder."""
        if self.sheet is not None:
            folder = epath.Path(self.sheet).parent
            if folder.exists() or folder not in epath.Path(self.to).parents:  # made with `to`
                try:
                    check_new_file(self.sheet)
                except UserError as error:
                    raise UserError(f"--sheet {error}") from None
            _check_png("--sheet", self.sheet)
        write_people(self.people, self.to, self.workers)
        print(f"wrote {self.to}")
        if self.sheet is not None:
            shown = range(1, min(8, self.people.identities) + 1)
            with whole_file(self.sheet) as file:
                contact_sheet(self.people, shown, images=2).save(file, "png")
            print(f"wrote {self.sheet}")


def _check_png(option: str, path: str) -> None:
    """Raise UserError if a picture's name does not end in .png."""
    if epath.Path(path).suffix.lower() != ".png":
        raise UserError(f"{option} {path}: the picture is a PNG; give a name that ends in .png")


def find_named(name: str) -> Dataset:
    """Return the published dataset of this name, or the one of the configuration file."""
    if pathlib.Path(name).suffix == ".py":
        return find_dataset(load_config(name).data.dataset)
    return find_dataset(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Command):
    """A dataset's folder."""

    dataset: tyro.conf.Positional[str]
    """sysu_mm01, regdb or llcm; folder for images of your own; or a configuration file (.py) whose
    data.dataset is your own."""
    source: Annotated[str, tyro.conf.arg(name="from")]
    """The folder that the dataset was unpacked to; docs/datasets.md shows the layouts. Own images:
    a list of them or a folder, see docs/own-data.md."""
    train_arrays: bool = False
    """SYSU-MM01 only: take the training images from train_{rgb,ir}_resized_{img,label}.npy in
    that folder, which the reference's preprocessing writes, instead of cam1 ... cam6."""

    split_seed: int | None = None
    """Own images without a column split: seed that divides the identities (0)."""
    test_share: float | None = None
    """Own images without a column split: share of the identities to test on (0.5)."""

    infrared_range: Annotated[
        tuple[int, int] | Literal["auto"] | None, tyro.conf.arg(metavar="LOW HIGH|auto")
    ] = None
    """Values that become black and white of infrared images with 16 bits (thermal cameras); auto:
    one range for the whole dataset, which holds nearly all their pixels."""

    def find(self) -> Dataset:
        """Return the dataset of that name, or the one of the configuration file."""
        dataset, drawn = find_named(self.dataset), Drawn(self.split_seed, self.test_share)
        if dataset is FOLDER:
            return folder_dataset(drawn)
        if drawn.given:
            raise UserError(f"{drawn.given[0]}: {dataset.name} has splits of its own; leave it out")
        return dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareCommand(Source):
    """Check a dataset, resize its images once, and store them for training."""

    to: str = "data"
    """Folder for prepared datasets (`data.dir` of the configuration)."""
    image_size: tuple[int, int] = (288, 144)
    """Height and width to store, in pixels."""
    overwrite: bool = False
    """Replace one that was made from another source."""

    def run(self) -> None:
        """Build the dataset and print its counts."""
        height, width = self.image_size
        if height < 1 or width < 1:
            raise UserError(f"--image-size {height} {width}: must be 1 or more pixels each")
        dataset = self.find()
        path, content, kept = prepare(
            dataset,
            self.source,
            self.to,
            height,
            width,
            train_arrays=self.train_arrays,
            infrared_range=self.infrared_range,
            overwrite=self.overwrite,
        )
        print(content.summary(dataset.counts))
        how = f"already prepared from this source, kept ({kept})" if kept else "prepared"
        print(f"{path}: {how}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckCommand(Source):
    """Look for every fault of a dataset's folder, decoding each image."""

    def run(self) -> None:
        """Check the folder and print its counts."""
        dataset = self.find()
        content = check(dataset, self.source, self.train_arrays, self.infrared_range)
        print(content.summary(dataset.counts))
        print(f"{self.source}: no faults")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RehearseCommand(Command):
    """Draw a folder with the layout, lists and counts of a published dataset.

    To try the commands without the dataset. A few rendered people stand for all identities, so
    that it takes seconds: not for training. An image is one read-only file with many names, if the
    file system allows it: replace it, do not write into it.
    """

    dataset: tyro.conf.Positional[str]
    """sysu_mm01, regdb or llcm."""
    to: str
    """Folder to write; must not exist."""
    exp: str | None = None
    """sysu_mm01: folder with the dataset's published train_id.txt, val_id.txt, test_id.txt and
    rand_perm_cam.mat, which say how many images each folder has."""
    scale: float = 1.0
    """llcm: share of its identities and images, 0.01 to 1."""
    distinct: int = 8
    """People to draw; identities take their images in turn."""
    height: int = 64
    """Typical height of an image, pixels."""
    seed: int = 0
    """Of the people, of RegDB's splits, of LLCM's split."""

    def run(self) -> None:
        """Write the folder and print its counts."""
        tree = rehearsal_tree(self.dataset, exp=self.exp, scale=self.scale, seed=self.seed)
        write_tree(
            tree,
            self.to,
            distinct=self.distinct,
            heights=[self.height] * 4,
            seed=self.seed,
        )
        print(read_folder(self.dataset, self.to).summary(find_dataset(self.dataset).counts))
        print(f"wrote {self.to}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationsCommand(Command):
    """Draw what each augmentation makes of training images of a prepared dataset."""

    data_dir: Annotated[tyro.conf.Positional[str], tyro.conf.arg(name="dir")]
    """Folder of prepared datasets (`data.dir` of the configuration)."""
    to: str
    """Picture to write, PNG; must not exist."""
    dataset: str = str(DataConfig.dataset)
    """sysu_mm01, regdb, llcm or folder; or a configuration file (.py) whose data.dataset is your
    own."""
    image_size: tuple[int, int] = (288, 144)
    """Height and width that it was prepared at, in pixels."""
    images: int = 2
    """Rows of each modality."""
    draws: int = 3
    """Columns of each augmentation."""
    seed: int = 0
    """Of the images and the draws."""
    padding: int = AugmentConfig.padding
    """As augment.padding of the configuration."""
    erasing_share: tuple[float, float] = AugmentConfig.erasing_share
    """As augment.erasing_share."""
    erasing_aspect: tuple[float, float] = AugmentConfig.erasing_aspect
    """As augment.erasing_aspect."""
    erasing_fill: tuple[float, float, float] = AugmentConfig.erasing_fill
    """As augment.erasing_fill."""

    def run(self) -> None:
        """Draw the picture."""
        # A few images; a GPU or TPU may be in use by a training.
        os.environ["JAX_PLATFORMS"] = "cpu"
        environment.import_jax()
        # Here, since they import jax, and each process that draws people imports this file.
        from ddag_jax.data.augmentation_sheet import augmentation_sheet
        from ddag_jax.data.loader import training_split

        for name in ("images", "draws"):
            if not 1 <= (value := getattr(self, name)) <= 20:
                raise UserError(f"--{name} {value}: must be 1 to 20")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be 0 or more")
        target = check_new_file(self.to)
        _check_png("--to", self.to)
        height, width = self.image_size
        try:
            settings = Config(
                data=DataConfig(
                    find_named(self.dataset), self.data_dir, image_height=height, image_width=width
                ),
                augment=AugmentConfig(
                    padding=self.padding,
                    erasing=1.0,
                    erasing_share=self.erasing_share,
                    erasing_aspect=self.erasing_aspect,
                    erasing_fill=self.erasing_fill,
                ),
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        source, _ = training_split(settings.data, self.seed)
        order = np.random.default_rng(self.seed).permutation(len(source))
        rows = {
            modality: order[source.infrared[order] == infrared][: self.images]
            for modality, infrared in (("visible", False), ("infrared", True))
        }
        picture = augmentation_sheet(
            source.images(np.concatenate(list(rows.values()))),
            [f"{modality}, {source.names[i]}" for modality in rows for i in rows[modality]],
            settings.augment,
            draws=self.draws,
            seed=self.seed,
        )
        with whole_file(target) as file:
            picture.save(file, "png", optimize=True)
        print(f"wrote {target}")


COMMANDS: Any = (
    Annotated[PeopleCommand, tyro.conf.subcommand("people")]
    | Annotated[PrepareCommand, tyro.conf.subcommand("prepare")]
    | Annotated[CheckCommand, tyro.conf.subcommand("check")]
    | Annotated[RehearseCommand, tyro.conf.subcommand("rehearse")]
    | Annotated[AugmentationsCommand, tyro.conf.subcommand("augmentations")]
)


def main(arguments: list[str] | None = None) -> None:
    """`python -m ddag_jax.data people|prepare|check|rehearse|augmentations`.

    Raises:
      UserError: an option, a folder or an image has a fault; nothing half-written is left.
    """
    tfds.disable_progress_bar()
    command = parse(COMMANDS, arguments, "python -m ddag_jax.data", description=__doc__)
    if command.quiet:
        silence()
    command.run()
