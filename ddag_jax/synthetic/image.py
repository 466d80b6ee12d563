"""Render an image of a built-in person as one of the cameras takes it."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageFilter

from ddag_jax.errors import UserError
from ddag_jax.synthetic.camera import CAMERAS, INFRARED, SCENE, Camera, make_camera
from ddag_jax.synthetic.figure import View, draw
from ddag_jax.synthetic.person import Person, make_person, pick, sample_person

# How much the images of one person differ.
OCCLUDER_RATE = 0.06  # share of images with a pole, a bin or another person in front
CROP_SHIFT = 0.02  # standard deviation of the crop's shift, in crop heights
FILL = (0.86, 0.95)  # body height in crop heights
SIZE_SPREAD = 0.06  # relative spread of the crop's height and of its shape
BLUR_SPREAD = 0.25  # largest blur beyond the camera's own, in pixels at height 144
FOLDS = 0.07  # standard deviation of the folds' brightness in clothes
LIGHT_SPREAD = 0.10  # standard deviation of an image's log brightness
SHADOW_RATE = 0.15  # share of outdoor visible images with a shadow edge across them
VIEW_SPREAD = 12.0  # standard deviation of the angle around front, back or side, in degrees
VIEW_WEIGHTS = (0.72, 0.20, 0.08)  # share of front, back and side views

ASPECT = 0.44  # width of a crop in crop heights
_BASE_HEIGHT = 144  # image height, in pixels, that blur is relative to


@dataclasses.dataclass(frozen=True)
class People:
    """A set of built-in people. Identities are numbered from 1: training, validation, test.

    Raises:
        UserError: a number is out of its range.
    """

    train_identities: int = 700  # at least 1, or 2 with noise
    val_identities: int = 24  # at least 1
    test_identities: int = 32  # at least 1
    images_per_camera: int = 3  # images of a person in each of the six cameras
    height: int = 144  # typical height of an image in pixels; images differ by up to 6 %
    noise: float = 0.0  # share of training images with an annotation fault, in [0, 1]
    seed: int = 0  # determines people, scenes and images

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
        """Number of identities in all three splits."""
        return self.train_identities + self.val_identities + self.test_identities

    def split(self, name: str) -> range:
        """Return the identities of the split "train", "val" or "test"."""
        ends = np.cumsum([1, self.train_identities, self.val_identities, self.test_identities])
        place = ("train", "val", "test").index(name)
        return range(int(ends[place]), int(ends[place + 1]))


def fault(options: People, identity: int, camera: int, index: int) -> str | None:
    """Return the annotation fault of an image, or None.

    Only training images have faults, a share of `options.noise`: "crop" is cut off or badly
    placed, "other" shows another training identity.
    """
    if options.noise == 0 or identity not in options.split("train"):
        return None
    rng = np.random.default_rng([options.seed, identity, camera, index])
    chance = rng.random()
    if chance >= options.noise:
        return None
    return "crop" if chance < options.noise / 2 else "other"


def _sample_view(rng: np.random.Generator, camera: Camera, wide: float) -> View:
    """Draw a view at random; `wide` is the crop's width in crop heights."""
    front, back, side = VIEW_WEIGHTS
    facing = pick(rng, {"front": front * camera.front, "back": back, "side": side})
    sides = float(rng.choice([-90.0, 90.0]))
    angle = {"front": 0.0, "back": 180.0, "side": sides}[facing] + rng.normal(0, VIEW_SPREAD)
    fill = float(rng.uniform(*FILL))
    return View(
        angle=math.radians(angle),
        phase=float(rng.uniform(0, 2 * math.pi)),
        pace=float(rng.uniform(0.6, 1.1)) if rng.random() < 0.85 else 0.1,
        arms=pick(rng, {"swing": 8, "phone": 1, "pockets": 1}),
        fill=fill,
        x=wide / 2 + float(np.clip(rng.normal(0, CROP_SHIFT), -0.08, 0.08)),
        y=0.5 + fill / 2 + float(np.clip(rng.normal(0, CROP_SHIFT / 2), -0.04, 0.04)),
        tilt=camera.tilt,
        light=camera.light,
    )


