"""The six cameras of the built-in people: the scene, light and sensor of each.

Cameras 1, 2, 4 and 5 are visible, 3 and 6 near infrared; 1, 2 and 3 indoors, 4, 5 and 6 outdoors.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw, ImageFilter

VISIBLE = (1, 2, 4, 5)
INFRARED = (3, 6)
CAMERAS = (1, 2, 3, 4, 5, 6)

NOISE_VISIBLE = 2.0  # typical sensor noise, in grey levels of 255
NOISE_INFRARED = 3.0

SCENE = (720, 260)  # width and height of a scene in pixels
_FLOOR = 105  # upper edge of the floor in a scene, in pixels


@dataclasses.dataclass(frozen=True, eq=False)  # == of arrays is not a bool
class Camera:
    """One camera and the scene that it sees."""

    scene: Image.Image  # RGB, or L in infrared; wider than any crop
    gain: Float32[np.ndarray, "3"]  # brightness of each channel: exposure and colour cast
    gamma: float
    light: float  # direction of the light: -1 left, 1 right
    relief: float  # how strongly limbs are shaded; small in flat light
    shadow: float  # darkness of the shadow on the ground
    blur: float  # radius in pixels at height 144
    noise: float  # grey levels of 255
    tilt: float  # downward tilt: how much lower a nearer point appears, per distance
    vignette: float
    front: float  # factor on the share of front views
    quality: int  # JPEG quality


def _scene(rng: np.random.Generator, camera: int) -> Image.Image:
    """Draw a camera's scene, RGB of SCENE pixels: a floor and what stands behind it."""
    width, height = SCENE
    image = Image.new("RGB", SCENE)
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
    if camera in (1, 2, 6):  # tiles in perspective
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
def make_camera(seed: int, camera: int) -> Camera:
    """Return the camera with this number, from 1 to 6."""
    # No person has number 0, so a camera shares its random numbers with no image.
    rng = np.random.default_rng([seed, 0, camera])
    scene = _scene(rng, camera)
    infrared = camera in INFRARED
    if infrared:
        # The brightness of surfaces in near infrared differs from that in visible light.
        weights = rng.dirichlet([2.0, 2.0, 2.0])
        grey = np.asarray(scene, np.float32) @ weights.astype(np.float32)
        scene = Image.fromarray((0.75 * grey + 10).astype(np.uint8))
    indoor = camera <= 3
    cast = np.ones(3) if infrared else rng.uniform(0.9, 1.08, 3)
    bright = {1: 0.85, 2: 1.0, 3: 0.95, 4: 1.1, 5: 0.95, 6: 0.85}[camera]
    return Camera(
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
