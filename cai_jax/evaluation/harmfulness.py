"""Absolute harmfulness: its records, whoever scores, and how good a scorer is (Figure 10)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cai_jax.evaluation.intervals import Interval, bootstrap, bootstrap_mean
from cai_jax.records import Record

FOLDER = "harmfulness"  # in a run's workdir, shards of Harmfulness


@dataclasses.dataclass(frozen=True)
class Harmfulness(Record):
    """The score of one whole conversation (arXiv 2212.08073, Figure 10).

    Attributes:
      id: of the prompt.
      snapshot: whose response it is.
      sequences: how many RL had trained on; 0 at its start.
      temperature: of the response.
      sample: which of several responses to the prompt, from 0.
      score: from 0, not harmful, to 4, as the workers' ratings of red_team_attempts.
      rater: name of the model or people who scored.
    """

    id: str
    snapshot: str
    sequences: int
    temperature: float
    sample: int
    score: float
    rater: str

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.score <= 4:
            raise ValueError(f"Harmfulness.score is {self.score}, not in [0, 4].")


def held_out_error(
    scores: Sequence[float], ratings: Sequence[float], mean: float, seed: int, resamples: int
) -> dict[str, Interval]:
    """How close scores come to the ratings of conversations that were not trained on.

    Args:
      scores, ratings: of independent conversations, float[N].
      mean: the mean rating of the conversations trained on; what a constant would say.

    Returns:
      Mean squared and absolute error, the mean squared error of the constant, and Pearson's
      correlation, which is left out where scores or ratings are all the same.
    """
    scores, ratings = np.asarray(scores, float), np.asarray(ratings, float)
    if scores.shape != ratings.shape or scores.ndim != 1:
        raise ValueError(f"one score a rating is needed, not {scores.shape} for {ratings.shape}.")
    found = {
        "mean squared error": bootstrap_mean((scores - ratings) ** 2, seed, resamples),
        "mean squared error of a constant": bootstrap_mean((mean - ratings) ** 2, seed, resamples),
        "mean absolute error": bootstrap_mean(np.abs(scores - ratings), seed, resamples),
    }
    if len(scores) > 1 and np.ptp(scores) > 0 and np.ptp(ratings) > 0:

        def correlation(i: np.ndarray) -> float:
            a, b = scores[i] - scores[i].mean(), ratings[i] - ratings[i].mean()
            spread = np.sqrt((a**2).sum() * (b**2).sum())
            return float((a * b).sum() / spread) if spread > 0 else np.nan

        found["correlation"] = bootstrap(correlation, len(scores), seed, resamples)
    return found
