"""Score and KL from the start by PPO step."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from cai_jax.evaluation.intervals import Interval
from cai_jax.figures import style


@dataclasses.dataclass(frozen=True)
class PpoCurve:
    """What the figure shows; all lists have one entry for each PPO update.

    Attributes:
      steps: update number, from 1.
      scores: mean score of the update's responses, of the preference model or a rating.
      rewards: mean total reward, which is the score, normalised, less all penalties.
      kls: mean KL from the start in nats, summed over the response.
      seeds: of the runs behind the numbers.
    """

    steps: Sequence[int]
    scores: Sequence[Interval]
    rewards: Sequence[Interval]
    kls: Sequence[Interval]
    seeds: Sequence[int]


def draw(data: PpoCurve, stem: str | os.PathLike) -> list[Path]:
    """Writes STEM.png, STEM.svg and STEM.csv, and returns their paths."""
    responses = sorted({point.n for point in data.scores})
    caption = style.caption_of(
        [
            "Above: score and total reward (score, normalised where asked, less all penalties).",
            "Below: KL from the start of PPO, nats summed over a response.",
            "Lines: means over the update's responses; bands: 95% intervals of the means.",
            f"n = {'-'.join(str(n) for n in responses[:: max(1, len(responses) - 1)])} responses "
            f"an update, {len(data.steps)} updates.",
        ],
        data.seeds,
    )
    figure, (left, bottom, width, height) = style.new_figure(
        "PPO: score and KL by update", caption, 6.4, 4.8
    )
    lower = figure.add_axes((left, bottom, width, 0.44 * height))
    upper = figure.add_axes((left, bottom + 0.54 * height, width, 0.46 * height), sharex=lower)
    for axes, series, k, name in (
        (upper, data.scores, 0, "score"),
        (upper, data.rewards, 1, "reward"),
        (lower, data.kls, 2, "KL"),
    ):
        colour = style.COLOURS[k]
        values, lows, highs = zip(*((p.value, p.low, p.high) for p in series), strict=True)
        axes.fill_between(data.steps, lows, highs, color=colour, alpha=0.15, linewidth=0)
        marks = {"marker": style.MARKERS[k], "markersize": 4.5} if len(data.steps) <= 40 else {}
        axes.plot(data.steps, values, color=colour, linewidth=2, label=name, **marks)
    style.dress(upper, "", "score, reward")
    style.dress(lower, "PPO update", "KL (nats)")
    upper.tick_params(labelbottom=False)
    lower.set_ylim(bottom=min(0.0, *(p.low for p in data.kls)))
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.legend(upper)
    rows = [
        [step, *(x for p in points for x in (p.value, p.low, p.high)), points[0].n]
        for step, *points in zip(data.steps, data.scores, data.rewards, data.kls, strict=True)
    ]
    header = ["step"]
    header += [
        f"{name}{end}" for name in ("score", "reward", "kl") for end in ("", "_low", "_high")
    ]
    return style.save(figure, stem, [*header, "n"], rows)
