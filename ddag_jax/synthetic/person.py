"""Who a person is: build, gait and clothes, with colours for visible and greys for infrared.

What a person keeps from visible to infrared is what people keep in life: build, gait, the cut and
the pattern of the clothes, bags, hair and shoes. Every cloth has an infrared grey that is drawn
independently of its colour.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, UInt8

# How hard people are to recognise.
CONTRAST_VISIBLE = 0.34  # least difference of a pattern's two cloths, of full scale
CONTRAST_INFRARED = 0.34  # above 0.39, some greys have no second grey that differs enough
NEUTRAL_RATE = 0.75  # share of cloths between black and white; the others are coloured
SATURATION = (0.15, 0.50)  # of the coloured ones
FAINT_RATE = 0.02  # share of people whose pattern may have less contrast in infrared

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


@dataclasses.dataclass(frozen=True, eq=False)  # == of arrays is not a bool
class Person:
    """Attributes of one person. Lengths are in body heights, angles in radians."""

    shoulder: float  # half widths
    waist: float
    hip: float
    depth: float  # half depth of the chest
    belly: float  # how far the belly stands out
    leg: float  # height of the hip joint
    thick: float  # thickness of the limbs; 1 is average
    head: float  # size of the head; 1 is average
    stride: float  # amplitude of the legs
    swing: float  # amplitude of the arms
    splay: float  # angle of the arms away from the body
    lean: float  # forward lean of the upper body
    bulk: float  # thickness of the upper garment, 1 is tight
    sleeve: float  # length of the sleeves in halves of an arm: 0, 0.8, 1.4 or 2
    hem: float  # height of the upper garment's lower edge
    flare: float  # half width of that edge
    gap: float  # half width of an open front, in half widths of the torso; 0 is closed
    hood: str  # none, down, up
    sleeve_plain: bool  # the pattern does not continue on the sleeves
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
    visible: UInt8[np.ndarray, "materials 3"]  # RGB
    infrared: UInt8[np.ndarray, " materials"]  # grey levels


def pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """Draw a key with probability proportional to its weight."""
    names = list(weights)
    ends = np.cumsum(list(weights.values()))
    return names[int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))]


def _cloth_colour(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    """Draw an RGB colour of clothes, in [0, 1]: mostly black to white, else muted, often blue.

    So colour, which is absent from infrared, says little about the identity.
    """
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


def _visible_palette(rng: np.random.Generator) -> UInt8[np.ndarray, "materials 3"]:
    """Draw the colours of all materials."""
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


def _infrared_palette(rng: np.random.Generator) -> UInt8[np.ndarray, " materials"]:
    """Draw the infrared greys of all materials, independent of their colours."""
    out = rng.uniform(0.12, 0.9, _MATERIALS)
    out[SKIN] = rng.uniform(0.68, 0.82)
    out[HAIR] = rng.uniform(0.15, 0.6)
    if rng.random() >= FAINT_RATE:
        for one, two in ((TOP, TOP2), (BOTTOM, BOTTOM2), (BAG, BAG2), (TOP, INNER)):
            while abs(out[one] - out[two]) < CONTRAST_INFRARED:
                out[two] = rng.uniform(0.12, 0.9)
    out[DARK] = 0.45 * out[SKIN]
    return (255 * out).astype(np.uint8)


def sample_person(rng: np.random.Generator) -> Person:
    """Draw a person."""

    def normal(mean: float, spread: float) -> float:
        return float(mean * (1 + spread * np.clip(rng.normal(), -2, 2)))

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    stout = float(np.clip(rng.normal(), -1.6, 2.2))
    leg = between(0.46, 0.53)
    outfit = pick(rng, {"trousers": 5, "shorts": 1.6, "skirt": 1.5, "dress": 1.2, "coat": 1.6})
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
    person = Person(
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
        hood=pick(rng, {"none": 7, "down": 2, "up": 0.7}) if sleeve == 2.0 else "none",
        sleeve_plain=bool(rng.random() < 0.5),
        pattern=pick(
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
        bottom_pattern=pick(
            rng, {"plain": 3.5, "stripe": 1.6, "band": 1.3, "checks": 1.0, "upper": 0.8}
        ),
        boots=between(0.1, 0.2) if rng.random() < 0.25 else 0.04,
        hair=pick(rng, {"short": 4, "long": 2.6, "bun": 1.2, "ponytail": 1.4, "bald": 1.0}),
        hat=pick(rng, {"none": 4.5, "cap": 1.2, "beanie": 1.1, "brim": 0.7}),
        scarf=bool(rng.random() < 0.2),
        bag=pick(rng, {"none": 2.2, "backpack": 2.5, "shoulder": 2.2, "hand": 1.8}),
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
def make_person(seed: int, identity: int) -> Person:
    """Return the person with this number, from 1."""
    return sample_person(np.random.default_rng([seed, identity]))
