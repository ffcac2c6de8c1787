"""Helpfulness Elo against harmlessness Elo (figure 2 of arXiv 2212.08073)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from cai_jax.evaluation.intervals import Interval
from cai_jax.figures import style


@dataclasses.dataclass(frozen=True)
class EloPoint:
    """One model's two Elos."""

    name: str
    helpful: Interval
    harmless: Interval


@dataclasses.dataclass(frozen=True)
class EloPlane:
    """What the figure shows.

    Attributes:
      points: models in training order, such as initial, SL-CAI, RL-CAI.
      anchor: name of the model at 0.
      judged_by: who compared, such as "the run's own preference model".
      seeds: of the runs behind the numbers.
    """

    points: Sequence[EloPoint]
    anchor: str
    judged_by: str
    seeds: Sequence[int]


def draw(data: EloPlane, stem: str | os.PathLike) -> list[Path]:
    """Writes STEM.png, STEM.svg and STEM.csv, and returns their paths."""
    helpful_n = max(p.helpful.n for p in data.points)
    harmless_n = max(p.harmless.n for p in data.points)
    caption = style.caption_of(
        [
            f"Responses compared by {data.judged_by}; Elo by maximum likelihood, only differences "
            f"matter, {data.anchor} at 0.",
            "Bars: 95% bootstrap intervals over prompts.",
            f"n = {helpful_n} helpful, {harmless_n} red-team prompts.",
        ],
        data.seeds,
    )
    figure, box = style.new_figure("Helpfulness against harmlessness", caption, 6.4, 5.2)
    axes = figure.add_axes(box)
    axes.axhline(0, color="#CFCFCF", linewidth=1, zorder=1)
    axes.axvline(0, color="#CFCFCF", linewidth=1, zorder=1)
    axes.plot(
        [p.helpful.value for p in data.points], [p.harmless.value for p in data.points],
        color="#9A9A9A", linewidth=1.5, linestyle=(0, (4, 2)), zorder=2,
    )  # fmt: skip
    for k, point in enumerate(data.points):
        x, y, colour = point.helpful.value, point.harmless.value, style.COLOURS[k]
        axes.errorbar(
            x, y, xerr=style.reach([point.helpful]), yerr=style.reach([point.harmless]),
            fmt="none", ecolor=colour, elinewidth=1.8, capsize=3.5, zorder=3,
        )  # fmt: skip
        axes.plot(
            x, y, color=colour, marker=style.MARKERS[k], markersize=10, linestyle="none",
            markeredgecolor="white", markeredgewidth=1.2, label=point.name, zorder=4 + k,
        )  # fmt: skip
    axes.margins(0.1)
    style.dress(axes, "helpfulness Elo", "harmlessness Elo")
    style.legend(axes)
    rows = [
        [p.name, *(x for e in (p.helpful, p.harmless) for x in (e.value, e.low, e.high, e.n))]
        for p in data.points
    ]
    header = ["model"]
    header += [f"{axis}{end}" for axis in ("helpful", "harmless")
               for end in ("_elo", "_low", "_high", "_n")]  # fmt: skip
    return style.save(figure, stem, header, rows)
