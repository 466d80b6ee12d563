"""Draw a person as a map of materials and a map of shading.

A body is a few joints in space, turned to the view. Body coordinates are (left of the person,
forward, up) in body heights. Materials become colours or greys only later, in `image.py`, so that
infrared never sees a colour.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageDraw, ImageFilter

from ddag_jax.synthetic.person import (
    BAG,
    BAG2,
    BOTTOM,
    BOTTOM2,
    DARK,
    HAIR,
    HAT,
    INNER,
    LEG,
    SCARF,
    SHOE,
    SKIN,
    SLEEVE,
    TOP,
    TOP2,
    Person,
)

_NEUTRAL = 200.0  # value of the shade map that leaves a material's brightness unchanged
_EDGE, _FLANK, _LIT = 128, 178, 214  # shade at a limb's edge, towards its middle, in its middle
_SHOULDER = 0.815  # height of the shoulders of a standing person, in body heights

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class View:
    """Pose and place of a person in one image. Lengths are in crop heights, angles in radians."""

    angle: float  # 0 faces the camera, pi / 2 walks to the right of the picture
    phase: float  # of the walk
    pace: float  # amplitude of the walk relative to the person's own
    arms: str  # swing, phone, pockets
    fill: float  # body height
    x: float  # of the body's axis, from the left
    y: float  # of the ground, from the top
    tilt: float  # see Camera.tilt
    light: float  # see Camera.light


class _Canvas:
    """Label and shade maps, and the projection of body coordinates to their pixels."""

    def __init__(self, width: int, height: int, view: View) -> None:
        self.labels = Image.new("L", (width, height))
        self.shades = Image.new("L", (width, height), _EDGE)
        self._label = ImageDraw.Draw(self.labels)
        self._shade = ImageDraw.Draw(self.shades)
        self.scale = view.fill * height
        self.sin, self.cos = math.sin(view.angle), math.cos(view.angle)
        self._x, self._y = view.x * height, view.y * height
        self._tilt, self._light = view.tilt, view.light

    def at(self, left: float, forward: float, up: float) -> Point:
        """Return the pixel of a point in body coordinates."""
        across = left * self.cos + forward * self.sin
        near = forward * self.cos - left * self.sin
        return (
            self._x + self.scale * across,
            self._y - self.scale * (up - self._tilt * near),
        )

    def near(self, left: float, forward: float) -> float:
        """Return how far a point is from the body's axis towards the camera."""
        return forward * self.cos - left * self.sin

    def limb(
        self, points: Sequence[Point], radii: Sequence[float], label: int, cut: int = 0
    ) -> None:
        """Draw a round bar through pixels.

        Args:
            points: pixels that it connects.
            radii: at these points, in body heights.
            label: material.
            cut: number of straight ends: 0, 1 (the last) or 2; the others are round.
        """
        sizes = [radius * self.scale for radius in radii]
        # Each shade is drawn over the whole length, so that joints do not show.
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
        """Draw an ellipse around a pixel; the half axes are in body heights."""
        x, y = centre
        a, b = across * self.scale, up * self.scale
        self._label.ellipse((x - a, y - b, x + a, y + b), fill=label)
        for share, shade in ((1.0, _EDGE + 20), (0.78, _FLANK + 10), (0.5, _LIT)):
            u = x + 0.45 * (1 - share) * self._light * a
            self._shade.ellipse(
                (u - a * share, y - b * share, u + a * share, y + b * share), fill=shade
            )

    def column(self, rows: Sequence[tuple[float, float, float]], label: int) -> None:
        """Draw an upright body from rows of (x, y, half width) in pixels, top first."""
        for share, shade in ((1.0, _EDGE), (0.8, _FLANK), (0.5, _LIT)):
            shift = 0.45 * (1 - share) * self._light
            outline = [(x + w * (shift - share), y) for x, y, w in rows]
            outline += [(x + w * (shift + share), y) for x, y, w in reversed(rows)]
            if share == 1.0:
                self._label.polygon(outline, fill=label)
            self._shade.polygon(outline, fill=shade)

    def box(self, centre: Point, across: float, up: float, label: int) -> None:
        """Draw a box with round corners around a pixel; the half sides are in body heights."""
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
    """A person's joints in body coordinates; of a pair, the left one first."""

    hips: list[tuple[float, float, float]]
    knees: list[tuple[float, float, float]]
    ankles: list[tuple[float, float, float]]
    shoulders: list[tuple[float, float, float]]
    elbows: list[tuple[float, float, float]]
    hands: list[tuple[float, float, float]]
    head: tuple[float, float, float]
    drop: float  # by how much the step lowers the body


