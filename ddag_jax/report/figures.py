"""The report's charts as SVG, drawn with matplotlib.

Text and axes take the colour of the surrounding text, so that a chart is legible in light and dark
mode; the colours of data have a contrast of at least 3 to 1 in both. Lines also differ in their
dash patterns.
"""

import dataclasses
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from PIL import Image

from ddag_jax.evaluation.pairs import BINS, Pairs

_INK = "#010203"  # placeholder, replaced by the text's colour in the SVG
_LINES = ("#3a86c8", "#cc6f1c", "#2a9a6c", "#a566d6", "#d0506e", "#808a94")
_PEOPLE = (*_LINES[:5], "#a8862a", "#5b77e0", "#1f97a5", "#8f7a6a", "#6a9a2a", "#c45fb0", "#808a94")
_STROKES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)))
_STYLE: Any = {
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 10,
    "grid.alpha": 0.18,
    "grid.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "ddag_jax",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_SIZE = (4.4, 3.2)
"""Inches: text of 10 points is legible on a phone, at a width of 360 pixels."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart."""

    name: str
    """File name without suffix."""
    title: str
    alt: str
    """Alternative text: the figures that it shows, not its appearance."""
    svg: str
    """The `<svg>` element."""

    def inline(self) -> str:
        """Return SVG to embed in a page: labelled, with unique identifiers, without namespaces."""
        used = set(re.findall(r"#([\w-]+)", self.svg))
        svg = re.sub(
            r'\sid="([^"]*)"',
            lambda found: f' id="{self.name}-{found[1]}"' if found[1] in used else "",
            self.svg,
        )
        svg = re.sub(r'(href="|url\()#', rf"\1#{self.name}-", svg)
        svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
        svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
        return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(self.alt)}"', 1)

    def standalone(self) -> str:
        """Return SVG for a file, in the viewer's light or dark mode."""
        style = (
            "<style>svg{color:#1b2025;background:#fff}@media(prefers-color-scheme:dark)"
            "{svg{color:#e8ebee;background:#14171a}}</style>"
        )
        title = f"<title>{html.escape(self.title)}</title><desc>{html.escape(self.alt)}</desc>"
        return re.sub(r"(<svg[^>]*>)", lambda found: found[1] + title + style, self.svg, count=1)


def _figure(name: str, title: str, alt: str, canvas: Canvas) -> Figure:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    canvas.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # The page sets the width, and the height follows.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return Figure(name, title, alt, svg)


def _axes(size: tuple[float, float] = _SIZE) -> tuple[Canvas, Axes]:
    canvas = Canvas(size, layout="constrained")
    return canvas, canvas.add_subplot()


def cmc(name: str, title: str, curves: Mapping[str, Float[np.ndarray, " r"]]) -> Figure:
    """Draw CMC curves, given as shares in [0, 1] at ranks 1, 2, ...

    A curve "untrained NAME" is drawn thin, in the colour of the curve NAME.
    """
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _axes()
        trained = [curve for curve in curves if not curve.startswith("untrained ")]
        for label, values in curves.items():
            place = trained.index(label.removeprefix("untrained "))
            floor = label not in trained
            axes.plot(
                np.arange(1, len(values) + 1),
                100 * values,
                color=_LINES[place],
                linestyle=_STROKES[2 * floor + place],
                linewidth=1.2 if floor else 2,
                label=label,
            )
        axes.set(xlabel="rank", ylabel="queries with a hit, %", ylim=(0, 101))
        axes.set_xticks([1, *range(5, len(next(iter(curves.values()))) + 1, 5)])
        axes.legend(loc="lower right")
        ends = [f"{label} {100 * v[0]:.1f} % to {100 * v[-1]:.1f} %" for label, v in curves.items()]
        alt = f"CMC curves, {title}, from the first rank to the last: {'; '.join(ends)}."
        return _figure(name, f"CMC, {title}", alt, canvas)


