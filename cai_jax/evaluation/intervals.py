"""Intervals for every number an evaluation reports, and tests of two systems on the same items."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate, its interval, and the number of independent items it rests on."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a share.

    `successes` may be fractional, a tie counting half: a share in [0, 1] per item varies no more
    than a yes or no, so the interval then errs on the wide side. With n = 0 the value is NaN and
    the interval is [0, 1].

    Reference: E. B. Wilson, "Probable inference" (1927).
    """
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n} is no share.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Exact ends at 0 and 1, where rounding would leave 1e-17.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high, n)


def share(hits: np.ndarray) -> Interval | None:
    """Wilson's interval of the mean of hits, float[N] in [0, 1]; None where there are none."""
    return wilson(hits.sum(), len(hits)) if len(hits) else None


def half_step(values: np.ndarray) -> np.ndarray:
    """1 where a value is above 0, 0.5 at it, 0 below: a hit, a tie, a miss."""
    return (np.sign(values) + 1) / 2


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    n: int,
    seed: int,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of `statistic(indices int64[n]) -> float`.

    Pass the indices of whatever is independent (prompts, not samples); paired quantities share
    them. Draws whose statistic is NaN are left out.

    Reference: B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", chapter 13.
    """
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    draws = [statistic(indices) for indices in resample(n, seed, resamples)]
    low, high = percentiles(np.asarray(draws, float), confidence)
    return Interval(float(statistic(np.arange(n))), float(low), float(high), n)


def bootstrap_mean(
    values: Sequence[float], seed: int, resamples: int = 1000, confidence: float = 0.95
) -> Interval:
    """Mean of independent values with its percentile bootstrap interval."""
    array = np.asarray(values, float)
    return bootstrap(lambda i: array[i].mean(), len(array), seed, resamples, confidence)


def resample(n: int, seed: int, resamples: int) -> np.ndarray:
    """Bootstrap indices int64[resamples, n]; the same for the same arguments everywhere."""
    return np.random.default_rng(seed).integers(n, size=(resamples, n))


def percentiles(draws: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """The two ends of the central interval over the first axis of `draws`; float[2, ...]."""
    tail = 50 * (1 - confidence)
    return np.nanpercentile(draws, [tail, 100 - tail], axis=0)


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two systems on the same items.

    Attributes:
      difference: mean of the first less mean of the second, with its interval.
      p: two-sided probability of a difference at least so far from 0 if there were none.
    """

    difference: Interval
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided McNemar p of two systems' hits on the same items, bool[N] each.

    Only items that one alone gets right count: under no difference each falls to either side like
    a fair coin. 1.0 where there are none.

    Raises:
      ValueError: lists of different lengths.

    Reference: Q. McNemar, "Note on the sampling error of the difference between correlated
    proportions" (1947), in its exact binomial form.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(bool(a) and not b for a, b in pairs)
    only_second = sum(bool(b) and not a for a, b in pairs)
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    seed: int,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Paired:
    """Difference of two systems' means over the same items, with a paired bootstrap interval.

    The p is McNemar's where all values are 0 or 1; else it is twice the smaller share of bootstrap
    differences on either side of 0, and never below 1 / resamples.

    Raises:
      ValueError: lists of different lengths.
    """
    pairs = np.asarray(list(zip(first, second, strict=True)), float).reshape(-1, 2)
    lead = pairs[:, 0] - pairs[:, 1]
    interval = bootstrap_mean(lead, seed, resamples, confidence)
    if np.isin(pairs, (0.0, 1.0)).all():
        return Paired(interval, mcnemar(pairs[:, 0] == 1, pairs[:, 1] == 1))
    draws = lead[resample(len(lead), seed, resamples)].mean(1)
    p = 2 * min((draws <= 0).mean(), (draws >= 0).mean())
    return Paired(interval, float(min(1.0, max(p, 1 / resamples))))
