"""How good a labeler's probabilities are: accuracy, order swaps, entropy, calibration.

Throughout, `prob` holds the labeler's probability that one given response of a pair is the better
one, float[N] in [0, 1]; `first` was asked with that response as option (A), `swapped` with the same
response as option (B). Reliability is the paper's figure 9 (arXiv 2212.08073).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cai_jax.evaluation.intervals import Interval, bootstrap, bootstrap_mean, half_step, wilson


@dataclasses.dataclass(frozen=True)
class ReliabilityBin:
    """Labels whose probability lies in [low, high): their mean and the share that came true."""

    low: float
    high: float
    mean_prob: float
    share: Interval


def label_accuracy(prob: Sequence[float], better: Sequence[bool]) -> Interval:
    """Share of pairs whose likelier response is the better one; exactly 0.5 counts half.

    Args:
      better: bool[N], whether the response `prob` speaks of is the better one.
    """
    prob, better = _arrays(prob, better)
    hits = np.where(prob == 0.5, 0.5, (prob > 0.5) == (better > 0.5))
    return wilson(float(hits.sum()), len(hits))


def swap_flip_rate(first: Sequence[float], swapped: Sequence[float]) -> Interval:
    """Share of pairs where swapping (A) and (B) changes which response is preferred."""
    first, swapped = _arrays(first, swapped)
    return wilson(int(((first > 0.5) != (swapped > 0.5)).sum()), len(first))


def position_bias(first: Sequence[float], swapped: Sequence[float]) -> Interval:
    """Share of askings, over both orders, that choose (A); 0.5 is without bias.

    Both askings of a pair count as one item in the interval, since a biased labeler answers alike.
    """
    first, swapped = _arrays(first, swapped)
    chose_a = (half_step(first - 0.5) + half_step(0.5 - swapped)) / 2
    return wilson(float(chose_a.sum()), len(first))


def label_entropy(prob: Sequence[float], seed: int) -> Interval:
    """Mean entropy of the labels in bits: 0 where the labeler is sure, 1 where it is at 0.5."""
    p = np.asarray(prob, float)
    q = np.stack([p, 1 - p])
    bits = -(q * np.log2(np.where(q > 0, q, 1))).sum(0)
    return bootstrap_mean(bits + 0.0, seed)


def brier_score(prob: Sequence[float], better: Sequence[bool], seed: int) -> Interval:
    """Mean squared error of the probabilities; 0.25 is what constant 0.5 scores."""
    prob, better = _arrays(prob, better)
    return bootstrap_mean((prob - better) ** 2, seed)


def expected_calibration_error(
    prob: Sequence[float], better: Sequence[bool], seed: int, bins: int = 10
) -> Interval:
    """Mean gap between probability and share that came true, over equal-width bins.

    ECE = sum over bins of n_bin / N * |share - mean probability| (Naeini et al., 2015). It is
    biased upwards on few labels, and so is its interval.
    """
    prob, better = _arrays(prob, better)
    which = _bin_of(prob, bins)

    def statistic(i: np.ndarray) -> float:
        gaps = np.bincount(which[i], weights=(better - prob)[i], minlength=bins)
        return float(np.abs(gaps).sum() / len(i))

    return bootstrap(statistic, len(prob), seed)


def reliability(
    prob: Sequence[float], better: Sequence[bool], bins: int = 10
) -> list[ReliabilityBin]:
    """Equal-width bins of [0, 1] that hold labels, in order; 1.0 belongs to the last bin."""
    prob, better = _arrays(prob, better)
    which = _bin_of(prob, bins)
    return [
        ReliabilityBin(
            k / bins,
            (k + 1) / bins,
            float(prob[which == k].mean()),
            wilson(float(better[which == k].sum()), int((which == k).sum())),
        )
        for k in range(bins)
        if (which == k).any()
    ]


def _arrays(first: Sequence, second: Sequence) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"Two lists of one length are needed, not {first.shape}, {second.shape}.")
    for values in (first, second):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("Probabilities must lie in [0, 1].")
    return first, second


def _bin_of(prob: np.ndarray, bins: int) -> np.ndarray:
    return np.minimum((prob * bins).astype(int), bins - 1)
