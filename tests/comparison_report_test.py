"""A preference model on labels that are probabilities: by hand, calibrated, and with bad habits."""

import numpy as np
import pytest

from cai_jax.evaluation.comparison_report import comparison_report


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_by_hand():
    a, b, label, longer = (
        [2.0, 0.0, 1.0, 0.0],
        [0.0, 1.0, 1.0, 3.0],
        [0.8, 0.6, 0.3, 0.5],
        [4, -1, 2, 0],
    )
    found = comparison_report(a, b, label, longer, seed=0)
    # Right, wrong, a tie; the last label favours neither.
    assert (found.agreement.value, found.agreement.n) == (0.5, 3)
    p = sigmoid(np.subtract(a, b))
    label = np.array(label)
    costs = -label * np.log2(p) - (1 - label) * np.log2(1 - p)
    assert found.cross_entropy.value == pytest.approx(costs.mean())
    entropy = -label * np.log2(label) - (1 - label) * np.log2(1 - label)
    assert found.label_entropy.value == pytest.approx(entropy.mean())
    # Chooses A, B, a tie, B; of the three of unequal length the longer are A, B, A.
    assert found.chooses_a.value == (1 + 0 + 0.5 + 0) / 4
    assert found.chooses_longer.value == pytest.approx((1 + 1 + 0.5) / 3)
    # The labels favour A, A, B.
    assert (found.label_a.value, found.label_a.n) == (pytest.approx(2 / 3), 3)
    assert found.label_longer.value == pytest.approx((1 + 0 + 0) / 3)


def test_labels_that_are_the_models_own_cost_their_entropy_and_no_more():
    gap = np.random.default_rng(0).normal(size=500)
    found = comparison_report(gap, 0 * gap, sigmoid(gap), np.ones(500, int), seed=0)
    assert found.cross_entropy.value == pytest.approx(found.label_entropy.value)
    assert found.agreement.value == 1


def test_sure_labels_have_no_entropy():
    found = comparison_report([800.0, 0.0], [0.0, 800.0], [1.0, 0.0], [1, 1], seed=0)
    assert found.label_entropy.value == 0 and found.cross_entropy.value == 0
    wrong = comparison_report([800.0], [0.0], [0.0], [1], seed=0)
    assert wrong.cross_entropy.value == pytest.approx(800 / np.log(2))


def test_scores_that_mean_what_they_say_are_calibrated():
    draw = np.random.default_rng(0)
    gap = draw.uniform(-4, 4, 20_000)
    label = (draw.uniform(size=gap.size) < sigmoid(gap)).astype(float)
    zero = np.zeros(gap.size)
    assert comparison_report(gap, zero, label, zero, seed=0).calibration_error.value < 0.02
    assert comparison_report(5 * gap, zero, label, zero, seed=0).calibration_error.low > 0.1


def test_a_labeler_that_names_the_first_is_seen():
    """Scores know nothing of the order; the report shows that the labels follow it."""
    draw = np.random.default_rng(0)
    gap = draw.normal(size=1000)
    found = comparison_report(gap, 0 * gap, np.full(1000, 0.9), np.ones(1000, int), seed=0)
    assert found.label_a.value == 1
    assert 0.4 < found.chooses_a.value < 0.6 and found.agreement == found.chooses_a


def test_what_cannot_be_said_is_left_out():
    found = comparison_report([1.0, 0.0], [0.0, 0.0], [0.5, 0.5], [0, 0], seed=0)
    assert found.agreement is found.calibration_error is found.label_a is None
    assert found.chooses_longer is found.label_longer is None
    assert found.chooses_a.value == 0.75


@pytest.mark.parametrize(("labels", "longer"), [([], []), ([0.5], [1, 2]), ([0.5, 0.5], [1])])
def test_lists_that_do_not_fit(labels, longer):
    scores = [0.0] * len(longer)
    with pytest.raises(ValueError, match="cannot be reported on"):
        comparison_report(scores, scores, labels, longer, seed=0)