def similarities(pairs: Pairs) -> Figure:
    """Draw histograms of similarity, of pairs of the same and of different people."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _axes()
        edges = np.linspace(-1, 1, BINS + 1)
        kinds = {"same person": pairs.same, "different people": pairs.different}
        for (label, counts), colour, hatch in zip(
            kinds.items(), (_LINES[2], _LINES[1]), (None, "////"), strict=True
        ):
            share = 100 * counts / counts.sum()
            axes.stairs(share, edges, color=colour, fill=False, linewidth=1.6)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.3, hatch=hatch, label=label)
        shown = np.flatnonzero(pairs.same + pairs.different)
        axes.set_xlim(edges[shown[0]] - 0.02, edges[shown[-1] + 1] + 0.02)
        point = pairs.equal_error
        said = f"equal error {100 * point.rate:.1f} % at {point.threshold:.2f}"
        axes.axvline(point.threshold, color=_INK, linewidth=1.2, linestyle="--", label=said)
        axes.set(xlabel="cosine similarity", ylabel="pairs, %")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9)
        alt = (
            f"Histogram of the similarity of {pairs.same.sum():,} visible-infrared pairs of one"
            f" person and {pairs.different.sum():,} of two people. At a threshold of"
            f" {point.threshold:.3f} both errors are {100 * point.rate:.1f} %."
        )
        return _figure("similarities", "Similarity across the modalities", alt, canvas)


def embedding_map(
    points: Float[np.ndarray, "n 2"],
    identities: Int[np.ndarray, " n"],
    infrared: Bool[np.ndarray, " n"],
    method: str,
) -> Figure:
    """Draw images as points: colour and number are the identity, the marker the modality."""
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        canvas, axes = _axes((5.2, 4.6))
        people = np.unique(identities)
        for place, identity in enumerate(people):
            colour = _PEOPLE[place % len(_PEOPLE)]
            mine = identities == identity
            for modality, marker in ((mine & ~infrared, "o"), (mine & infrared, "^")):
                axes.scatter(
                    points[modality, 0],
                    points[modality, 1],
                    s=22,
                    marker=marker,
                    facecolor=colour if marker == "o" else "none",
                    edgecolor=colour,
                    linewidth=1.1,
                    alpha=0.85,
                )
                if modality.any():
                    axes.annotate(
                        str(identity),
                        np.median(points[modality], axis=0),
                        ha="center",
                        va="center",
                        fontsize=9,
                        fontweight="bold" if marker == "o" else "normal",
                    )
        for marker, label in (("o", "visible"), ("^", "infrared")):
            face = _INK if marker == "o" else "none"
            axes.scatter([], [], marker=marker, facecolor=face, edgecolor=_INK, label=label)
        axes.legend(loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1))
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=True, alpha=0.3)
        alt = (
            f"{method} of {len(points)} images of identities {', '.join(map(str, people))}:"
            f" {int((~infrared).sum())} visible as discs, {int(infrared.sum())} infrared as"
            " triangles, a colour and a number for each identity."
        )
        return _figure("embedding_map", f"Embedding map ({method})", alt, canvas)


def part_map(name: str, title: str, attention: Float[np.ndarray, "p p"]) -> Figure:
    """Draw the p x p map of the attention from part i (row) to part j (column)."""
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        p = len(attention)
        canvas, axes = _axes((4, 3))
        axes.imshow(attention, cmap="viridis", vmin=0, vmax=max(attention.max(), 1e-6))
        if p <= 8:
            middle = attention.max() / 2
            for i, j in np.ndindex(p, p):
                colour = "black" if attention[i, j] > middle else "white"
                axes.text(j, i, f"{attention[i, j]:.2f}", ha="center", va="center", color=colour)
        numbers = [str(part) for part in range(1, p + 1)]
        axes.set_xticks(range(p), numbers)
        axes.set_yticks(range(p), numbers)
        axes.set(xlabel="to part (1: top)", ylabel="from part")
        rows = [
            f"part {i + 1}: " + ", ".join(f"{value:.2f}" for value in row)
            for i, row in enumerate(attention)
        ]
        return _figure(name, title, f"{title}, from each part to each: {'; '.join(rows)}.", canvas)


def part_weights(weights: Float[np.ndarray, " p"]) -> Figure:
    """Draw the learned weight of each part."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _axes((4, 3))
        numbers = np.arange(1, len(weights) + 1)
        axes.barh(numbers, weights, color=_LINES[0])
        axes.axvline(1 / len(weights), color=_INK, linewidth=1.2, linestyle="--")
        for number, weight in zip(numbers.tolist(), weights.tolist(), strict=True):
            axes.text(weight / 2, number, f"{weight:.3f}", ha="center", va="center", color="black")
        axes.set_yticks(numbers.tolist())
        axes.invert_yaxis()
        axes.set(xlabel="weight (dashed: all equal)", ylabel="part (1: top)")
        said = ", ".join(f"part {i} {w:.3f}" for i, w in zip(numbers, weights, strict=True))
        return _figure("part_weights", "Learned part weights", f"Learned weights: {said}.", canvas)


