"""How a preference model does on comparisons it was not trained on, whatever labelled them.

Unlike `preference_report`, where people named the better response, labels here are probabilities:
an AI label of 0.55 is no certainty, and a labeler has habits that the preference model may learn.
So beside agreement stand two of them, length and position: how often label and model choose the
longer response, and the one that was shown first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cai_jax.evaluation import calibration
from cai_jax.evaluation.intervals import Interval, bootstrap_mean, half_step, share


@dataclasses.dataclass(frozen=True)
class ComparisonReport:
    """All numbers of the comparisons of one source.

    Attributes:
      agreement: share of labels other than 0.5 whose likelier response scores higher; equal scores
        count half.
      cross_entropy: of the labels under sigmoid(score difference), in bits; 1 is what equal scores
        would have.
      label_entropy: of the labels themselves, in bits: the least that cross-entropy can be.
      calibration_error: expected, of the probability given to the response that scores higher, by
        which response the label favours.
      chooses_longer, label_longer: share of the pairs of unequal length where the longer response
        scores higher, or is the likelier one by its label.
      chooses_a, label_a: share where response A is.
    """

    agreement: Interval | None
    cross_entropy: Interval
    label_entropy: Interval
    calibration_error: Interval | None
    chooses_longer: Interval | None
    label_longer: Interval | None
    chooses_a: Interval
    label_a: Interval | None


def comparison_report(
    score_a: Sequence[float],
    score_b: Sequence[float],
    prob_a: Sequence[float],
    longer: Sequence[int],
    seed: int,
) -> ComparisonReport:
    """The report on N comparisons, with 95% intervals: Wilson's for shares, else bootstrap.

    Args:
      score_a, score_b: float[N], the preference model's.
      prob_a: float[N], the labels.
      longer: int[N], words of response A less those of B.

    Raises:
      ValueError: there are none, or lists of different lengths.
    """
    lead = np.subtract(score_a, score_b, dtype=float)
    label, longer = np.asarray(prob_a, float), np.asarray(longer)
    if not len(lead) or lead.shape != label.shape or lead.shape != longer.shape:
        raise ValueError(
            f"{len(lead)} pairs of scores with {len(label)} labels and {len(longer)} lengths "
            "cannot be reported on."
        )
    model_a, label_a = half_step(lead), half_step(label - 0.5)
    decided, unequal = label != 0.5, longer != 0
    right = np.where(label_a == 1, model_a, 1 - model_a)[decided]
    sure = 1 / (1 + np.exp(-np.abs(lead)))
    # -log sigmoid(x) = log(1 + exp(-x)), of either response by its label.
    nats = label * np.logaddexp(0, -lead) + (1 - label) * np.logaddexp(0, lead)
    as_longer = lambda chosen: np.where(longer > 0, chosen, 1 - chosen)  # noqa: E731
    return ComparisonReport(
        agreement=share(right),
        cross_entropy=bootstrap_mean(nats / np.log(2), seed),
        label_entropy=calibration.label_entropy(label, seed),
        calibration_error=calibration.expected_calibration_error(sure[decided], right, seed)
        if decided.any()
        else None,
        chooses_longer=share(as_longer(model_a)[unequal]),
        label_longer=share(as_longer(label_a)[unequal & decided]),
        chooses_a=share(model_a),
        label_a=share(label_a[decided]),
    )
