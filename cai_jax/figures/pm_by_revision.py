"""Preference-model score by number of revisions (figure 5 of arXiv 2212.08073)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cai_jax.evaluation.intervals import Interval
from cai_jax.figures import style


@dataclasses.dataclass(frozen=True)
class PmByRevision:
    """What the figure shows.

    Attributes:
      scores: series name, such as "red-team prompts" -> one mean score for each revision number,
        0 being the initial response.
      scored_by: which preference model, such as "the run's own preference model".
      seeds: of the runs behind the numbers.
    """

    scores: Mapping[str, Sequence[Interval]]
    scored_by: str
    seeds: Sequence[int]


def draw(data: PmByRevision, stem: str | os.PathLike) -> list[Path]:
    """Writes STEM.png, STEM.svg and STEM.csv, and returns their paths."""
    sizes = ", ".join(f"{s[0].n} {name}" for name, s in data.scores.items())
    caption = style.caption_of(
        [
            f"Mean score by {data.scored_by}; revision 0 is the initial response.",
            f"Bars: 95% bootstrap intervals over prompts. n = {sizes}.",
        ],
        data.seeds,
    )
    figure, box = style.new_figure("Preference-model score by revision", caption, 6.4, 4.2)
    axes = figure.add_axes(box)
    last = max(len(series) for series in data.scores.values()) - 1
    spread = 0.05 * max(last, 1) / 3
    rows = []
    for k, (name, series) in enumerate(data.scores.items()):
        shift = spread * (k - (len(data.scores) - 1) / 2)  # keeps bars of two series apart
        values = [point.value for point in series]
        look = {"color": style.COLOURS[k], "linewidth": 2, "marker": style.MARKERS[k]}
        numbers = [number + shift for number in range(len(series))]
        axes.errorbar(
            numbers,
            values,
            yerr=style.reach(series),
            fmt="none",
            capsize=3,
            ecolor=style.COLOURS[k],
        )
        axes.plot(numbers, values, markersize=7, label=name, **look)
        rows += [[name, number, p.value, p.low, p.high, p.n] for number, p in enumerate(series)]
    axes.set_xticks(range(last + 1))
    axes.set_xlim(-0.25, last + 0.25)
    style.dress(axes, "revision", "PM score")
    style.legend(axes)
    return style.save(figure, stem, ["series", "revision", "score", "low", "high", "n"], rows)