class Example(NamedTuple):
    """A query and its nearest gallery image."""

    query: UInt8[np.ndarray, "h w 3"]
    found: UInt8[np.ndarray, "h w 3"]
    query_activation: Float[np.ndarray, "a b"]
    found_activation: Float[np.ndarray, "a b"]
    stripes: Sequence[tuple[float, float]]
    """Top and bottom of each part, as shares of the height; empty without part attention."""
    weights: Float[np.ndarray, " p"] | None
    """Learned weight of each part."""
    attended: Float[np.ndarray, " p"] | None
    """Mean attention from all parts to each part."""


def example(name: str, title: str, alt: str, shown: Example) -> Figure:
    """Draw a query, its parts with their weights, and the activation of both images."""
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        panels = [
            ("query", _small(shown.query)),
            ("activation", _overlaid(shown.query, shown.query_activation)),
            ("found first", _small(shown.found)),
            ("activation", _overlaid(shown.found, shown.found_activation)),
        ]
        if shown.stripes:
            panels.insert(1, ("parts", _small(shown.query)))
        ratios = [_PARTS_WIDTH if label == "parts" else 1 for label, _ in panels]
        canvas = Canvas((0.76 * sum(ratios), 1.8), layout="constrained")
        for (label, image), axes in zip(
            panels,
            canvas.subplots(1, len(panels), squeeze=False, width_ratios=ratios)[0],
            strict=True,
        ):
            axes.imshow(image, interpolation="none")
            axes.set_title(label, fontsize=9, loc="left")
            axes.set_axis_off()
            if label == "parts":
                _draw_parts(axes, image.shape, shown)
        return _figure(name, title, alt, canvas)


def _draw_parts(axes: Axes, shape: tuple[int, ...], shown: Example) -> None:
    h, w = shape[:2]
    assert shown.attended is not None
    highest = shown.attended.max()
    for part, (start, end) in enumerate(shown.stripes):
        top, bottom = start * h - 0.5, end * h - 0.5
        axes.add_patch(
            matplotlib.patches.Rectangle(
                (-0.5, top),
                w,
                bottom - top,
                facecolor=(1, 0.75, 0.1, 0.55 * float(shown.attended[part] / highest)),
                edgecolor="#ffbf1a",
                linewidth=1,
            )
        )
        weight = "" if shown.weights is None else f"w {shown.weights[part]:.2f}\n"
        axes.text(
            w + 1,
            (top + bottom) / 2,
            f"{weight}a {shown.attended[part]:.2f}",
            va="center",
            fontsize=min(9, 60 / len(shown.stripes)),
            clip_on=False,
        )
    axes.set_xlim(-0.5, w * _PARTS_WIDTH - 0.5)


