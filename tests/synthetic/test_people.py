"""Built-in people: their files, their random numbers, and how they can be recognised."""

import dataclasses
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from ddag_jax.errors import UserError
from ddag_jax.synthetic.camera import CAMERAS, INFRARED, VISIBLE, make_camera
from ddag_jax.synthetic.figure import View, draw
from ddag_jax.synthetic.files import contact_sheet, write_people
from ddag_jax.synthetic.image import People, fault, render, render_person
from ddag_jax.synthetic.person import (
    BAG,
    BAG2,
    BOTTOM,
    BOTTOM2,
    CONTRAST_INFRARED,
    CONTRAST_VISIBLE,
    FAINT_RATE,
    HAT,
    INNER,
    LEG,
    SCARF,
    SHOE,
    TOP,
    TOP2,
    Person,
    make_person,
)

SMALL = People(
    train_identities=3, val_identities=1, test_identities=2, images_per_camera=2, height=64
)


def _files(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("people") / "new" / "set"
    write_people(SMALL, folder, workers=1, progress=False)
    return folder


def test_layout(written: pathlib.Path) -> None:
    images = {
        f"cam{camera}/{identity:04d}/{index:04d}.jpg"
        for camera in range(1, 7)
        for identity in range(1, 7)
        for index in (1, 2)
    }
    splits = {"exp/train_id.txt": b"1,2,3\n", "exp/val_id.txt": b"4\n", "exp/test_id.txt": b"5,6\n"}
    files = _files(written)
    assert set(files) == images | set(splits) | {"rendered.txt"}
    assert files["rendered.txt"].startswith(b"Rendered by ddag_jax, not SYSU-MM01: People(")
    assert {name: files[name] for name in splits} == splits
    assert not list(written.parent.glob(".*")), "the temporary folder is left"


@pytest.mark.parametrize("camera", CAMERAS)
def test_images_are_colour_or_grey(written: pathlib.Path, camera: int) -> None:
    with Image.open(written / f"cam{camera}" / "0001" / "0001.jpg") as file:
        assert file.mode == "RGB"
        image = np.asarray(file)
    assert image.shape == render(SMALL, 1, camera, 1).shape
    equal = (image[..., :1] == image).all()
    assert equal == (camera in (3, 6))


@pytest.mark.slow
class Deadly(People):
    """Ends the process that it is sent to."""

    def __reduce__(self) -> tuple:
        return os._exit, (9,)


@pytest.mark.slow  # starts processes
def test_a_worker_that_is_killed_is_an_error(tmp_path: pathlib.Path) -> None:
    deadly = Deadly(**dataclasses.asdict(SMALL))
    with pytest.raises(UserError, match="a process that draws people has ended: killed, perhaps"):
        write_people(deadly, tmp_path / "set", workers=2, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_workers_do_not_matter(written: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write_people(SMALL, tmp_path / "set", workers=2, progress=False)
    assert _files(tmp_path / "set") == _files(written)


def test_images_do_not_depend_on_how_many() -> None:
    more = dataclasses.replace(SMALL, test_identities=9, images_per_camera=7)
    np.testing.assert_array_equal(render(SMALL, 2, 4, 1), render(more, 2, 4, 1))


PIXELS = {
    (1, 1, 1): [100.0, 68.6, 112.4, 91.2, 91.0, 97.9, 104.4, 110.7, 106.6, 101.4, 94.8, 109.0],
    (2, 4, 2): [98.3, 130.6, 122.0, 116.3, 159.7, 119.4, 141.3, 145.2, 127.7, 105.0, 48.1, 73.6],
    (4, 3, 1): [81.9, 97.4, 84.4, 94.2, 114.3, 93.0, 104.1, 107.5, 98.5, 94.5, 90.5, 88.6],
    (6, 6, 2): [76.0, 67.9, 65.8, 105.9, 105.7, 104.2, 100.4, 114.3, 94.6, 82.2, 98.0, 81.0],
}
"""Mean grey levels of images, (identity, camera, index), of 12 cells, row by row."""


def _cells(image: np.ndarray) -> np.ndarray:
    """Mean grey level of each of 4 x 3 equal cells, row by row."""
    rows = np.array_split(image.mean(2), 4)
    return np.array([cell.mean() for row in rows for cell in np.array_split(row, 3, axis=1)])


@pytest.mark.parametrize("key", PIXELS)
def test_images_stay_the_same(key: tuple[int, int, int]) -> None:
    # Not bit for bit: rounding differs from one processor to the next.
    np.testing.assert_allclose(_cells(render(SMALL, *key)), PIXELS[key], atol=0.5)


def test_seed_and_index_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def observed(make):
        return lambda *key: asked.append(key) or make(*key)

    for make in (make_person, make_camera):
        monkeypatch.setattr(f"ddag_jax.synthetic.image.{make.__name__}", observed(make))
    first = render(SMALL, 1, 4, 1)
    second = render(SMALL, 1, 4, 2)
    assert asked == [(0, 1), (0, 4)] * 2
    assert first.shape != second.shape or (first != second).any()
    render(dataclasses.replace(SMALL, seed=5), 1, 4, 1)
    assert asked[4:] == [(5, 1), (5, 4)]
    assert make_person(0, 1).hip != make_person(5, 1).hip
    assert make_camera(0, 4).scene.tobytes() != make_camera(5, 4).scene.tobytes()


def _repainted(person: Person, camera: int) -> np.ndarray:
    """Render a person in a camera, always with the same random numbers."""
    return render_person(SMALL, person, camera, np.random.default_rng(0), misplaced=False)


@pytest.mark.parametrize("camera", CAMERAS)
def test_infrared_sees_no_colour(camera: int) -> None:
    person = make_person(0, 1)
    painted = dataclasses.replace(person, visible=255 - person.visible)
    same = (_repainted(person, camera) == _repainted(painted, camera)).all()
    assert same == (camera in INFRARED)


@pytest.mark.parametrize("camera", CAMERAS)
def test_colour_sees_no_infrared(camera: int) -> None:
    person = make_person(0, 1)
    painted = dataclasses.replace(person, infrared=255 - person.infrared)
    same = (_repainted(person, camera) == _repainted(painted, camera)).all()
    assert same == (camera in VISIBLE)


def test_infrared_greys_are_independent_of_colours() -> None:
    drawn = [make_person(0, identity) for identity in range(1, 400)]
    cloths = [TOP, TOP2, BOTTOM, BAG, SHOE]
    bright = np.array([person.visible[cloths].mean(1) for person in drawn])
    greys = np.array([person.infrared[cloths] for person in drawn], float)
    for column in range(len(cloths)):
        # The standard error of a correlation of 399 pairs is 0.05.
        assert abs(np.corrcoef(bright[:, column], greys[:, column])[0, 1]) < 0.2
    inverts = (bright[:, 0] > bright[:, 1]) != (greys[:, 0] > greys[:, 1])
    assert 0.4 < inverts.mean() < 0.6


def test_faults() -> None:
    options = dataclasses.replace(SMALL, train_identities=20, noise=0.3)
    kinds = {
        identity: [
            fault(options, identity, camera, index) for camera in CAMERAS for index in range(1, 11)
        ]
        for identity in range(1, options.identities + 1)
    }
    drawn = [kind for identity in options.split("train") for kind in kinds[identity]]
    assert abs(drawn.count("crop") / len(drawn) - 0.15) < 0.04
    assert abs(drawn.count("other") / len(drawn) - 0.15) < 0.04
    for name in ("val", "test"):
        assert {kind for identity in options.split(name) for kind in kinds[identity]} == {None}
    clean = dataclasses.replace(options, noise=0.0)
    for (identity, camera, index), faulty in {
        (1 + place // 60, 1 + place % 60 // 10, 1 + place % 10): kind is not None
        for place, kind in enumerate(drawn[:120])
    }.items():
        one = render(options, identity, camera, index)
        two = render(clean, identity, camera, index)
        assert faulty == (one.shape != two.shape or bool((one != two).any()))


def test_swapped_images_show_another_training_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    options = dataclasses.replace(SMALL, noise=1.0)
    shown = []
    monkeypatch.setattr(
        "ddag_jax.synthetic.image.make_person",
        lambda seed, number: shown.append(number) or make_person(seed, number),
    )
    for identity in options.split("train"):
        seen = set()
        for index in range(1, 31):
            shown.clear()
            render(options, identity, 3, index)
            if fault(options, identity, 3, index) == "other":
                seen.update(shown)
            else:
                assert shown == [identity]
        assert seen == set(options.split("train")) - {identity}


def test_background_does_not_give_identity_away() -> None:
    # Rows near the top, at the sides: background only. The size of the crop is taken out.
    identities, images = range(1, 5), range(1, 31)
    right = []
    for camera in (1, 5, 6):
        features, labels = [], []
        for identity in identities:
            for index in images:
                image = Image.fromarray(render(SMALL, identity, camera, index))
                pixels = np.asarray(image.resize((24, 64)), float)[:40]
                features.append(pixels[:, [0, 1, -2, -1]].ravel())
                labels.append(identity)
        table, names = np.array(features), np.array(labels)
        distance = ((table[:, None] - table[None]) ** 2).sum(2)
        np.fill_diagonal(distance, np.inf)
        right.extend(names[distance.argmin(1)] == names)
    # 360 guesses among four: the standard error is 0.023.
    assert abs(np.mean(right) - 0.25) < 0.1


def _labels(person: Person, angle: float, phase: float = 1.0) -> np.ndarray:
    """Return the label map of a person, 96 pixels high and 42 wide."""
    view = View(
        angle=angle,
        phase=phase,
        pace=0.3,
        arms="swing",
        fill=0.9,
        x=0.22,
        y=0.95,
        tilt=0.05,
        light=0.0,
    )
    return draw(person, view, 42, 96)[0]


PLAIN = dataclasses.replace(
    make_person(0, 1),
    pattern="plain",
    bottom="trousers",
    bottom_pattern="plain",
    sleeve=2.0,
    sleeve_plain=True,
    hem=0.45,
    gap=0.0,
    bag="none",
    hair="short",
    hat="none",
    hood="none",
    scarf=False,
)


@pytest.mark.parametrize(
    "pattern",
    [
        "hoops",
        "vertical",
        "diagonal",
        "checks",
        "dots",
        "yoke",
        "lower",
        "band",
        "panels",
        "halves",
        "centre",
        "block",
    ],
)
def test_patterns_show(pattern: str) -> None:
    for angle in (0.0,) if pattern == "block" else (0.0, np.pi):
        for period in (0.075, 0.15):
            labels = _labels(dataclasses.replace(PLAIN, pattern=pattern, period=period), angle)
            share = (labels == TOP2).sum() / np.isin(labels, (TOP, TOP2)).sum()
            assert 0.08 < share < 0.92, (angle, period)
    assert not (_labels(PLAIN, 0.0) == TOP2).any()


@pytest.mark.parametrize(
    ("change", "label", "front", "back"),
    [
        ({"pattern": "block", "period": 0.12}, TOP2, True, False),
        ({"gap": 0.3}, INNER, True, False),
        ({"bag": "backpack"}, BAG2, False, True),
        ({"bag": "backpack"}, BAG, True, True),
        ({"bag": "shoulder"}, BAG, True, True),
        ({"bag": "hand"}, BAG, True, True),
        ({"hat": "cap"}, HAT, True, True),
        ({"scarf": True}, SCARF, True, True),
        ({"bottom": "shorts", "bottom_hem": 0.3}, LEG, True, True),
        ({"bottom_pattern": "stripe"}, BOTTOM2, True, True),
        ({"bottom_pattern": "band"}, BOTTOM2, True, True),
        ({"bottom_pattern": "checks"}, BOTTOM2, True, True),
    ],
)
def test_cues_show_from_their_side(
    change: dict[str, str], label: int, front: bool, back: bool
) -> None:
    person = dataclasses.replace(PLAIN, **change)
    for angle, seen in ((0.0, front), (np.pi, back)):
        assert ((_labels(person, angle) == label).sum() > 15) == seen
        assert (_labels(PLAIN, angle) == label).sum() <= 15


def test_contrasts() -> None:
    drawn = [make_person(0, identity) for identity in range(1, 400)]
    for palette, least, share in (
        ("visible", CONTRAST_VISIBLE, 1.0),
        ("infrared", CONTRAST_INFRARED, 1 - FAINT_RATE),
    ):
        bright = np.array([getattr(person, palette).reshape(16, -1).mean(1) for person in drawn])
        clear = np.abs(bright[:, TOP] - bright[:, TOP2]) > 255 * least - 2
        assert clear.mean() > share - 0.04


def _outline(identity: int, infrared: bool, image: int) -> np.ndarray:
    """Return normalised edge strengths of a front view: where materials meet."""
    person = make_person(0, identity)
    labels = _labels(person, angle=0.1 * image, phase=1.0 + image)
    greys = person.infrared if infrared else person.visible.mean(1).astype(np.uint8)
    picture = np.where(labels > 0, greys[labels], 0).astype(float)
    edges = np.abs(np.diff(picture, axis=0))[:, 1:] + np.abs(np.diff(picture, axis=1))[1:]
    edges = np.minimum(edges, 60)[:95, :40].reshape(19, 5, 10, 4).mean((1, 3))
    return (edges - edges.mean()).ravel() / edges.std()


def test_shape_identifies_people_across_modalities() -> None:
    count = 40
    visible = np.array([_outline(identity, False, 0) for identity in range(1, count + 1)])
    infrared = np.array([_outline(identity, True, 1) for identity in range(1, count + 1)])
    nearest = (visible @ infrared.T).argmax(1)
    assert (nearest == np.arange(count)).mean() > 0.4  # chance is 0.025


def test_existing_target(tmp_path: pathlib.Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="exists"):
        write_people(SMALL, tmp_path / "set", workers=1, progress=False)
    assert list(tmp_path.iterdir()) == [tmp_path / "set"]
    assert not list((tmp_path / "set").iterdir())


def test_interrupted(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(options: People, identity: int, camera: int, index: int) -> np.ndarray:
        if identity == 2:
            raise KeyboardInterrupt
        return render(options, identity, camera, index)

    monkeypatch.setattr("ddag_jax.synthetic.files.render", stops)
    with pytest.raises(KeyboardInterrupt):
        write_people(SMALL, tmp_path / "set", workers=1, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_identities": 0},
        {"val_identities": 0},
        {"test_identities": -1},
        {"images_per_camera": 0},
        {"height": 8},
        {"height": 64.0},
        {"noise": 1.5},
        {"noise": float("nan")},
        {"noise": "much"},
        {"seed": -1},
        {"train_identities": 1, "noise": 0.1},
        {"train_identities": 9998},
    ],
)
def test_bad_options(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong)).split("_")[-1]):
        dataclasses.replace(SMALL, **wrong)


def test_bad_arguments(tmp_path: pathlib.Path) -> None:
    for identity, camera, index in ((0, 1, 1), (7, 1, 1), (1, 0, 1), (1, 7, 1), (1, 1, 0)):
        with pytest.raises(UserError):
            render(SMALL, identity, camera, index)
    with pytest.raises(UserError, match="workers"):
        write_people(SMALL, tmp_path / "set", workers=0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make"):
        write_people(SMALL, tmp_path / "file" / "set", workers=1)


def test_contact_sheet() -> None:
    sheet = contact_sheet(SMALL, [1, 2, 3], images=2, size=(20, 40))
    assert sheet.mode == "RGB"
    assert sheet.size == (12 * 22 + 2, 3 * 42 + 2)
    assert np.asarray(sheet)[2:42, 2:22].std() > 5
