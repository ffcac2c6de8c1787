"""Intervals for every number an evaluation reports: Wilson for shares, bootstrap for the rest."""

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