_PARTS_WIDTH = 1.8  # width of the panel of parts, in widths of an image: has room for numbers
_EXAMPLE_HEIGHT = 144  # maximal height of an image in a figure, in pixels


def _small(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "a b 3"]:
    h, w, _ = image.shape
    if h <= _EXAMPLE_HEIGHT:
        return image
    size = (round(w * _EXAMPLE_HEIGHT / h), _EXAMPLE_HEIGHT)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _overlaid(
    image: UInt8[np.ndarray, "h w 3"], activation: Float[np.ndarray, "a b"]
) -> UInt8[np.ndarray, "c d 3"]:
    """Overlay an image in grey with a heat map of its activation."""
    small = _small(image)
    h, w, _ = small.shape
    heat = np.asarray(
        Image.fromarray(activation.astype(np.float32)).resize((w, h), Image.Resampling.BICUBIC)
    ).clip(0, 1)
    grey = np.asarray(Image.fromarray(small).convert("L"))[..., None] / 255
    colour = matplotlib.colormaps["inferno"](heat)[..., :3]
    share = 0.25 + 0.5 * heat[..., None]
    return (255 * ((1 - share) * grey + share * colour)).astype(np.uint8)


def graph_map(
    attention: Float[np.ndarray, "k k"], identities: Sequence[int], images_per_modality: int
) -> Figure:
    """Draw a batch's graph attention, sorted by identity, then visible before infrared."""
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        canvas, axes = _axes((5.2, 4.7))
        shown = np.ma.masked_equal(attention, 0)
        drawn = axes.imshow(shown, cmap="viridis", interpolation="none")
        bar = canvas.colorbar(drawn, shrink=0.8)
        bar.set_label("attention")
        bar.outline.set_visible(False)
        each = 2 * images_per_modality
        for place in range(len(identities) + 1):
            for line in (axes.axhline, axes.axvline):
                line(place * each - 0.5, color=_INK, linewidth=0.8, alpha=0.5)
        for place in range(len(identities)):
            for line in (axes.axhline, axes.axvline):
                line(
                    place * each + images_per_modality - 0.5,
                    color=_INK,
                    linewidth=0.6,
                    alpha=0.35,
                    linestyle=":",
                )
        middles = np.arange(len(identities)) * each + each / 2 - 0.5
        axes.set_xticks(middles, [str(identity) for identity in identities])
        axes.set_yticks(middles, [str(identity) for identity in identities])
        axes.set(xlabel="to images of identity", ylabel="from images of identity")
        k = len(attention)
        modality = (np.arange(k) // images_per_modality) % 2
        across = attention[modality[:, None] != modality].sum() / k
        alt = (
            f"Graph attention of a batch of {len(identities)} identities with {images_per_modality}"
            f" visible and {images_per_modality} infrared images each. Images attend to their own"
            f" identity only; {100 * across:.0f} % of the attention goes to the other modality."
        )
        return _figure("graph_attention", "Graph attention of one batch", alt, canvas)


def curves(
    name: str,
    title: str,
    ylabel: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    logarithmic: bool = False,
) -> Figure:
    """Draw values over epochs: `series` maps a label to (epochs, values)."""
    with matplotlib.rc_context(_STYLE):
        canvas, axes = _axes()
        for place, (label, (epochs, values)) in enumerate(series.items()):
            axes.plot(
                epochs,
                values,
                color=_LINES[place % len(_LINES)],
                linestyle=_STROKES[place % len(_STROKES)],
                marker="o" if len(values) < 40 else None,
                markersize=3.5,
                label=label,
            )
        axes.set(xlabel="epochs", ylabel=ylabel)
        if logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        if len(series) > 1:
            axes.legend(fontsize=9)
        said = [
            f"{label} from {values[0]:.4g} to {values[-1]:.4g}"
            for label, (_, values) in series.items()
        ]
        return _figure(name, title, f"{title} over the epochs: {'; '.join(said)}.", canvas)