def _joints(person: Person, view: View) -> _Joints:
    """Return the joints in the view's phase of the walk."""
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
    canvas: _Canvas, person: Person, drop: float, points: Sequence[tuple[float, float, float]]
) -> list[tuple[float, float, float]]:
    """Convert (height, half width, half depth), top first, to the rows of `_Canvas.column`."""
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
    """Return the point at a share of the way from `one` to `two`."""
    return one[0] + share * (two[0] - one[0]), one[1] + share * (two[1] - one[1])


def _draw_leg(canvas: _Canvas, person: Person, joints: _Joints, side: int) -> None:
    """Draw a leg with its trouser leg and its shoe."""
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
    # Wide trousers cover boots.
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
        # The stripe is on the outer side of the leg, hidden in a view from the inner side.
        outward = 1.0 if side == 0 else -1.0
        if canvas.near(outward, 0.0) > -0.45:
            shift = outward * canvas.cos * 0.034 * thick * canvas.scale

            def moved(point: Point) -> Point:
                return point[0] + shift, point[1]

            ends = [knee, _along(ankle, knee, 0.1)] if trousers else [end]
            line = [moved(point) for point in (hip, *ends)]
            canvas.limb(line, [0.013] * len(line), BOTTOM2)


def _draw_trouser_leg(
    canvas: _Canvas, person: Person, hip: Point, knee: Point, ankle: Point
) -> None:
    """Draw a trouser leg with its pattern."""
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


def _draw_arm(canvas: _Canvas, person: Person, joints: _Joints, side: int) -> None:
    """Draw an arm with its sleeve, its hand and a bag in the hand."""
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


def _draw_hair_down(canvas: _Canvas, person: Person, joints: _Joints, front: bool) -> None:
    """Draw long hair or a ponytail below the head, in front of or behind the body."""
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


def _draw_head(canvas: _Canvas, person: Person, joints: _Joints) -> None:
    """Draw the neck, the head, the hair on it and hats."""
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


def _draw_bag(canvas: _Canvas, person: Person, joints: _Joints, front: bool) -> None:
    """Draw a backpack or a shoulder bag, in front of or behind the body."""
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


def _pattern(
    person: Person,
    phi: Float32[np.ndarray, "h w"],
    side: Float32[np.ndarray, "h w"],
    up: Float32[np.ndarray, "h 1"],
) -> Bool[np.ndarray, "h w"]:
    """Return where the second cloth of the upper garment is.

    Args:
        person: whose pattern.
        phi: angle around the body from its front, in radians.
        side: place from the body's right (-1) to its left (1).
        up: height in body heights.
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
    labels: UInt8[np.ndarray, "h w"],
    person: Person,
    view: View,
    rows: Sequence[tuple[float, float, float]],
    heights: Sequence[float],
) -> None:
    """Add patterns, an open front and straps to a label map, in place.

    Args:
        labels: map to change.
        person: whose clothes.
        view: in which the map was drawn.
        rows: of the torso, as `_Canvas.column` takes them.
        heights: of these rows, in body heights.
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
        # The strap runs from the other shoulder to the bag, in a plane through the body.
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


def draw(
    person: Person, view: View, width: int, height: int
) -> tuple[UInt8[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    """Draw a person.

    Args:
        person: whom to draw.
        view: pose and place.
        width: of the maps in pixels.
        height: of the maps in pixels.

    Returns:
        The material of each pixel, and the factor on that material's brightness.
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
