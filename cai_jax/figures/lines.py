"""Panels of lines with intervals, the paper's values faint beside them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cai_jax.evaluation.intervals import Interval
from cai_jax.figures import style

PANEL_WIDTH, PANEL_HEIGHT, LEGEND_WIDTH, ROW_GAP = 4.4, 4.4, 3.0, 0.9  # inches


@dataclasses.dataclass(frozen=True)
class Line:
    """Ours: an estimate with its interval at each x."""

    name: str
    x: Sequence[float]
    y: Sequence[Interval]


@dataclasses.dataclass(frozen=True)
class PaperLine:
    """The paper's values, without intervals."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
      scale: of x: "linear", "log", or "symlog" where x may be 0.
      level: height of a dashed line, such as chance; None for none.
      diagonal: whether the dashed line y = x is drawn.
      ideal: points (x, y) of a dashed curve, what a perfect model would give.
    """

    title: str
    x_label: str
    y_label: str
    ours: Sequence[Line]
    paper: Sequence[PaperLine] = ()
    scale: str = "linear"
    level: float | None = None
    diagonal: bool = False
    ideal: Sequence[tuple[float, float]] = ()


def draw(
    title: str,
    caption: str,
    panels: Sequence[Panel],
    stem: str | os.PathLike,
    columns: int | None = None,
) -> list[Path]:
    """Writes STEM.png, STEM.svg and STEM.csv, and returns their paths.

    A line has one colour and marker in all panels; the paper's line of the same name has its
    colour, faint.

    Args:
      columns: panels side by side; None for all of them.
    """
    columns = columns or len(panels)
    rows_of_panels = -(-len(panels) // columns)
    names = list(dict.fromkeys(line.name for p in panels for line in (*p.ours, *p.paper)))
    look = {name: (_of(style.COLOURS, k), _of(style.MARKERS, k)) for k, name in enumerate(names)}
    width = PANEL_WIDTH * columns + LEGEND_WIDTH
    figure, (left, bottom, inner, height) = style.new_figure(
        title, caption, width, PANEL_HEIGHT * rows_of_panels
    )
    each = (inner - LEGEND_WIDTH / width) / columns
    below = ROW_GAP / figure.get_figheight()
    tall = (height - below * (rows_of_panels - 1)) / rows_of_panels
    rows = []
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        gap = 0.75 / width if column else 0
        base = bottom + (rows_of_panels - 1 - row) * (tall + below)
        axes = figure.add_axes((left + column * each + gap, base, each - gap, tall * 0.97))
        if panel.title:
            axes.set_title(panel.title, size=10.5, color=style.INK, loc="left")
        if panel.scale != "linear":
            axes.set_xscale(panel.scale)
        if panel.level is not None:
            axes.axhline(panel.level, color="#9A9A9A", linewidth=1, linestyle=(0, (4, 3)))
        if panel.diagonal:
            axes.plot([0, 1], [0, 1], color="#9A9A9A", linewidth=1, linestyle=(0, (4, 3)))
        if panel.ideal:
            axes.plot(*zip(*panel.ideal, strict=True), color="#9A9A9A", linewidth=1,
                      linestyle=(0, (4, 3)))  # fmt: skip
        for line in panel.paper:
            colour, marker = look[line.name]
            axes.plot(
                line.x, line.y, color=colour, alpha=0.3, linewidth=1.2, marker=marker,
                markersize=4, linestyle=(0, (2, 1.5)), zorder=1,
            )  # fmt: skip
            rows += [[panel.title, line.name, "paper", x, y, "", "", ""]
                     for x, y in zip(line.x, line.y, strict=True)]  # fmt: skip
        for line in panel.ours:
            colour, marker = look[line.name]
            values = [point.value for point in line.y]
            axes.errorbar(
                line.x, values, yerr=style.reach(line.y), fmt="none", ecolor=colour, capsize=3,
                zorder=3,
            )  # fmt: skip
            axes.plot(
                line.x, values, color=colour, linewidth=2, marker=marker, markersize=7, zorder=4
            )
            rows += [[panel.title, line.name, "ours", x, p.value, p.low, p.high, p.n]
                     for x, p in zip(line.x, line.y, strict=True)]  # fmt: skip
        if panel.scale == "linear" and all(
            isinstance(x, int) for line in panel.ours for x in line.x
        ):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        style.dress(axes, panel.x_label, panel.y_label)
    figure.legend(
        handles=_handles(panels, look), loc="upper left",
        bbox_to_anchor=(1 - (LEGEND_WIDTH - 0.1) / width, bottom + height), frameon=False,
        fontsize=8.5, labelcolor=style.INK,
    )  # fmt: skip
    header = ["panel", "series", "source", "x", "y", "low", "high", "n"]
    return style.save(figure, stem, header, rows)


def _handles(panels: Sequence[Panel], look: dict[str, tuple[str, str]]) -> list[Line2D]:
    ours = dict.fromkeys(line.name for panel in panels for line in panel.ours)
    paper = dict.fromkeys(line.name for panel in panels for line in panel.paper)
    handles = [
        Line2D([], [], color=look[n][0], marker=look[n][1], linewidth=2, label=_short(n))
        for n in ours
    ]
    return handles + [
        Line2D(
            [], [], color=look[n][0], marker=look[n][1], markersize=4, linewidth=1.2, alpha=0.3,
            linestyle=(0, (2, 1.5)), label=_short(f"paper: {n}"),
        )
        for n in paper
    ]  # fmt: skip


def _short(name: str, longest: int = 40) -> str:
    return name if len(name) <= longest else name[: longest - 3] + "..."


def _of(values: Sequence[str], number: int) -> str:
    return values[number % len(values)]