def _misplace(rng: np.random.Generator, view: View, wide: float) -> View:
    """Return the view of a crop that is cut off or badly placed."""
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


def _person_layer(
    rng: np.random.Generator,
    person: Person,
    view: View,
    camera: Camera,
    infrared: bool,
    size: tuple[int, int],
) -> tuple[Float32[np.ndarray, "h w c"], Float32[np.ndarray, "h w 1"]]:
    """Draw a person without background.

    Args:
        rng: random numbers of the folds in the clothes.
        person: whom to draw.
        view: pose and place.
        camera: which takes the image.
        infrared: one channel in place of three.
        size: width and height in pixels.

    Returns:
        Grey levels, premultiplied by the opacity, and the opacity.
    """
    width, height = size
    labels, shading = draw(person, view, 2 * width, 2 * height)
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


def _occlude(
    rng: np.random.Generator, image: Float32[np.ndarray, "h w c"], camera: Camera, infrared: bool
) -> Float32[np.ndarray, "h w c"]:
    """Return the image with a pole, a bin or another person in front."""
    tall, wide = image.shape[:2]
    kind = rng.integers(3)
    if kind == 2:
        view = _sample_view(rng, camera, wide / tall)
        shift = float(rng.choice([-1, 1]) * rng.uniform(0.75, 1.0)) * wide / tall / 2
        view = dataclasses.replace(view, x=wide / tall / 2 + shift, fill=1.05 * view.fill)
        layer, opaque = _person_layer(rng, sample_person(rng), view, camera, infrared, (wide, tall))
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


def render(options: People, identity: int, camera: int, index: int) -> UInt8[np.ndarray, "h w 3"]:
    """Render one image of a person.

    Args:
        options: the set of people.
        identity: from 1 to `options.identities`.
        camera: from 1 to 6; 3 and 6 are infrared.
        index: number of the image, from 1; may exceed `options.images_per_camera`.

    Returns:
        RGB; about `options.height` high and 0.44 times as wide. In infrared the three channels are
        equal.

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
    rng.random()  # the number that decides the fault
    shown = identity
    if wrong == "other":
        shown = int(rng.integers(1, options.train_identities))
        shown += shown >= identity
    person = make_person(options.seed, shown)
    return render_person(options, person, camera, rng, misplaced=wrong == "crop")


def render_person(
    options: People, person: Person, number: int, rng: np.random.Generator, *, misplaced: bool
) -> UInt8[np.ndarray, "h w 3"]:
    """Render a person as camera `number` takes it; `misplaced`: cut off or badly placed."""
    camera = make_camera(options.seed, number)
    infrared = number in INFRARED
    height = round(options.height * (1 + SIZE_SPREAD * rng.uniform(-1, 1)))
    width = round(ASPECT * height * (1 + SIZE_SPREAD * rng.uniform(-1, 1)))
    wide = width / height
    view = _sample_view(rng, camera, wide)
    if misplaced:
        view = _misplace(rng, view, wide)

    # The background is independent of the person.
    zoom = SCENE[1] * rng.uniform(0.72, 1.0)
    left = rng.uniform(0, SCENE[0] - zoom * wide)
    top = rng.uniform(0, SCENE[1] - zoom)
    place = (left, top, left + zoom * wide, top + zoom)
    crop = camera.scene.resize((width, height), Image.Resampling.BILINEAR, box=place)
    image: Float[np.ndarray, "h w c"] = np.asarray(crop, np.float32).reshape(height, width, -1)

    x = (np.arange(width, dtype=np.float32) / height)[None, :]
    y = (np.arange(height, dtype=np.float32) / height)[:, None]
    # The shadow on the ground, below the feet and away from the light.
    reach = 0.07 * camera.light
    spot = ((x - view.x + reach) / (0.11 + abs(reach))) ** 2 + ((y - view.y + 0.01) / 0.028) ** 2
    image = image * (1 - camera.shadow * np.exp(-spot))[..., None]
    layer, opaque = _person_layer(rng, person, view, camera, infrared, (width, height))
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
