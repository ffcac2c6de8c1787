"""A preference model's scores of pairs whose better response is known; are they calibrated?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cai_jax.evaluation.intervals import Interval, wilson
from cai_jax.records import Record

FOLDER = "evaluation/scored_pairs"  # in a run's workdir, shards of ScoredPair


@dataclasses.dataclass(frozen=True)
class ScoredPair(Record):
    """Both scores of a held-out pair. Attributes: source, which pairs it is one of; id, of the
    pair there; better, worse, the score of the response that is known as such."""

    source: str
    id: str
    better: float
    worse: float


@dataclasses.dataclass(frozen=True)
class GapBin:
    """Pairs of similar score difference: its mean, and the share ranked right, a tie half."""

    gap: float
    accuracy: Interval


def accuracy_by_gap(better: Sequence[float], worse: Sequence[float], bins: int) -> list[GapBin]:
    """Accuracy by the size of the score difference, in bins of equal count (2204.05862, Figure 9).

    A calibrated preference model that sees a difference d is right with probability
    1 / (1 + exp(-d)).

    Args:
      better, worse: float[N], N at least 1.
      bins: fewer where there are fewer pairs.
    """
    lead = np.asarray(better, float) - np.asarray(worse, float)
    order = np.argsort(np.abs(lead), kind="stable")
    parts = np.array_split(lead[order], min(bins, len(lead)))
    return [
        GapBin(
            float(np.abs(part).mean()), wilson(float(((np.sign(part) + 1) / 2).sum()), len(part))
        )
        for part in parts
    ]
