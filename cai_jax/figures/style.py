"""The look shared by every figure, and how one is saved: PNG, SVG, and the numbers as CSV.

Colours are Okabe and Ito's, told apart with any colour vision; each series also has its own marker.
Figures are matplotlib Figure objects without pyplot, so drawing leaves no global state.
"""

from __future__ import annotations

import csv
import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cai_jax import storage
from cai_jax.evaluation.intervals import Interval
from cai_jax.shards import write_atomically

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P")
INK = "#222222"
QUIET = "#6B6B6B"
GRID = "#E6E6E6"
Box = tuple[float, float, float, float]
CAPTION_HEIGHT = 0.19  # inches a line
DOTS_PER_INCH = 160


def new_figure(title: str, caption: str, width: float, height: float) -> tuple[Figure, Box]:
    """A figure with its title and caption, and the box (left, bottom, width, height) for its axes.

    Args:
      caption: what was measured, n and seeds; wrapped below the axes.
      width, height: of the figure in inches, caption not counted.
    """
    lines = textwrap.wrap(caption, int(width * 14.5))
    below = (len(lines) + 0.9) * CAPTION_HEIGHT
    total = height + below
    figure = Figure(figsize=(width, total), facecolor="white")
    figure.text(0.02, 1 - 0.14 / total, title, size=13, weight="bold", color=INK, va="top")
    figure.text(
        0.02, 0.55 * CAPTION_HEIGHT / total, "\n".join(lines),
        size=8.5, color=QUIET, va="bottom", linespacing=1.4,
    )  # fmt: skip
    left, right, top, bottom = 0.85, 0.2, 0.72, below + 0.52  # inches, labels and legend included
    inner = (width - left - right, total - top - bottom)
    return figure, (left / width, bottom / total, inner[0] / width, inner[1] / total)


def dress(axes: Axes, x_label: str, y_label: str) -> None:
    """Labels, quiet spines and a light grid behind the data."""
    axes.set_xlabel(x_label, color=INK, size=10.5, labelpad=6)
    axes.set_ylabel(y_label, color=INK, size=10.5, labelpad=6)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, labelsize=9.5, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")


def legend(axes: Axes) -> None:
    """A frameless legend in one row above the axes."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, frameon=False, fontsize=9.5,
        labelcolor=INK, handletextpad=0.5, columnspacing=1.6, borderpad=0.2,
    )  # fmt: skip


def save(
    figure: Figure, stem: str | os.PathLike, header: Sequence[str], rows: Sequence[Sequence]
) -> list[Path]:
    """Writes STEM.png, STEM.svg and STEM.csv, each whole or not at all; the same data, same bytes.

    Raises:
      OSError: a file cannot be written.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([header, *rows])
    contents = {".csv": table.getvalue().encode()}
    with matplotlib.rc_context({"svg.hashsalt": "cai_jax", "svg.fonttype": "path"}):
        for ending, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending[1:], dpi=DOTS_PER_INCH, metadata=metadata)
            contents[ending] = buffer.getvalue()
    paths = [storage.path(f"{stem}{ending}") for ending in contents]
    for path, data in zip(paths, contents.values(), strict=True):
        write_atomically(path, data)
    return paths


def reach(points: Sequence[Interval]) -> list[list[float]]:
    """What errorbar takes: how far each interval reaches below and above its value.

    A percentile interval need not hold its estimate; its near end is then drawn at the estimate.
    """
    return [
        [max(0.0, point.value - point.low) for point in points],
        [max(0.0, point.high - point.value) for point in points],
    ]


def caption_of(parts: Sequence[str], seeds: Sequence[int]) -> str:
    """Sentences joined, ending with the seeds the numbers rest on."""
    word = "Seed" if len(seeds) == 1 else "Seeds"
    return " ".join([*parts, f"{word}: {', '.join(map(str, seeds))}."])
