"""The label report: how right, how calibrated and how biased a feedback model's labels are.

Figure 9 of arXiv 2212.08073 and what it leaves out: which labels change when the order does, how
far they follow length, and which principles decide them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cai_jax.evaluation import calibration
from cai_jax.evaluation.calibration import ReliabilityBin
from cai_jax.evaluation.intervals import Interval, bootstrap, bootstrap_mean
from cai_jax.labels import Label, Recipe, by_principle
from cai_jax.records import Comparison


@dataclasses.dataclass(frozen=True)
class Labelled:
    """One labelled pair.

    Attributes:
      prob: the label, response_a's probability of being the better one.
      first, swapped: the same where it was shown as (A) and as (B); swapped may be None.
      principles: the probability under each principle that was asked, before target and clamp.
      longer: words of response_a less words of response_b.
      better: whether response_a is the better one; None where nobody knows.
    """

    prob: float
    first: float
    swapped: float | None
    principles: Mapping[str, float]
    longer: int
    better: bool | None


@dataclasses.dataclass(frozen=True)
class PrincipleReport:
    """What one principle has to do with the labels.

    Attributes:
      id: the principle's.
      pairs: how many were asked under it.
      accuracy: of its own choices, where the better response is known.
      agreement: share of pairs where it chooses as the mean of the other principles does; a tie
        counts half. None where no pair was asked under others.
      influence: how far the mean over principles moves when this one is left out, on average.
    """

    id: str
    pairs: int
    accuracy: Interval | None
    agreement: Interval | None
    influence: Interval | None


@dataclasses.dataclass(frozen=True)
class LabelReport:
    """All that is reported of one set of labels.

    Attributes:
      pairs: how many.
      accuracy, brier, calibration_error, reliability: against the known better responses; None and
        empty where none is known.
      flip_rate, says_a: where both orders were asked: how often swapping them changes the choice,
        and how often the choice is (A).
      entropy: of the labels, in bits.
      length_bias: rank correlation of the label with how much longer response_a is; None where all
        labels or all lengths are the same.
      length_of_better: the same correlation of the known better responses; a bias beyond it is the
        labeler's own.
      principles: one report each, in order of their first pair.
    """

    pairs: int
    accuracy: Interval | None
    brier: Interval | None
    calibration_error: Interval | None
    reliability: tuple[ReliabilityBin, ...]
    flip_rate: Interval | None
    says_a: Interval | None
    entropy: Interval
    length_bias: Interval | None
    length_of_better: Interval | None
    principles: tuple[PrincipleReport, ...]


def labelled(
    recipe: Recipe,
    made: Label,
    ids: Sequence[str],
    responses: tuple[str, str],
    better: bool | None = None,
) -> Labelled:
    """A label as the report reads it; `ids` are the constitution's comparison principles."""
    words = [len(text.split()) for text in responses]
    return Labelled(
        made.prob_a,
        made.first_prob_a,
        made.swapped_prob_a,
        by_principle(recipe, made, ids),
        words[0] - words[1],
        better,
    )


def label_report(rows: Sequence[Labelled], seed: int) -> LabelReport:
    """Everything about the labels, with 95% intervals that resample pairs.

    Raises:
      ValueError: there are no labels.
    """
    if not rows:
        raise ValueError("there are no labels to report on.")
    known = [row for row in rows if row.better is not None]
    prob, better = [row.prob for row in known], [row.better for row in known]
    both = [row for row in rows if row.swapped is not None]
    first, swapped = [row.first for row in both], [row.swapped for row in both]
    longer = [row.longer for row in rows]
    return LabelReport(
        pairs=len(rows),
        accuracy=calibration.label_accuracy(prob, better) if known else None,
        brier=calibration.brier_score(prob, better, seed) if known else None,
        calibration_error=(
            calibration.expected_calibration_error(prob, better, seed) if known else None
        ),
        reliability=tuple(calibration.reliability(prob, better)) if known else (),
        flip_rate=calibration.swap_flip_rate(first, swapped) if both else None,
        says_a=calibration.position_bias(first, swapped) if both else None,
        entropy=calibration.label_entropy([row.prob for row in rows], seed),
        length_bias=rank_correlation([row.prob for row in rows], longer, seed),
        length_of_better=(
            rank_correlation(better, [row.longer for row in known], seed) if known else None
        ),
        principles=tuple(_principles(rows, seed)),
    )


def of_comparisons(
    recipe: Recipe, made: Sequence[tuple[Comparison, Label]], ids: Sequence[str], seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report on a run's own comparisons and the summary of their stage, as plain JSON types."""
    rows = [labelled(recipe, m, ids, (r.response_a, r.response_b)) for r, m in made]
    report = dataclasses.asdict(label_report(rows, seed)) if rows else {}
    return report, {"comparisons": len(rows), "flip_rate": report.get("flip_rate")}


def more_accurate(rows: Sequence[Labelled], than: Sequence[Labelled], seed: int) -> Interval:
    """Difference of two label modes' accuracies on the same pairs; a paired bootstrap interval.

    Raises:
      ValueError: a better response is unknown.
    """
    hits = []
    for side in (rows, than):
        if any(row.better is None for row in side):
            raise ValueError("accuracy needs the better response of every pair.")
        hits.append([_hit(row.prob, row.better) for row in side])
    return bootstrap_mean(np.subtract(*hits), seed)


def rank_correlation(x: Sequence[float], y: Sequence[float], seed: int) -> Interval | None:
    """Spearman's correlation, ties by their mean rank; None where x or y is constant."""
    x, y = np.asarray(x, float), np.asarray(y, float)

    def of(rows: np.ndarray) -> float:
        a, b = _ranks(x[rows]), _ranks(y[rows])
        a, b = a - a.mean(), b - b.mean()
        size = np.sqrt((a @ a) * (b @ b))
        return float(a @ b / size) if size > 0 else float("nan")

    return None if np.isnan(of(np.arange(len(x)))) else bootstrap(of, len(x), seed)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def _principles(rows: Sequence[Labelled], seed: int) -> list[PrincipleReport]:
    found = []
    for name in dict.fromkeys(name for row in rows for name in row.principles):
        asked = [row for row in rows if name in row.principles]
        known = [row for row in asked if row.better is not None]
        own = [row.principles[name] for row in known]
        shared = [row for row in asked if len(row.principles) > 1]
        agrees, moves = [], []
        for row in shared:
            probs = list(row.principles.values())
            mine = row.principles[name]
            others = (sum(probs) - mine) / (len(probs) - 1)
            agrees.append(0.5 if 0.5 in (mine, others) else float((mine > 0.5) == (others > 0.5)))
            moves.append(abs(sum(probs) / len(probs) - others))
        found.append(
            PrincipleReport(
                id=name,
                pairs=len(asked),
                accuracy=(
                    calibration.label_accuracy(own, [row.better for row in known])
                    if known
                    else None
                ),
                agreement=bootstrap_mean(agrees, seed) if shared else None,
                influence=bootstrap_mean(moves, seed) if shared else None,
            )
        )
    return found


def _hit(prob: float, better: bool | None) -> float:
    return 0.5 if prob == 0.5 else float((prob > 0.5) == better)
