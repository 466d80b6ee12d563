"""What the publication of a dataset prescribes, as one value: splits, searches, draws, counts.

The three published datasets are such values (`sysu_mm01.py`, `regdb.py`, `llcm.py`). A dataset of
your own is another one: give it as `data.dataset` in a configuration, or to
`ddag_jax.datasets.prepare.prepare`. NumPy only, no jax.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from etils import epath

from ddag_jax.config import DataConfig, EvaluationConfig
from ddag_jax.datasets.checks import Counts, FolderContent
from ddag_jax.errors import UserError

Direction = Literal["infrared_to_visible", "visible_to_infrared"]
"""Modality of the queries, then modality of the gallery."""

Shots = Literal["single", "multi", "all"]

DIRECTIONS: dict[Direction, str] = {
    "visible_to_infrared": "visible → infrared",
    "infrared_to_visible": "infrared → visible",
}


def label(direction: Direction, mode: str | None) -> str:
    """Return the name of a search in tables: its mode, else its direction.

    >>> label("infrared_to_visible", "indoor"), label("infrared_to_visible", None)
    ('indoor-search', 'infrared → visible')
    """
    return f"{mode}-search" if mode else DIRECTIONS[direction]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraRule:
    """Which gallery images a query skips, and what its CMC counts."""

    skips_cameras: tuple[tuple[int, int], ...] = ()
    """Pairs (camera of the query, camera of the gallery image): skipped, whatever the identity."""
    skips_own_camera: bool = False
    """Skip images of the query's own identity by the query's own camera."""
    counts: Literal["identities", "images"] = "images"
    """Places of the CMC: one for each identity, at its first image, or one for each image."""

    @property
    def needs_cameras(self) -> bool:
        """Whether any image is skipped because of its camera."""
        return bool(self.skips_cameras or self.skips_own_camera)


class Inspect(Protocol):
    """Lists the folder that a dataset is distributed as."""

    def __call__(self, folder: epath.PathLike, /) -> tuple[FolderContent, list[str]]:
        """Return what the folder holds, and its faults, a sentence each.

        Raises:
          UserError: nothing can be listed: no such folder, or another layout.
        """


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A dataset of visible and infrared images of people, and its published protocol.

    `inspect` names the splits: `train` and `test`, and `val` where `has_val`. With `splits` of
    10 they are `train_1`, `test_1` ... `train_10`, `test_10`.
    """

    name: str
    """Of the prepared folder and in tensorflow-datasets: lower case, digits, underscores."""
    title: str
    """In tables and messages."""
    description: str = ""
    homepage: str = ""
    citation: str = ""
    folder: str
    """The folder to unpack the dataset to, in words: "the folder that holds vis and nir"."""
    inspect: Inspect
    inspect_arrays: Inspect | None = None
    """The same with the training images from the arrays that the reference's preprocessing leaves
    (`--train-arrays`); None if the dataset has no such arrays."""
    counts: Mapping[str, Counts] = dataclasses.field(default_factory=dict)
    """Published number of identities and images of each split; `train+val` joins two."""
    has_val: bool = False
    """Whether the split `val` exists: `data.train_on=train` chooses the best checkpoint by it."""
    splits: int = 0
    """Published pairs of training and test split, a model each (RegDB: 10); 0: a single pair."""
    directions: tuple[Direction, ...] = ("visible_to_infrared", "infrared_to_visible")
    """Directions to search in, as published."""
    modes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Cameras of the gallery by search mode (SYSU-MM01); empty: no modes, cameras of all images."""
    mode_while_training: str = "both"
    """Mode that is evaluated every few epochs; `both` is every mode."""
    drawn: Mapping[Shots, int | None] = dataclasses.field(default_factory=dict)
    """Gallery images that a draw takes of each identity and camera, by shots; None: every image of
    the modality is in the gallery. Empty: as with None, and there is no choice."""
    permutations: bool = False
    """Whether the authors publish their gallery draws (SYSU-MM01's rand_perm_cam.mat)."""
    camera_rule: CameraRule = CameraRule()
    camera_rule_is_optional: bool = False
    """Whether an evaluation may do without it, see evaluation.camera_rule."""
    is_infrared: Callable[[str, int], bool | None] | None = None
    """Modality of an image by its file name and camera, for features from a file; None if these do
    not show it. A dataset without this function takes no features from files."""
    modality_shown_by: str = ""
    """What of an image shows its modality, for messages: "the folder, Visible or Thermal"."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(
                f"dataset {self.name!r}: the name is used for folders and files; give one of"
                " lower-case letters, digits and underscores"
            )
        if self.splits and self.has_val:
            raise UserError(
                f"dataset {self.name}: has_val and splits exclude each other; leave one of them out"
            )

    def train_split(self, data: DataConfig) -> str:
        """Return the split to train on."""
        if self.has_val:
            return data.train_on
        return f"train_{data.trial}" if self.splits else "train"

    def test_split(self, data: DataConfig) -> str:
        """Return the split that the published figures are measured on."""
        return f"test_{data.trial}" if self.splits else "test"

    def searches(self, evaluation: EvaluationConfig) -> list[tuple[Direction, str | None]]:
        """Return direction and mode of each search, in the published order."""
        chosen = evaluation.direction
        directions = self.directions if chosen == "published" else (chosen,)
        modes: Sequence[str | None] = [None]
        if self.modes:
            modes = list(self.modes) if evaluation.mode == "both" else [evaluation.mode]
        return [(direction, mode) for direction in directions for mode in modes]

    @property
    def needs_cameras(self) -> bool:
        """Whether the protocol cannot be evaluated on images of unknown cameras."""
        return bool(self.drawn or self.modes or self.camera_rule.needs_cameras)


def check_settings(dataset: Dataset, data: DataConfig, evaluation: EvaluationConfig) -> None:
    """Check that settings are among those that a dataset's publication knows.

    Raises:
      UserError: a field asks for something else; names the field, the reason and the repair.
    """
    name, title = dataset.name, dataset.title
    _check(
        data.trial == 1 or dataset.splits,
        f"data.trial: only datasets of several published splits have trials, not {name}; leave it"
        " at 1",
    )
    _check(
        data.trial <= max(1, dataset.splits),
        f"data.trial: {data.trial} is not among the trials of {title}, 1 to {dataset.splits}",
    )
    _check(
        data.train_on == "train+val" or dataset.has_val,
        f"data.train_on: {name} has no val list; leave it at train+val, and hold identities out"
        " with data.holdout_identities",
    )
    _check(
        evaluation.direction in ("published", *dataset.directions),
        f"evaluation.direction: the protocol of {title} searches"
        f" {' and '.join(one.replace('_', ' ') for one in dataset.directions)} only; leave it out",
    )
    _check(
        evaluation.mode == "both" or evaluation.mode in dataset.modes,
        f"evaluation.mode: {name} has no mode {evaluation.mode}; "
        + (f"give both or {' or '.join(dataset.modes)}" if dataset.modes else "leave it out"),
    )
    _check(
        evaluation.shots == "single" or evaluation.shots in dataset.drawn,
        f"evaluation.shots: the protocol of {title} has no {evaluation.shots}-shot gallery; leave"
        " it out",
    )
    _check(
        evaluation.camera_rule == "protocol" or dataset.camera_rule_is_optional,
        f"evaluation.camera_rule: the protocol of {title} prescribes it; leave it out",
    )
    _check(
        evaluation.draw == "seeded" or dataset.permutations,
        f"evaluation.draw: there are no published permutations of {name}; leave it out",
    )


def _check(condition: object, message: str) -> None:
    if not condition:
        raise UserError(message)
