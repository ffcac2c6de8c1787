"""How good a preference model is on pairs whose better response people named.

Accuracy, calibration, and length: a model that prefers what is longer can be right often without
having read a word, so the rule "the longer one is better" stands beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cai_jax.evaluation import calibration
from cai_jax.evaluation.intervals import Interval, half_step, share, wilson

LENGTH_BINS = 5


@dataclasses.dataclass(frozen=True)
class LengthBin:
    """Pairs whose lengths differ about as much.

    Attributes:
      least, most: words that the longer response has more than the other.
      accuracy: of the preference model.
      longer_is_better: accuracy of that rule; equal lengths count half.
    """

    least: int
    most: int
    accuracy: Interval
    longer_is_better: Interval


@dataclasses.dataclass(frozen=True)
class PreferenceReport:
    """All numbers of one set of pairs; in each accuracy equal scores count half.

    Attributes:
      brier: of sigmoid(score difference) as the probability of the better response.
      calibration_error: expected, of the probability given to the response that scores higher.
      longer_is_better: accuracy of choosing the longer response; equal lengths count half.
      chooses_longer: share of pairs of unequal length whose longer response scores higher.
      where_longer, where_shorter: accuracy where the better response is the longer, the shorter.
      by_length: bins of equal count by the difference of the lengths, the smallest first.
    """

    accuracy: Interval
    brier: Interval
    calibration_error: Interval
    longer_is_better: Interval
    chooses_longer: Interval | None
    where_longer: Interval | None
    where_shorter: Interval | None
    by_length: tuple[LengthBin, ...]


def preference_report(
    better: Sequence[float], worse: Sequence[float], longer: Sequence[int], seed: int
) -> PreferenceReport:
    """The report on N pairs, with 95% intervals: Wilson's for shares, else bootstrap over pairs.

    Args:
      better, worse: float[N], scores of the two responses.
      longer: int[N], words of the better response less those of the worse.

    Raises:
      ValueError: there are no pairs, or lists of different lengths.
    """
    lead = np.subtract(better, worse, dtype=float)
    longer = np.asarray(longer)
    if not len(lead) or lead.shape != longer.shape:
        raise ValueError(
            f"{len(lead)} pairs of scores with {len(longer)} lengths cannot be reported on."
        )
    right, rule = half_step(lead), half_step(longer)
    sure = 1 / (1 + np.exp(-np.abs(lead)))
    prob = np.where(lead < 0, 1 - sure, sure)
    order = np.argsort(np.abs(longer), kind="stable")
    parts = np.array_split(order, min(LENGTH_BINS, len(order)))
    return PreferenceReport(
        accuracy=wilson(right.sum(), len(right)),
        brier=calibration.brier_score(prob, np.ones_like(prob), seed),
        calibration_error=calibration.expected_calibration_error(sure, right, seed),
        longer_is_better=wilson(rule.sum(), len(rule)),
        chooses_longer=share(np.where(longer > 0, right, 1 - right)[longer != 0]),
        where_longer=share(right[longer > 0]),
        where_shorter=share(right[longer < 0]),
        by_length=tuple(
            LengthBin(
                int(np.abs(longer[part[0]])),
                int(np.abs(longer[part[-1]])),
                wilson(right[part].sum(), len(part)),
                wilson(rule[part].sum(), len(part)),
            )
            for part in parts
        ),
    )
