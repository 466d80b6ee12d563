"""Built-in people: rendered pedestrians in the file layout of SYSU-MM01.

Six cameras look at people who walk by: cameras 1, 2, 4 and 5 in colour, 3 and 6 in near infrared;
1, 2 and 3 indoors, 4, 5 and 6 outdoors. What a person keeps from visible to infrared is what
people keep in life: build, gait, the cut and the pattern of the clothes, bags, hair and shoes.
Every cloth has an infrared grey of its own, drawn independently of its colour.

A body is a handful of joints in space (to the person's left, forward, up; 1 is the body height),
turned to the view and drawn as a map of materials and a map of shading at twice the size. The
materials become colours or greys only at the end, so that infrared never sees a colour.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import pathlib
import signal
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from ddag_jax.datasets.checks import RENDERED
from ddag_jax.errors import UserError
from ddag_jax.io.files import new_folder
from ddag_jax.io.progress import Progress

VISIBLE = (1, 2, 4, 5)
INFRARED = (3, 6)
CAMERAS = (1, 2, 3, 4, 5, 6)

# Nuisances, to tune how hard the people are to tell apart.
OCCLUDER_RATE = 0.06  # share of images with a pole, a bin or another person in front
CROP_SHIFT = 0.02  # standard deviation of the crop's shift, in crop heights
FILL = (0.86, 0.95)  # body height in crop heights
SIZE_SPREAD = 0.06  # relative spread of the crop's height and of its shape
BLUR_SPREAD = 0.25  # most blur an image adds to its camera's, in pixels at height 144
NOISE_VISIBLE = 2.0  # typical sensor noise, in grey levels of 255
NOISE_INFRARED = 3.0
FOLDS = 0.07  # standard deviation of the folds' brightness in clothes
LIGHT_SPREAD = 0.10  # standard deviation of an image's log brightness
SHADOW_RATE = 0.15  # share of outdoor visible images with a shadow edge across them
VIEW_SPREAD = 12.0  # standard deviation of the view about front, back or side, in degrees
VIEW_WEIGHTS = (0.72, 0.20, 0.08)  # share of front, back and side views
CONTRAST_VISIBLE = 0.34  # least difference of a pattern's two cloths, of full scale
CONTRAST_INFRARED = 0.34  # above 0.39 some greys would have no partner
NEUTRAL_RATE = 0.75  # share of cloths between black and white; the others are coloured
SATURATION = (0.15, 0.50)  # of the coloured ones
FAINT_RATE = 0.02  # share of people whose pattern is exempt from those contrasts in infrared

ASPECT = 0.44  # width of a crop in crop heights
_BASE_HEIGHT = 144  # the height, in pixels, at which blur is given

# Materials: the values of the label map.
(
    NOTHING,
    SKIN,
    HAIR,
    TOP,
    TOP2,
    SLEEVE,
    BOTTOM,
    BOTTOM2,
    LEG,
    SHOE,
    BAG,
    BAG2,
    HAT,
    INNER,
    SCARF,
    DARK,
) = range(16)
_MATERIALS = 16

_NEUTRAL = 200.0  # value of the shade map that leaves a material as it is
_EDGE, _FLANK, _LIT = 128, 178, 214  # shade at a limb's edge, towards its middle, in its middle

Floats = npt.NDArray[np.floating]
Bytes = npt.NDArray[np.uint8]
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class People:
    """What to render. Identities are numbered from 1: training, then validation, then test.

    Raises:
      UserError: a number is out of its range.
    """

    train_identities: int = 700  # at least 1, or 2 where noise is asked for
    val_identities: int = 24  # at least 1
    test_identities: int = 32  # at least 1
    images_per_camera: int = 3  # images of a person in each of the six cameras
    height: int = 144  # typical height of an image in pixels; an image is some 6 % more or less
    noise: float = 0.0  # share of training images with an annotation fault, in [0, 1]
    seed: int = 0  # other seeds give other people, scenes and images

    def __post_init__(self) -> None:
        for name, least, most in (
            ("train_identities", 1, 9999),
            ("val_identities", 1, 9999),
            ("test_identities", 1, 9999),
            ("images_per_camera", 1, 9999),
            ("height", 32, 1024),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserError(f"{name} must be a whole number, not {value!r}")
            if not least <= value <= most:
                raise UserError(f"{name} must be from {least} to {most}, not {value}")
        if isinstance(self.noise, bool) or not isinstance(self.noise, (int, float)):
            raise UserError(f"noise must be a number from 0 to 1, not {self.noise!r}")
        if not 0 <= self.noise <= 1:
            raise UserError(f"noise must be from 0 to 1, not {self.noise}")
        if self.noise > 0 and self.train_identities < 2:
            raise UserError("noise needs train_identities of 2 or more: some images are swapped")
        if self.identities > 9999:
            raise UserError(
                f"train_identities, val_ and test_ may be 9999 in all, not {self.identities}"
            )

    @property
    def identities(self) -> int:
        """Number of identities in the three splits together."""
        return self.train_identities + self.val_identities + self.test_identities

    def split(self, name: str) -> range:
        """The identities of the split "train", "val" or "test"."""
        ends = np.cumsum([1, self.train_identities, self.val_identities, self.test_identities])
        place = ("train", "val", "test").index(name)
        return range(int(ends[place]), int(ends[place + 1]))


# --- Persons ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)  # arrays do not compare to one truth
class _Person:
    """One person. Lengths are in body heights, angles in radians."""

    shoulder: float  # half widths
    waist: float
    hip: float
    depth: float  # half depth of the chest
    belly: float  # how far the belly stands out
    leg: float  # height of the hip joint
    thick: float  # thickness of the limbs, 1 is usual
    head: float  # size of the head, 1 is usual
    stride: float  # amplitude of the legs
    swing: float  # amplitude of the arms
    splay: float  # how far the arms stand off
    lean: float  # forward lean of the upper body
    bulk: float  # thickness of the upper garment, 1 is tight
    sleeve: float  # length of the sleeves, of the arm's two parts: 0, 0.8, 1.4 or 2
    hem: float  # height of the upper garment's lower edge
    flare: float  # half width of that edge
    gap: float  # half width of an open front, of the torso's; 0 is closed
    hood: str  # none, down, up
    sleeve_plain: bool  # the pattern stops at the sleeves
    pattern: str
    period: float
    phase: float
    duty: float
    bottom: str  # trousers, shorts, skirt
    bottom_hem: float  # height of the lower edge of shorts or a skirt
    bottom_flare: float  # half width of a skirt's edge
    fit: float  # width of the trouser legs, 1 is tight
    cuff: float  # width of the trouser legs at the ankle, 1 is tight
    bottom_pattern: str
    boots: float  # height of the shoes
    hair: str
    hat: str
    scarf: bool
    bag: str
    bag_side: float  # 1 left, -1 right
    bag_size: float
    visible: Bytes  # [materials, 3]
    infrared: Bytes  # [materials]


def _pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """Draws a key with a probability in proportion to its weight."""
    names = list(weights)
    ends = np.cumsum(list(weights.values()))
    return names[int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))]


def _cloth_colour(rng: np.random.Generator) -> Floats:
    """An RGB colour in [0, 1] as clothes have them: mostly black, grey, white, else muted, often
    blue. So colour, which infrared does not see, tells little of who somebody is."""
    if rng.random() < NEUTRAL_RATE:
        value = rng.choice([0.10, 0.22, 0.42, 0.62, 0.88]) + rng.normal(0, 0.03)
        colour = value + rng.normal(0, 0.015, 3)
    else:
        hue, depth, value = rng.random(), rng.uniform(*SATURATION), rng.uniform(0.25, 0.85)
        if rng.random() < 0.3:
            hue = rng.uniform(0.56, 0.68)
        wheel = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
        colour = value * (1 - depth * (1 - wheel))
    return np.clip(colour, 0.07, 0.92).astype(np.float32)


def _visible_palette(rng: np.random.Generator) -> Bytes:
    """Colours of all materials, uint8 [materials, 3]."""
    out = np.stack([_cloth_colour(rng) for _ in range(_MATERIALS)])
    tone = rng.uniform(0, 1)
    out[SKIN] = (1 - tone) * np.array([0.93, 0.76, 0.66]) + tone * np.array([0.42, 0.27, 0.19])
    hairs = np.array([[0.08, 0.07, 0.07], [0.2, 0.13, 0.09], [0.4, 0.26, 0.15], [0.72, 0.6, 0.38]])
    out[HAIR] = hairs[rng.choice(4, p=[0.45, 0.3, 0.15, 0.1])] + rng.normal(0, 0.02)
    for one, two in ((TOP, TOP2), (BOTTOM, BOTTOM2), (BAG, BAG2), (TOP, INNER)):
        while abs(float((out[one] - out[two]).mean())) < CONTRAST_VISIBLE:
            out[two] = _cloth_colour(rng)
    out[DARK] = 0.45 * out[SKIN]
    return (255 * np.clip(out, 0, 1)).astype(np.uint8)


def _infrared_palette(rng: np.random.Generator) -> Bytes:
    """Greys of all materials, uint8 [materials]; independent of the colours."""
    out = rng.uniform(0.12, 0.9, _MATERIALS)
    out[SKIN] = rng.uniform(0.68, 0.82)
    out[HAIR] = rng.uniform(0.15, 0.6)
    if rng.random() >= FAINT_RATE:
        for one, two in ((TOP, TOP2), (BOTTOM, BOTTOM2), (BAG, BAG2), (TOP, INNER)):
            while abs(out[one] - out[two]) < CONTRAST_INFRARED:
                out[two] = rng.uniform(0.12, 0.9)
    out[DARK] = 0.45 * out[SKIN]
    return (255 * out).astype(np.uint8)


def _make_person(rng: np.random.Generator) -> _Person:
    """Draws a person; the palettes come last, each from a stream of its own."""

    def normal(mean: float, spread: float) -> float:
        return float(mean * (1 + spread * np.clip(rng.normal(), -2, 2)))

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    stout = float(np.clip(rng.normal(), -1.6, 2.2))
    leg = between(0.46, 0.53)
    outfit = _pick(rng, {"trousers": 5, "shorts": 1.6, "skirt": 1.5, "dress": 1.2, "coat": 1.6})
    sleeve = float(rng.choice([0.0, 0.8, 1.4, 2.0], p=[0.08, 0.37, 0.1, 0.45]))
    hem, bulk, gap = leg + between(-0.04, 0.02), between(1.0, 1.12), 0.0
    if outfit == "coat":
        sleeve, bulk, hem = 2.0, between(1.1, 1.25), between(0.18, 0.36)
        gap = between(0.2, 0.4) if rng.random() < 0.4 else 0.0
    elif outfit == "dress":
        hem = between(0.10, 0.36)
    elif sleeve == 2.0 and rng.random() < 0.45:
        bulk, gap = between(1.05, 1.25), between(0.2, 0.45)
        hem = leg - between(0.0, 0.08)
    hip = normal(0.092, 0.07) + 0.007 * stout
    bottom = outfit if outfit in ("shorts", "skirt") else "trousers"
    fit = between(1.05, 1.6)
    person = _Person(
        shoulder=normal(0.112, 0.08) + 0.006 * stout,
        waist=normal(0.085, 0.06) + 0.012 * stout,
        hip=hip,
        depth=0.068 + 0.010 * stout,
        belly=max(0.0, 0.018 * stout + 0.008 * float(rng.normal())),
        leg=leg,
        thick=between(0.9, 1.15) + 0.08 * stout,
        head=normal(1.0, 0.05),
        stride=between(0.22, 0.48),
        swing=between(0.1, 0.55),
        splay=between(0.06, 0.2) + 0.03 * max(stout, 0.0),
        lean=between(-0.03, 0.14),
        bulk=bulk,
        sleeve=sleeve,
        hem=hem,
        flare=hip * (between(1.0, 1.25) if outfit in ("coat", "dress") else 1.03)
        + (between(0.0, 0.05) if outfit == "dress" else 0.0),
        gap=gap,
        hood=_pick(rng, {"none": 7, "down": 2, "up": 0.7}) if sleeve == 2.0 else "none",
        sleeve_plain=bool(rng.random() < 0.5),
        pattern=_pick(
            rng,
            {
                "plain": 0.7,
                "hoops": 2.0,
                "vertical": 1.2,
                "diagonal": 1.0,
                "checks": 1.0,
                "dots": 1.0,
                "block": 1.3,
                "yoke": 1.1,
                "lower": 1.1,
                "band": 1.2,
                "panels": 0.9,
                "halves": 0.7,
                "centre": 0.7,
                "sleeves": 1.2,
            },
        ),
        period=between(0.075, 0.15),
        phase=between(0, 1),
        duty=between(0.4, 0.6),
        bottom=bottom,
        bottom_hem=between(0.24, 0.36) if bottom == "shorts" else between(0.07, 0.36),
        bottom_flare=hip * between(0.95, 1.2) + between(0.0, 0.05),
        fit=fit,
        cuff=fit * between(0.85, 1.6),
        bottom_pattern=_pick(
            rng, {"plain": 3.5, "stripe": 1.6, "band": 1.3, "checks": 1.0, "upper": 0.8}
        ),
        boots=between(0.1, 0.2) if rng.random() < 0.25 else 0.04,
        hair=_pick(rng, {"short": 4, "long": 2.6, "bun": 1.2, "ponytail": 1.4, "bald": 1.0}),
        hat=_pick(rng, {"none": 4.5, "cap": 1.2, "beanie": 1.1, "brim": 0.7}),
        scarf=bool(rng.random() < 0.2),
        bag=_pick(rng, {"none": 2.2, "backpack": 2.5, "shoulder": 2.2, "hand": 1.8}),
        bag_side=float(rng.choice([-1.0, 1.0])),
        bag_size=between(0.85, 1.3),
        visible=np.zeros(0, np.uint8),
        infrared=np.zeros(0, np.uint8),
    )
    plain = person.pattern not in ("hoops", "vertical", "diagonal", "checks", "dots")
    tights = rng.random() < 0.3
    infrared = _infrared_palette(rng)
    visible = _visible_palette(rng)
    for palette in (infrared, visible):
        palette[SLEEVE] = palette[TOP2 if person.pattern == "sleeves" else TOP]
        if not tights:
            palette[LEG] = palette[SKIN]
    return dataclasses.replace(
        person,
        sleeve_plain=person.sleeve_plain or plain,
        visible=visible,
        infrared=infrared,
    )


@functools.lru_cache(maxsize=256)
def _person(seed: int, identity: int) -> _Person:
    """The person with this number."""
    return _make_person(np.random.default_rng([seed, identity]))


# --- Cameras ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Camera:
    """One camera and what it looks at."""

    scene: Image.Image  # RGB, or L in infrared; wider than any crop
    gain: Floats  # [3] brightness with the colour cast
    gamma: float
    light: float  # where the light comes from: -1 left, 1 right
    relief: float  # how strongly limbs are shaded; small in flat light
    shadow: float  # darkness of the shadow on the ground
    blur: float  # pixels at height 144
    noise: float  # grey levels of 255
    tilt: float  # how far the camera looks down
    vignette: float
    front: float  # weight of front against back views, 1 is even
    quality: int  # of the JPEG


_SCENE = (720, 260)
_FLOOR = 105  # where the floor begins in a scene


def _scene(rng: np.random.Generator, camera: int) -> Image.Image:
    """Draws a camera's scene: RGB, _SCENE pixels large, a floor and what stands behind it."""
    width, height = _SCENE
    image = Image.new("RGB", _SCENE)
    draw = ImageDraw.Draw(image)

    def tone(low: float, high: float, tint: Sequence[float] = (1, 1, 1)) -> tuple[int, int, int]:
        value = rng.uniform(low, high) * np.array(tint) * rng.uniform(0.94, 1.06, 3)
        red, green, blue = (int(255 * v) for v in np.clip(value, 0, 1))
        return red, green, blue

    def ramp(top: int, bottom: int, one: tuple[int, ...], two: tuple[int, ...]) -> None:
        for y in range(top, bottom):
            share = (y - top) / max(bottom - top - 1, 1)
            mixed = tuple(int(a + share * (b - a)) for a, b in zip(one, two, strict=True))
            draw.line((0, y, width, y), fill=mixed)

    green, warm, cold = (0.7, 1.0, 0.5), (1.0, 0.94, 0.84), (0.92, 0.97, 1.0)
    if camera <= 3:
        ramp(0, _FLOOR, tone(0.55, 0.7, warm), tone(0.65, 0.8, warm))
        ramp(_FLOOR, height, tone(0.4, 0.5, cold), tone(0.55, 0.65, cold))
    else:
        ramp(0, _FLOOR, tone(0.75, 0.9, cold), tone(0.8, 0.95, cold))
        floor = green if camera == 5 else (1, 1, 1)
        ramp(_FLOOR, height, tone(0.42, 0.5, floor), tone(0.5, 0.6, floor))
    x = -20.0
    while x < width:
        wide = rng.uniform(35, 80)
        right = x + wide
        if camera == 1:  # a corridor with doors and notices
            draw.rectangle((x, 0, right, _FLOOR), fill=tone(0.6, 0.78, warm))
            draw.rectangle((x + 8, 18, x + 8 + 0.55 * wide, _FLOOR), fill=tone(0.3, 0.6, warm))
            draw.rectangle((right - 14, 40, right - 4, 58), fill=tone(0.5, 0.95))
        elif camera == 2:  # a hall with windows and pillars
            draw.rectangle((x + 10, 5, right - 4, 70), fill=tone(0.75, 0.98, cold))
            draw.line(((x + right) / 2, 5, (x + right) / 2, 70), fill=tone(0.3, 0.5), width=3)
            draw.rectangle((x, 0, x + 12, _FLOOR + 4), fill=tone(0.4, 0.6))
        elif camera == 3:  # a room with shelves
            draw.rectangle((x, 15, right - 6, _FLOOR), fill=tone(0.3, 0.5))
            for shelf in range(20, _FLOOR - 12, 22):
                for book in range(int(x) + 3, int(right) - 12, 7):
                    draw.rectangle((book, shelf, book + 5, shelf + 16), fill=tone(0.2, 0.8))
        elif camera == 4:  # a street of houses and parked cars
            draw.rectangle((x, rng.uniform(0, 30), right, _FLOOR), fill=tone(0.35, 0.75, warm))
            for storey in range(35, _FLOOR - 20, 24):
                for window in range(int(x) + 6, int(right) - 12, 16):
                    draw.rectangle((window, storey, window + 9, storey + 14), fill=tone(0.2, 0.5))
            if rng.random() < 0.5:
                fill = tone(0.3, 0.9, rng.uniform(0.4, 1, 3).tolist())
                draw.rounded_rectangle((x + 4, 92, x + 58, 118), 8, fill=fill)
                draw.ellipse((x + 10, 110, x + 22, 122), fill=(30, 30, 30))
                draw.ellipse((x + 40, 110, x + 52, 122), fill=(30, 30, 30))
        elif camera == 5:  # a park with trees and hedges
            draw.rectangle((x, 72, right, _FLOOR + 4), fill=tone(0.25, 0.45, green))
            draw.rectangle((x + 16, 40, x + 24, _FLOOR + 6), fill=tone(0.2, 0.4, warm))
            for _ in range(6):
                cx, cy = x + 20 + rng.normal(0, 14), 30 + rng.normal(0, 12)
                draw.ellipse((cx - 18, cy - 14, cx + 18, cy + 14), fill=tone(0.2, 0.55, green))
        else:  # a square with a fence, a wall and bushes
            draw.rectangle((x, 25, right, _FLOOR), fill=tone(0.25, 0.5))
            for bar in range(int(x), int(right), 8):
                draw.line((bar, 50, bar, _FLOOR), fill=tone(0.5, 0.8), width=2)
            draw.ellipse((x - 5, 82, x + 30, _FLOOR + 10), fill=tone(0.4, 0.8, green))
        x = right
    if camera in (1, 2, 6):  # tiles, closer together far away
        line = tone(0.3, 0.42)
        for row in range(1, 8):
            y = _FLOOR + (height - _FLOOR) * (row / 8) ** 1.5
            draw.line((0, y, width, y), fill=line)
        for column in range(-400, width + 400, 36):
            centre = width / 2
            draw.line((column, _FLOOR, centre + 2.2 * (column - centre), height), fill=line)
    if camera == 5:
        draw.polygon(
            [(0, _FLOOR + 30), (width, _FLOOR + 15), (width, height), (0, height)],
            fill=tone(0.55, 0.65, warm),
        )
    grain = rng.normal(0, 9, (height // 2, width // 2, 1)).repeat(2, 0).repeat(2, 1)
    mixed = np.clip(np.asarray(image, np.float32) + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(mixed).filter(ImageFilter.GaussianBlur(1.0))


@functools.lru_cache(maxsize=32)
def _camera(seed: int, camera: int) -> _Camera:
    """The camera with this number."""
    # No person has the number 0, so that a camera shares its numbers with nobody.
    rng = np.random.default_rng([seed, 0, camera])
    scene = _scene(rng, camera)
    infrared = camera in INFRARED
    if infrared:
        # Near infrared sees surfaces in other proportions than the eye does.
        weights = rng.dirichlet([2.0, 2.0, 2.0])
        grey = np.asarray(scene, np.float32) @ weights.astype(np.float32)
        scene = Image.fromarray((0.75 * grey + 10).astype(np.uint8))
    indoor = camera <= 3
    cast = np.ones(3) if infrared else rng.uniform(0.9, 1.08, 3)
    bright = {1: 0.85, 2: 1.0, 3: 0.95, 4: 1.1, 5: 0.95, 6: 0.85}[camera]
    return _Camera(
        scene=scene,
        gain=(bright * cast).astype(np.float32),
        gamma=float(rng.uniform(0.85, 1.2)),
        light=float(rng.choice([-1, 1]) * rng.uniform(0.3, 1)) * (0.0 if infrared else 1.0),
        relief=0.45 if infrared else (0.8 if indoor else 1.05),
        shadow=0.15 if infrared else (0.3 if indoor else 0.5),
        blur=float(rng.uniform(0.2, 0.7)) + (0.2 if infrared else 0.0),
        noise=float(rng.uniform(0.6, 1.4)) * (NOISE_INFRARED if infrared else NOISE_VISIBLE),
        tilt=float(rng.uniform(0.02, 0.10)) if indoor else float(rng.uniform(0.06, 0.16)),
        vignette=float(rng.uniform(0.3, 0.5)) if infrared else float(rng.uniform(0, 0.12)),
        front=float(rng.uniform(0.6, 1.6)),
        quality=int(rng.integers(82, 95)),
    )


# --- Drawing a person -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _View:
    """How a person is seen in one image. Lengths are in crop heights, angles in radians."""

    angle: float  # 0 faces the camera, pi / 2 walks to the right of the picture
    phase: float  # of the walk
    pace: float  # amplitude of the walk against the person's usual one
    arms: str  # swing, phone, pockets
    fill: float  # body height
    x: float  # where the body's axis is, from the left
    y: float  # where the ground is, from the top
    tilt: float
    light: float


class _Canvas:
    """Label and shade maps under a projection of body coordinates to pixels."""

    def __init__(self, width: int, height: int, view: _View) -> None:
        self.labels = Image.new("L", (width, height))
        self.shades = Image.new("L", (width, height), _EDGE)
        self._label = ImageDraw.Draw(self.labels)
        self._shade = ImageDraw.Draw(self.shades)
        self.scale = view.fill * height
        self.sin, self.cos = math.sin(view.angle), math.cos(view.angle)
        self._x, self._y = view.x * height, view.y * height
        self._tilt, self._light = view.tilt, view.light

    def at(self, left: float, forward: float, up: float) -> Point:
        """Pixel of a point to the person's left, forward and up."""
        across = left * self.cos + forward * self.sin
        near = forward * self.cos - left * self.sin
        return (
            self._x + self.scale * across,
            self._y - self.scale * (up - self._tilt * near),
        )

    def near(self, left: float, forward: float) -> float:
        """How far a point is towards the camera."""
        return forward * self.cos - left * self.sin

    def limb(
        self, points: Sequence[Point], radii: Sequence[float], label: int, cut: int = 0
    ) -> None:
        """A round bar through pixels; the radii are in body heights.

        cut of its two ends are straight, not round: none, the last or both.
        """
        sizes = [radius * self.scale for radius in radii]
        # Shade by shade over the whole length, so that no joint shows.
        for share, shade in ((1.0, _EDGE), (0.74, _FLANK), (0.42, _LIT)):
            shift = 0.45 * (1 - share) * self._light
            discs = [
                (x + shift * size, y, share * size)
                for (x, y), size in zip(points, sizes, strict=True)
            ]
            for (x0, y0, a), (x1, y1, b) in itertools.pairwise(discs):
                length = math.hypot(x1 - x0, y1 - y0) or 1.0
                nx, ny = (y0 - y1) / length, (x1 - x0) / length
                corners = [
                    (x0 + nx * a, y0 + ny * a),
                    (x1 + nx * b, y1 + ny * b),
                    (x1 - nx * b, y1 - ny * b),
                    (x0 - nx * a, y0 - ny * a),
                ]
                self._shade.polygon(corners, fill=shade)
                if share == 1.0:
                    self._label.polygon(corners, fill=label)
            for x, y, a in discs[cut // 2 : len(discs) - (cut > 0)]:
                self._shade.ellipse((x - a, y - a, x + a, y + a), fill=shade)
                if share == 1.0:
                    self._label.ellipse((x - a, y - a, x + a, y + a), fill=label)

    def ellipse(self, centre: Point, across: float, up: float, label: int) -> None:
        """An ellipse about a pixel; the half axes are in body heights."""
        x, y = centre
        a, b = across * self.scale, up * self.scale
        self._label.ellipse((x - a, y - b, x + a, y + b), fill=label)
        for share, shade in ((1.0, _EDGE + 20), (0.78, _FLANK + 10), (0.5, _LIT)):
            u = x + 0.45 * (1 - share) * self._light * a
            self._shade.ellipse(
                (u - a * share, y - b * share, u + a * share, y + b * share), fill=shade
            )

    def column(self, rows: Sequence[tuple[float, float, float]], label: int) -> None:
        """An upright body from its rows, each (x, y, half width) in pixels, top first."""
        for share, shade in ((1.0, _EDGE), (0.8, _FLANK), (0.5, _LIT)):
            shift = 0.45 * (1 - share) * self._light
            outline = [(x + w * (shift - share), y) for x, y, w in rows]
            outline += [(x + w * (shift + share), y) for x, y, w in reversed(rows)]
            if share == 1.0:
                self._label.polygon(outline, fill=label)
            self._shade.polygon(outline, fill=shade)

    def box(self, centre: Point, across: float, up: float, label: int) -> None:
        """A box with round corners about a pixel; the half sides are in body heights."""
        x, y = centre
        a, b = across * self.scale, up * self.scale
        for share, shade in ((1.0, _EDGE + 10), (0.85, _FLANK + 12), (0.55, _LIT)):
            place = (x - a * share, y - b * share, x + a * share, y + b * share)
            round_ = 0.35 * min(a, b) * share
            if share == 1.0:
                self._label.rounded_rectangle(place, round_, fill=label)
            self._shade.rounded_rectangle(place, round_, fill=shade)


@dataclasses.dataclass(frozen=True)
class _Joints:
    """Where a person's joints are: points (left, forward, up), the left side first."""

    hips: list[tuple[float, float, float]]
    knees: list[tuple[float, float, float]]
    ankles: list[tuple[float, float, float]]
    shoulders: list[tuple[float, float, float]]
    elbows: list[tuple[float, float, float]]
    hands: list[tuple[float, float, float]]
    head: tuple[float, float, float]
    drop: float  # how far the step lowers the body


_SHOULDER = 0.815  # height of the shoulders of somebody who stands


def _joints(person: _Person, view: _View) -> _Joints:
    """Places the joints in the phase of the walk that the view shows."""
    stride = person.stride * view.pace
    bone = (person.leg - 0.045) / 2
    hips, knees, ankles = [], [], []
    for side in (1.0, -1.0):
        phase = view.phase + (0.0 if side > 0 else math.pi)
        thigh = stride * math.sin(phase) + 0.06
        shin = thigh - 1.5 * stride * max(0.0, math.cos(phase)) - 0.08
        left = side * 0.52 * person.hip
        hip = (left, 0.0, person.leg)
        knee = (left, bone * math.sin(thigh), person.leg - bone * math.cos(thigh))
        ankle = (left, knee[1] + bone * math.sin(shin), knee[2] - bone * math.cos(shin))
        hips.append(hip)
        knees.append(knee)
        ankles.append(ankle)
    drop = min(ankle[2] for ankle in ankles) - 0.045
    shoulders, elbows, hands = [], [], []
    for side in (1.0, -1.0):
        phase = view.phase + (math.pi if side > 0 else 0.0)
        upper = person.swing * view.pace * math.sin(phase) - 0.05
        lower = upper + 0.25 + 0.5 * person.swing * max(0.0, math.sin(phase))
        spread = person.splay
        inward = 0.0
        if view.arms == "pockets":
            upper, lower, spread, inward = -0.35, 0.35, 0.32, 0.07
        elif view.arms == "phone" and side == -person.bag_side:
            upper, lower, inward = 0.15, 2.2, 0.06
        forward = person.lean * (_SHOULDER - person.leg)
        start = (side * (person.shoulder * person.bulk - 0.02), forward, _SHOULDER - 0.03)
        elbow = (
            start[0] + side * 0.165 * math.sin(spread),
            start[1] + 0.165 * math.sin(upper),
            start[2] - 0.165 * math.cos(upper) * math.cos(spread),
        )
        hand = (
            elbow[0] + side * (0.03 * math.sin(spread) - inward),
            elbow[1] + 0.155 * math.sin(lower),
            elbow[2] - 0.155 * math.cos(lower),
        )
        shoulders.append(start)
        elbows.append(elbow)
        hands.append(hand)
    head = (0.0, person.lean * 0.42 + 0.012, 0.928)

    def down(points: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
        return [(a, b, c - drop) for a, b, c in points]

    return _Joints(
        hips=down(hips),
        knees=down(knees),
        ankles=down(ankles),
        shoulders=down(shoulders),
        elbows=down(elbows),
        hands=down(hands),
        head=(head[0], head[1], head[2] - drop),
        drop=drop,
    )


def _rows(
    canvas: _Canvas, person: _Person, drop: float, points: Sequence[tuple[float, float, float]]
) -> list[tuple[float, float, float]]:
    """Rows for a column from (height, half width, half depth), top first."""
    rows = []
    for up, wide, deep in points:
        forward = person.lean * max(0.0, up - person.leg)
        # The belly is a bump of the lower torso.
        bump = person.belly * math.exp(-(((up - person.leg - 0.09) / 0.09) ** 2))
        x, y = canvas.at(0.0, forward + 0.5 * bump, up - drop)
        half = math.hypot(wide * canvas.cos, (deep + 0.5 * bump) * canvas.sin)
        rows.append((x, y, half * canvas.scale))
    return rows


def _along(one: Point, two: Point, share: float) -> Point:
    """The point at a share of the way."""
    return one[0] + share * (two[0] - one[0]), one[1] + share * (two[1] - one[1])


def _draw_leg(canvas: _Canvas, person: _Person, joints: _Joints, side: int) -> None:
    """A leg with its trouser leg and its shoe."""
    hip, knee, ankle = (
        canvas.at(*points[side]) for points in (joints.hips, joints.knees, joints.ankles)
    )
    thick = person.thick
    left, forward, up = joints.ankles[side]
    heel = canvas.at(left, forward - 0.012, up - 0.022)
    toe = canvas.at(left * 1.15, forward + 0.075, up - 0.024)
    trousers = person.bottom == "trousers"
    canvas.limb([hip, knee, ankle], [0.05 * thick, 0.036 * thick, 0.022 * thick], LEG)
    canvas.limb([heel, toe], [0.026, 0.022], SHOE)
    if trousers:
        _draw_trouser_leg(canvas, person, hip, knee, ankle)
    # Wide trousers fall over boots.
    if person.boots > 0.05 and not (trousers and person.cuff > 1.3):
        boot = _along(ankle, knee, person.boots / 0.24)
        canvas.limb([boot, ankle], [0.038 * max(thick, 1.0), 0.03], SHOE)
    if person.bottom == "shorts":
        end = _along(hip, knee, min(1.0, (person.leg - person.bottom_hem) / (person.leg / 2)))
        width = 0.038 * thick * person.fit**0.8
        canvas.limb([hip, end], [0.054 * thick, width], BOTTOM, cut=1)
        if person.bottom_pattern == "band":
            canvas.limb([_along(end, hip, 0.3), end], [width, width], BOTTOM2, cut=2)
    if person.bottom_pattern == "stripe" and person.bottom != "skirt":
        # The stripe is on the outer side, where the leg's roundness shows it.
        outward = 1.0 if side == 0 else -1.0
        if canvas.near(outward, 0.0) > -0.45:
            shift = outward * canvas.cos * 0.034 * thick * canvas.scale

            def moved(point: Point) -> Point:
                return point[0] + shift, point[1]

            ends = [knee, _along(ankle, knee, 0.1)] if trousers else [end]
            line = [moved(point) for point in (hip, *ends)]
            canvas.limb(line, [0.013] * len(line), BOTTOM2)


def _draw_trouser_leg(
    canvas: _Canvas, person: _Person, hip: Point, knee: Point, ankle: Point
) -> None:
    """The two parts of a trouser leg."""
    thick = person.thick
    wide, end = 0.036 * thick * person.fit, 0.026 * thick * person.cuff
    hem = _along(knee, ankle, 0.93)
    canvas.limb([hip, knee, hem], [max(0.054 * thick, 0.9 * wide), wide, end], BOTTOM, cut=1)
    if person.bottom_pattern == "band":
        canvas.limb([_along(hem, knee, 0.45), hem], [0.6 * end + 0.4 * wide, end], BOTTOM2, cut=2)
    elif person.bottom_pattern == "upper":
        canvas.limb(
            [_along(knee, hip, 0.4), knee, _along(knee, hem, 0.4)], [wide] * 3, BOTTOM2, cut=2
        )


def _draw_arm(canvas: _Canvas, person: _Person, joints: _Joints, side: int) -> None:
    """An arm with its sleeve and its hand."""
    shoulder, elbow, hand = (
        canvas.at(*points[side]) for points in (joints.shoulders, joints.elbows, joints.hands)
    )
    thick, bulk = person.thick, person.bulk**1.5
    canvas.limb([shoulder, elbow, hand], [0.031 * thick, 0.026 * thick, 0.018 * thick], SKIN)
    canvas.ellipse(hand, 0.021, 0.025, SKIN)
    if person.sleeve > 0:
        path = [shoulder, _along(shoulder, elbow, min(1.0, person.sleeve))]
        if person.sleeve > 1:
            path.append(_along(elbow, hand, 0.92 * (person.sleeve - 1)))
        widths = [width * thick * bulk for width in (0.034, 0.031, 0.025)]
        canvas.limb(path, widths[: len(path)], SLEEVE, cut=1)
    if person.bag == "hand" and person.bag_side == (1.0 if side == 0 else -1.0):
        size = 0.055 * person.bag_size
        left, forward, up = joints.hands[side]
        centre = canvas.at(left, forward, up - 0.045 - size)
        across = math.hypot(0.6 * size * canvas.cos, 1.15 * size * canvas.sin) + 0.02
        for edge in (-0.6, 0.6):
            corner = (centre[0] + edge * across * canvas.scale, centre[1] - size * canvas.scale)
            canvas.limb([hand, corner], [0.007, 0.007], BAG2)
        canvas.box(centre, across, size, BAG)
        canvas.box(centre, across, 0.3 * size, BAG2)


def _draw_hair_down(canvas: _Canvas, person: _Person, joints: _Joints, front: bool) -> None:
    """Long hair or a ponytail, as far as it hangs down behind the person."""
    if front != (canvas.cos < 0.25) or person.hood == "up":
        return
    size = person.head
    left, forward, up = joints.head
    if person.hair == "long":
        top = canvas.at(left, forward - 0.025, up - 0.01)
        end = canvas.at(left, forward - 0.045, up - 0.15)
        wide = math.hypot(0.066 * canvas.cos, 0.034 * canvas.sin)
        canvas.limb([top, end], [0.052 * size, wide], HAIR)
    elif person.hair == "ponytail":
        top = canvas.at(left, forward - 0.06, up + 0.02)
        end = canvas.at(left, forward - 0.085, up - 0.14)
        canvas.limb([top, end], [0.024, 0.014], HAIR)


def _draw_head(canvas: _Canvas, person: _Person, joints: _Joints) -> None:
    """The neck, the head, hair and hats."""
    size = person.head
    left, forward, up = joints.head
    centre = canvas.at(left, forward, up)
    wide, high = 0.05 * size, 0.068 * size
    neck = canvas.at(0.0, forward - 0.015, up - 0.09)
    canvas.limb([centre, neck], [0.028, 0.03], SKIN)
    if person.scarf:
        canvas.ellipse(canvas.at(0.0, forward - 0.01, up - 0.085), 0.062, 0.03, SCARF)
    elif person.hood == "down":
        canvas.ellipse(canvas.at(0.0, forward - 0.06, up - 0.085), 0.07, 0.036, SLEEVE)
        if canvas.cos > 0:
            canvas.limb([centre, neck], [0.028, 0.03], SKIN)
    hooded = person.hood == "up"
    cover = SKIN if person.hair == "bald" else HAIR
    if hooded:
        canvas.ellipse(canvas.at(left, forward - 0.01, up - 0.002), 1.32 * wide, 1.2 * high, SLEEVE)
    else:
        if person.hair == "bun":
            canvas.ellipse(canvas.at(left, forward - 0.045, up + 0.055), 0.03, 0.028, HAIR)
        grow = 1.0 if person.hair == "bald" else 1.08
        canvas.ellipse(canvas.at(left, forward - 0.006, up + 0.004), grow * wide, high, cover)
    turned = min(1.0, max(0.0, (canvas.cos + 0.45) / 1.0))
    if turned > 0.05 and (hooded or cover != SKIN):
        face = (0.7 if hooded else 0.82) * wide * math.sqrt(turned)
        x = centre[0] + canvas.sin * (wide - face) * canvas.scale
        low = canvas.at(left, forward, up - 0.014 * size)[1]
        canvas.ellipse((x, low), face, 0.78 * high, SKIN)
        if person.hair == "long" and canvas.cos > 0.25 and not hooded:
            for edge in (-1.0, 1.0):
                lock = (centre[0] + edge * 0.92 * wide * canvas.scale, centre[1])
                end = (lock[0], centre[1] + 0.14 * canvas.scale)
                canvas.limb([lock, end], [0.014, 0.016], HAIR)
    if canvas.cos > 0.3:
        for edge in (-0.4, 0.4):
            x = centre[0] + (edge * canvas.cos + 0.55 * canvas.sin) * wide * canvas.scale
            canvas.ellipse((x, centre[1]), 0.007, 0.006, DARK)
    if person.hat != "none" and not hooded:
        lift = 0.036 if person.hat == "beanie" else 0.03
        crown = canvas.at(left, forward, up + lift * size)
        tall = 0.75 if person.hat == "beanie" else 0.6
        canvas.ellipse(crown, 1.14 * wide, tall * high, HAT)
        if person.hat == "cap":
            one = canvas.at(left, forward + 0.03, up + 0.012)
            two = canvas.at(left, forward + 0.075, up + 0.008)
            if canvas.cos > -0.3:
                canvas.limb([one, two], [0.013 + 0.022 * abs(canvas.cos), 0.012], HAT)
        elif person.hat == "brim":
            canvas.ellipse((crown[0], crown[1] + 0.02 * canvas.scale), 2.0 * wide, 0.016, HAT)


def _draw_bag(canvas: _Canvas, person: _Person, joints: _Joints, front: bool) -> None:
    """A backpack or a shoulder bag where it hangs before (front) or behind the body."""
    size = person.bag_size
    if person.bag == "backpack":
        deep = person.depth * person.bulk
        if front == (canvas.cos < 0):
            forward = -(deep + 0.042) + person.lean * 0.2
            centre = canvas.at(0.0, forward, 0.695 - joints.drop)
            across = math.hypot(0.088 * canvas.cos, 0.055 * canvas.sin) * size
            canvas.box(centre, across, 0.115 * size, BAG)
            if canvas.cos < -0.2:
                low = centre[0], centre[1] + 0.05 * size * canvas.scale
                canvas.box(low, 0.7 * across, 0.042 * size, BAG2)
    elif person.bag == "shoulder":
        left = person.bag_side * (person.hip * person.bulk + 0.012)
        if front == (canvas.near(left, 0.0) > -0.02):
            centre = canvas.at(left, 0.0, person.leg - 0.01 - joints.drop)
            across = math.hypot(0.035 * canvas.cos, 0.085 * canvas.sin) * size + 0.01
            canvas.box(centre, across, 0.062 * size, BAG)
            upper = centre[0], centre[1] - 0.03 * size * canvas.scale
            canvas.box(upper, across, 0.03 * size, BAG2)


def _pattern(person: _Person, phi: Floats, side: Floats, up: Floats) -> npt.NDArray[np.bool_]:
    """Where the second cloth of the upper garment is, bool, from the place on the body.

    phi is the angle about the body from its front (radians), side the place from its right (-1) to
    its left (1), up the height in body heights.
    """
    period, duty = person.period, person.duty
    u, v = 0.1 * phi / period + person.phase, up / period + person.phase
    front = np.abs(phi) < math.pi / 2
    level = 0.58 + 0.16 * person.phase
    if person.pattern == "hoops":
        return v % 1 < duty + 0 * u
    if person.pattern == "vertical":
        return 1.1 * u % 1 < duty + 0 * v
    if person.pattern == "diagonal":
        return (u + v) % 1 < duty
    if person.pattern == "checks":
        return (u % 1 < 0.5) != (v % 1 < 0.5)
    if person.pattern == "dots":
        return (u % 1 - 0.5) ** 2 + ((v + 0.5 * (np.floor(u) % 2)) % 1 - 0.5) ** 2 < 0.115
    if person.pattern == "block":
        size = 0.3 + 2.2 * period
        return front & (np.abs(side) < size) & (np.abs(up - 0.72) < 0.35 * size * duty)
    if person.pattern == "yoke":
        return up > 0.69 + 0.06 * person.phase + 0 * u
    if person.pattern == "lower":
        return up < 0.57 + 0.1 * person.phase + 0 * u
    if person.pattern == "band":
        return np.abs(up - level) < 0.5 * period * (0.5 + duty) + 0 * u
    if person.pattern == "panels":
        return np.abs(side) > 0.45 + 0.3 * duty + 0 * v
    if person.pattern == "halves":
        return (side > 0) == (person.phase > 0.5) + 0 * v.astype(bool)
    if person.pattern == "centre":
        return np.abs(side) < 0.1 + 0.25 * duty + 0 * v
    return np.zeros(np.broadcast_shapes(phi.shape, up.shape), np.bool_)


def _dress(
    labels: Bytes,
    person: _Person,
    view: _View,
    rows: Sequence[tuple[float, float, float]],
    heights: Sequence[float],
) -> None:
    """Puts patterns, an open front and straps on a label map in place.

    rows are the torso's in pixels, heights theirs in body heights.
    """
    ys = [y for _, y, _ in rows]
    first = max(0, int(ys[0]))
    last = min(labels.shape[0], int(view.y * labels.shape[0]))
    if last <= first:
        return
    y = np.arange(first, last)
    part = labels[first:last]
    axis = np.interp(y, ys, [x for x, _, _ in rows])[:, None]
    half = np.interp(y, ys, [w for _, _, w in rows])[:, None]
    scale = view.fill * labels.shape[0]
    up = (heights[-1] - (y - ys[-1]) / scale)[:, None].astype(np.float32)
    across = ((np.arange(labels.shape[1]) - axis) / half).astype(np.float32)
    inside = np.clip(across, -1, 1)
    phi = np.arcsin(inside) + (across - inside) - np.float32(view.angle)
    phi = (phi + math.pi) % (2 * math.pi) - math.pi
    side, ahead = np.sin(phi), np.cos(phi)
    top = part == TOP
    cloth = top if person.sleeve_plain else top | (part == SLEEVE)
    part[cloth & _pattern(person, phi, side, up)] = TOP2
    top |= (part == TOP2) & (np.abs(across) <= 1)
    if person.gap:
        gap = top & (ahead > 0) & (np.abs(side) < person.gap)
        part[gap] = INNER
        part[gap & (up < person.leg - 0.02)] = BOTTOM
    if person.bag == "backpack":
        straps = (np.abs(np.abs(side) - 0.56) < 0.12) & (up > 0.64)
        part[top & (ahead > 0) & straps] = BAG
    elif person.bag == "shoulder":
        # The strap runs from the far shoulder to the bag, in one plane through the body.
        line = person.bag_side * (1.0 - (up - person.leg) / (_SHOULDER - person.leg) * 1.5)
        part[top & (np.abs(side - line) < 0.15) & (up > person.leg)] = BAG
    if person.bottom_pattern == "checks":
        low = part == BOTTOM
        u, v = 0.1 * across / person.period, up / person.period
        part[low & ((u % 1 < 0.5) != (v % 1 < 0.5))] = BOTTOM2
    elif person.bottom == "skirt" and person.bottom_pattern in ("stripe", "band", "upper"):
        edge = person.bottom_hem + 0.07
        bands = up < edge if person.bottom_pattern != "upper" else up > edge
        part[(part == BOTTOM) & bands] = BOTTOM2


def _draw(person: _Person, view: _View, width: int, height: int) -> tuple[Bytes, Floats]:
    """Draws a person on a canvas of height x width pixels.

    Returns the label map, uint8 [height, width], and the shading, float32 [height, width], 1 where
    a material is as bright as it is.
    """
    canvas = _Canvas(width, height, view)
    joints = _joints(person, view)
    drop = joints.drop
    bulk = person.bulk
    deep = person.depth * bulk
    leg = person.leg
    hip = person.hip * (bulk + 1) / 2
    profile = [
        (_SHOULDER + 0.040, 0.036, 0.04),
        (_SHOULDER + 0.012, 0.80 * person.shoulder * bulk, 0.75 * deep),
        (_SHOULDER - 0.02, person.shoulder * bulk, deep),
        (_SHOULDER - 0.09, 0.93 * person.shoulder * bulk, 1.08 * deep),
        (leg + 0.11, person.waist * bulk, 0.95 * deep),
        (leg, hip, 1.08 * deep),
    ]
    shirt = list(profile)
    if person.hem > leg:
        shirt[-1] = (person.hem, hip, 1.05 * deep)
    else:
        shirt.append((person.hem, max(person.flare, hip), max(person.flare * 0.85, deep)))
    seat = [*profile[-2:], (leg - 0.05, 0.97 * hip, deep)]
    skirt = [
        *profile[-2:],
        (person.bottom_hem, person.bottom_flare, max(0.85 * person.bottom_flare, deep)),
    ]
    rows = _rows(canvas, person, drop, shirt)

    arms = sorted((0, 1), key=lambda side: canvas.near(joints.shoulders[side][0], 0.0))
    legs = sorted((0, 1), key=lambda side: canvas.near(joints.hips[side][0], 0.0))
    sideways = abs(canvas.sin) > 0.45
    _draw_hair_down(canvas, person, joints, front=False)
    _draw_bag(canvas, person, joints, front=False)
    if sideways:
        _draw_arm(canvas, person, joints, arms[0])
    for side in legs:
        _draw_leg(canvas, person, joints, side)
    if person.bottom == "skirt":
        canvas.column(_rows(canvas, person, drop, skirt), BOTTOM)
    else:
        canvas.column(_rows(canvas, person, drop, seat), BOTTOM)
    canvas.column(rows, TOP)
    for side in arms[1:] if sideways else arms:
        _draw_arm(canvas, person, joints, side)
    _draw_head(canvas, person, joints)
    _draw_hair_down(canvas, person, joints, front=True)
    _draw_bag(canvas, person, joints, front=True)

    labels = np.array(canvas.labels)
    _dress(labels, person, view, rows, [up - drop for up, _, _ in shirt])
    shades = canvas.shades.filter(ImageFilter.BoxBlur(height / 160))
    return labels, np.asarray(shades, np.float32) / np.float32(_NEUTRAL)


# --- Images -----------------------------------------------------------------------------------


def fault(options: People, identity: int, camera: int, index: int) -> str | None:
    """The annotation fault of an image: "crop" (cut off or badly placed), "other" (shows another
    training identity) or None. Only training images have faults, a share options.noise of them."""
    if options.noise == 0 or identity not in options.split("train"):
        return None
    rng = np.random.default_rng([options.seed, identity, camera, index])
    chance = rng.random()
    if chance >= options.noise:
        return None
    return "crop" if chance < options.noise / 2 else "other"


def _view(rng: np.random.Generator, camera: _Camera, wide: float) -> _View:
    """Draws how an image shows its person; wide is the crop's width in crop heights."""
    front, back, side = VIEW_WEIGHTS
    facing = _pick(rng, {"front": front * camera.front, "back": back, "side": side})
    sides = float(rng.choice([-90.0, 90.0]))
    angle = {"front": 0.0, "back": 180.0, "side": sides}[facing] + rng.normal(0, VIEW_SPREAD)
    fill = float(rng.uniform(*FILL))
    return _View(
        angle=math.radians(angle),
        phase=float(rng.uniform(0, 2 * math.pi)),
        pace=float(rng.uniform(0.6, 1.1)) if rng.random() < 0.85 else 0.1,
        arms=_pick(rng, {"swing": 8, "phone": 1, "pockets": 1}),
        fill=fill,
        x=wide / 2 + float(np.clip(rng.normal(0, CROP_SHIFT), -0.08, 0.08)),
        y=0.5 + fill / 2 + float(np.clip(rng.normal(0, CROP_SHIFT / 2), -0.04, 0.04)),
        tilt=camera.tilt,
        light=camera.light,
    )


def _spoil(rng: np.random.Generator, view: _View, wide: float) -> _View:
    """The view of a crop that is cut off or badly placed."""
    kind = rng.integers(3)
    if kind == 0:  # beside the person
        shift = float(rng.choice([-1, 1]) * rng.uniform(0.35, 0.55)) * wide
        return dataclasses.replace(view, x=view.x + shift)
    zoom = float(rng.uniform(1.6, 2.4))
    middle = wide / 2 + zoom * (view.x - wide / 2)
    if kind == 1:  # only the upper body
        top = view.y - view.fill
        return dataclasses.replace(view, fill=zoom * view.fill, x=middle, y=top + zoom * view.fill)
    return dataclasses.replace(view, fill=zoom * view.fill, x=middle)  # only the legs


def _layer(
    rng: np.random.Generator,
    person: _Person,
    view: _View,
    camera: _Camera,
    infrared: bool,
    size: tuple[int, int],
) -> tuple[Floats, Floats]:
    """A person in colour or infrared on nothing, and how opaque it is.

    Returns float32 [height, width, 3 or 1] in grey levels, premultiplied, and float32
    [height, width, 1].
    """
    width, height = size
    labels, shading = _draw(person, view, 2 * width, 2 * height)
    folds = Image.fromarray(rng.standard_normal((18, 8), np.float32))
    folds = folds.resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
    shading = shading + FOLDS * np.asarray(folds)
    shading = 1 + np.float32(camera.relief) * (shading - 1)
    if infrared:
        flat = person.infrared[labels] * shading * (labels > 0)
        drawn = np.clip(flat, 0, 255).astype(np.uint8)
    else:
        flat = person.visible[labels] * (shading * (labels > 0))[..., None]
        drawn = np.clip(flat, 0, 255).astype(np.uint8)
    small = np.asarray(Image.fromarray(drawn).reduce(2), np.float32)
    solid = Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).reduce(2)
    opaque = np.asarray(solid, np.float32)[..., None] / 255
    return small.reshape(height, width, -1), opaque


def _occlude(rng: np.random.Generator, image: Floats, camera: _Camera, infrared: bool) -> Floats:
    """The image with a pole, a bin or another person in front."""
    tall, wide = image.shape[:2]
    kind = rng.integers(3)
    if kind == 2:
        view = _view(rng, camera, wide / tall)
        shift = float(rng.choice([-1, 1]) * rng.uniform(0.75, 1.0)) * wide / tall / 2
        view = dataclasses.replace(view, x=wide / tall / 2 + shift, fill=1.05 * view.fill)
        layer, opaque = _layer(rng, _make_person(rng), view, camera, infrared, (wide, tall))
        return image * (1 - opaque) + layer
    shade = rng.uniform(40, 200) + rng.uniform(-25, 25, image.shape[2])
    out = image.copy()
    if kind == 0:
        thick = int(rng.uniform(0.1, 0.17) * wide) + 1
        left = int(rng.uniform(0.05, 0.95) * (wide - thick))
        round_ = 0.7 + 0.4 * np.sin(np.linspace(0.2, 2.9, thick, dtype=np.float32))
        out[:, left : left + thick] = shade * round_[:, None]
    else:
        span, top = int(rng.uniform(0.35, 0.55) * wide), int(rng.uniform(0.68, 0.8) * tall)
        left = int(rng.uniform(-0.2, 0.85) * wide)
        left, right = max(0, left), min(wide, left + span)
        round_ = 0.7 + 0.4 * np.sin(np.linspace(0.2, 2.9, right - left, dtype=np.float32))
        out[top:, left:right] = shade * round_[:, None]
        out[top : top + max(2, tall // 40), left:right] *= 0.6
    return out


def render(options: People, identity: int, camera: int, index: int) -> Bytes:
    """Renders one image of a person.

    Args:
      options: what to render.
      identity: from 1 to options.identities.
      camera: 1 to 6; 3 and 6 are infrared.
      index: number of the image, from 1; it may be above options.images_per_camera.

    Returns:
      uint8 [height, width, 3]; about options.height high and 0.44 times as wide. In infrared the
      three channels are equal.

    Raises:
      UserError: there is no such identity, camera or image.
    """
    if not 1 <= identity <= options.identities:
        raise UserError(f"identity must be from 1 to {options.identities}, not {identity}")
    if camera not in CAMERAS:
        raise UserError(f"camera must be from 1 to 6, not {camera}")
    if index < 1:
        raise UserError(f"index must be 1 or more, not {index}")
    wrong = fault(options, identity, camera, index)
    rng = np.random.default_rng([options.seed, identity, camera, index])
    rng.random()  # fault's number
    shown = identity
    if wrong == "other":
        shown = int(rng.integers(1, options.train_identities))
        shown += shown >= identity
    return _render(options, _person(options.seed, shown), camera, rng, wrong == "crop")


def _render(
    options: People, person: _Person, number: int, rng: np.random.Generator, spoilt: bool
) -> Bytes:
    """Renders a person with the random numbers that are left of an image's."""
    camera = _camera(options.seed, number)
    infrared = number in INFRARED
    height = round(options.height * (1 + SIZE_SPREAD * rng.uniform(-1, 1)))
    width = round(ASPECT * height * (1 + SIZE_SPREAD * rng.uniform(-1, 1)))
    wide = width / height
    view = _view(rng, camera, wide)
    if spoilt:
        view = _spoil(rng, view, wide)

    # The part of the scene owes nothing to the person.
    zoom = _SCENE[1] * rng.uniform(0.72, 1.0)
    left = rng.uniform(0, _SCENE[0] - zoom * wide)
    top = rng.uniform(0, _SCENE[1] - zoom)
    place = (left, top, left + zoom * wide, top + zoom)
    crop = camera.scene.resize((width, height), Image.Resampling.BILINEAR, box=place)
    image: Floats = np.asarray(crop, np.float32).reshape(height, width, -1)

    x = (np.arange(width, dtype=np.float32) / height)[None, :]
    y = (np.arange(height, dtype=np.float32) / height)[:, None]
    # On the ground: dark below the feet, and away from the light.
    reach = 0.07 * camera.light
    spot = ((x - view.x + reach) / (0.11 + abs(reach))) ** 2 + ((y - view.y + 0.01) / 0.028) ** 2
    image = image * (1 - camera.shadow * np.exp(-spot))[..., None]
    layer, opaque = _layer(rng, person, view, camera, infrared, (width, height))
    image = image * (1 - opaque) + layer
    if rng.random() < OCCLUDER_RATE:
        image = _occlude(rng, image, camera, infrared)
    if number in (4, 5) and rng.random() < SHADOW_RATE:
        slope, offset = rng.normal(0, 0.8), rng.uniform(0.15, 0.85)
        edge = (y - offset - slope * (x - wide / 2)) * (40.0 * float(rng.choice([-1, 1])))
        image = image * (1 - 0.4 / (1 + np.exp(-np.clip(edge, -30, 30))))[..., None]

    radius = (camera.blur + BLUR_SPREAD * rng.random()) * height / _BASE_HEIGHT
    soft = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8).squeeze())
    soft = soft.filter(ImageFilter.GaussianBlur(radius))
    image = np.asarray(soft, np.float32).reshape(height, width, -1) / 255
    gain = camera.gain[: image.shape[2]] * np.float32(math.exp(rng.normal(0, LIGHT_SPREAD)))
    centre = (rng.uniform(0.3, 0.7) * wide, rng.uniform(0.3, 0.6))
    far = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 0.3
    image = (image * gain * (1 - camera.vignette * np.minimum(far, 1))[..., None]) ** camera.gamma
    grain = rng.standard_normal(image.shape, np.float32) * np.float32(camera.noise)
    out = np.clip(255 * image + grain, 0, 255).astype(np.uint8)
    return np.repeat(out, 3, 2) if infrared else out


def contact_sheet(
    options: People,
    identities: Sequence[int],
    images: int = 1,
    size: tuple[int, int] = (64, 144),
) -> Image.Image:
    """Renders people side by side: a row for each identity, a column for each image of a camera.

    Args:
      options: what to render.
      identities: the rows.
      images: how many images of each camera.
      size: width and height of each image in pixels.

    Returns:
      An RGB picture.

    Raises:
      UserError: there is no such identity.
    """
    gap = 2
    columns = [(camera, index) for camera in CAMERAS for index in range(1, images + 1)]
    width, height = size
    across, down = len(columns) * (width + gap) + gap, len(identities) * (height + gap) + gap
    sheet = Image.new("RGB", (across, down), "white")
    for row, identity in enumerate(identities):
        for column, (camera, index) in enumerate(columns):
            image = Image.fromarray(render(options, identity, camera, index))
            image = image.resize(size, Image.Resampling.BICUBIC)
            sheet.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


# --- Files ------------------------------------------------------------------------------------


def _write_identity(job: tuple[People, pathlib.Path, int]) -> int:
    """Writes all images of one identity; returns how many."""
    options, folder, identity = job
    for camera in CAMERAS:
        place = folder / f"cam{camera}" / f"{identity:04d}"
        place.mkdir(parents=True)
        for index in range(1, options.images_per_camera + 1):
            image = Image.fromarray(render(options, identity, camera, index))
            image.save(place / f"{index:04d}.jpg", quality=_camera(options.seed, camera).quality)
    return len(CAMERAS) * options.images_per_camera


def _ignore_interrupt() -> None:
    """Leaves Ctrl-C to the parent, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def write_people(
    options: People,
    folder: str | os.PathLike[str],
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Writes built-in people as files, laid out like SYSU-MM01.

    The images become FOLDER/cam1 to cam6/{identity:04d}/{index:04d}.jpg, the splits
    FOLDER/exp/train_id.txt, val_id.txt and test_id.txt, each one line of identities with commas.
    FOLDER/rendered.txt says that these are drawings, and of whom.
    The files are the same for any number of workers. They are written beside the folder and moved
    at the end, so that the folder is whole or absent. Workers are fresh processes: a script that
    calls this with more than one must do so under `if __name__ == "__main__":`.

    Args:
      options: what to render.
      folder: where to; must not exist.
      workers: number of processes; by default as many as there are cores.
      progress: show a progress bar on standard error.

    Raises:
      UserError: the folder exists or cannot be made or written, or workers is below 1.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers must be 1 or more, not {workers}")
    workers = min(workers or os.cpu_count() or 1, options.identities)
    total = options.identities * len(CAMERAS) * options.images_per_camera
    with (
        new_folder(folder) as partial,
        Progress(total, "drawing people", "image", shown=progress) as bar,
    ):
        jobs = [(options, partial, identity) for identity in range(1, options.identities + 1)]
        if workers == 1:
            for job in jobs:
                bar.update(_write_identity(job))
        else:
            # A fork of a process with threads, as JAX has, may hang.
            context = multiprocessing.get_context("spawn")
            with context.Pool(workers, _ignore_interrupt) as pool:
                for count in pool.imap_unordered(_write_identity, jobs):
                    bar.update(count)
        (partial / "exp").mkdir()
        for name in ("train", "val", "test"):
            line = ",".join(str(identity) for identity in options.split(name))
            (partial / "exp" / f"{name}_id.txt").write_text(line + "\n", encoding="ascii")
        (partial / RENDERED).write_text(f"Rendered by ddag_jax, not SYSU-MM01: {options}\n")
