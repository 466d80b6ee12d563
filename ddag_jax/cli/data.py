"""`python -m ddag_jax.data people|prepare|check|rehearse`."""

import dataclasses
import logging
from typing import Annotated

import tensorflow_datasets as tfds
import tyro
from etils import epath

from ddag_jax.cli.options import one_line_faults
from ddag_jax.datasets.checks import REHEARSAL
from ddag_jax.datasets.prepare import Dataset, check, prepare, read_layout
from ddag_jax.errors import UserError
from ddag_jax.io.progress import silence
from ddag_jax.synthetic.files import contact_sheet, write_people
from ddag_jax.synthetic.image import People
from ddag_jax.synthetic.rehearsal import llcm_tree, regdb_tree, sysu_mm01_tree, write_tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What every command takes."""

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
        """Writes the folder."""
        if self.sheet is not None:
            folder = epath.Path(self.sheet).parent
            if not folder.is_dir() and folder not in epath.Path(self.to).parents:  # made with `to`
                raise UserError(f"--sheet {self.sheet}: its folder does not exist; make it first")
        write_people(self.people, self.to, self.workers)
        print(f"wrote {self.to}")
        if self.sheet is not None:
            contact_sheet(self.people, range(1, min(8, self.people.identities) + 1), images=2).save(
                self.sheet
            )
            print(f"wrote {self.sheet}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Command):
    """A dataset's folder."""

    dataset: tyro.conf.Positional[Dataset]
    source: Annotated[str, tyro.conf.arg(name="from")]
    """The folder that the dataset was unpacked to; docs/datasets.md shows each one's."""
    train_arrays: bool = False
    """SYSU-MM01 only: take the training images from train_{rgb,ir}_resized_{img,label}.npy in
    that folder, which the reference's preprocessing leaves, instead of cam1 ... cam6."""


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
        """Builds the dataset and prints what it holds."""
        height, width = self.image_size
        if height < 1 or width < 1:
            raise UserError(f"--image-size {height} {width}: must be 1 or more pixels each")
        layout = read_layout(self.dataset, self.source, self.train_arrays)
        folder, reused = prepare(self.dataset, layout, self.to, height, width, self.overwrite)
        print(layout.summary())
        print(f"{folder}: " + ("already prepared from this source, kept" if reused else "prepared"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckCommand(Source):
    """Look for every fault of a dataset's folder, decoding each image."""

    def run(self) -> None:
        """Checks and prints what the folder holds."""
        print(check(self.dataset, self.source, self.train_arrays).summary())
        print(f"{self.source}: no faults")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RehearseCommand(Command):
    """Draw a folder of exactly a dataset's shape: its layout, lists and counts.

    To rehearse everything before the real images are there. A few rendered people stand for all
    identities, so that it takes seconds: pictures for counts, not for training. An image is one
    read-only file with many names, where the file system allows: replace it, do not write into it.
    """

    dataset: tyro.conf.Positional[Dataset]
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
    """Of the people, of RegDB's halves, of LLCM's split."""

    def run(self) -> None:
        """Writes the folder and prints what it holds."""
        if (self.exp is None) == (self.dataset == "sysu_mm01"):
            raise UserError(
                "--exp: sysu_mm01 needs the folder of its published lists and rand_perm_cam.mat;"
                " other datasets have none"
            )
        if self.scale != 1 and self.dataset != "llcm":
            raise UserError(f"--scale: only llcm can be scaled, not {self.dataset}; leave it out")
        if not 0.01 <= self.scale <= 1:
            raise UserError(f"--scale {self.scale}: must be from 0.01 to 1")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be 0 or more")
        if self.exp is not None:
            tree = sysu_mm01_tree(self.exp)
        elif self.dataset == "regdb":
            tree = regdb_tree(self.seed)
        else:
            tree = llcm_tree(self.seed, self.scale)
        note = f"{REHEARSAL} of {self.dataset}, rendered by ddag_jax: a few people stand for all\n"
        if self.scale != 1:
            note = f"Rendered by ddag_jax: a share of {self.scale} of {self.dataset}'s counts\n"
        write_tree(
            tree,
            self.to,
            distinct=self.distinct,
            heights=[self.height] * 4,
            seed=self.seed,
            note=note,
        )
        print(read_layout(self.dataset, self.to).summary())
        print(f"wrote {self.to}")


def main(arguments: list[str] | None = None) -> None:
    """`python -m ddag_jax.data people|prepare|check|rehearse`.

    Raises:
      UserError: what the user gave has a fault; nothing half-written is left.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns about any custom config
    tfds.disable_progress_bar()
    with one_line_faults():
        command = tyro.cli(
            Annotated[PeopleCommand, tyro.conf.subcommand("people")]
            | Annotated[PrepareCommand, tyro.conf.subcommand("prepare")]
            | Annotated[CheckCommand, tyro.conf.subcommand("check")]
            | Annotated[RehearseCommand, tyro.conf.subcommand("rehearse")],
            args=arguments,
            prog="python -m ddag_jax.data",
            description=__doc__,
        )
    if command.quiet:
        silence()
    command.run()
