import numpy as np
import pytest

from cai_jax.evaluation import calibration


def test_accuracy_counts_ties_half():
    found = calibration.label_accuracy([0.9, 0.4, 0.5, 0.2], [True, True, True, False])
    assert (found.value, found.n) == (0.625, 4)


def test_swaps_of_a_labeler_that_always_says_a():
    first, swapped = [0.9, 0.8, 0.95], [0.1, 0.3, 0.05]
    assert calibration.swap_flip_rate(first, swapped).value == 1
    assert calibration.position_bias(first, swapped).value == 1


def test_swaps_of_a_labeler_that_looks_at_the_responses():
    first, swapped = [0.9, 0.2, 0.95, 0.1], [0.8, 0.3, 0.9, 0.2]
    assert calibration.swap_flip_rate(first, swapped).value == 0
    assert calibration.position_bias(first, swapped).value == 0.5


def test_entropy_in_bits():
    assert calibration.label_entropy([0.5, 0.5], 0).value == 1
    assert calibration.label_entropy([0.0, 1.0], 0).value == 0
    assert calibration.label_entropy([0.25], 0).value == pytest.approx(0.8112781, abs=1e-7)


def test_brier():
    found = calibration.brier_score([0.8, 0.4], [True, False], 0)
    assert found.value == pytest.approx((0.2**2 + 0.4**2) / 2)
    assert calibration.brier_score([0.5] * 4, [True, False] * 2, 0).value == 0.25


def test_ece_by_hand():
    # Bin [.2, .3): mean .25, share .5, n 2. Bin [.9, 1]: mean .95, share 1, n 2.
    prob, better = [0.2, 0.3 - 1e-9, 0.9, 1.0], [True, False, True, True]
    found = calibration.expected_calibration_error(prob, better, 0)
    assert found.value == pytest.approx(0.5 * 0.25 + 0.5 * 0.05)
    assert 0 <= found.low <= found.high <= 1


def test_reliability_bins():
    low, high = calibration.reliability([0.05, 0.0, 1.0, 0.95], [False, True, True, True])
    assert (low.low, low.high, low.mean_prob, low.share.value, low.share.n) == (
        0.0,
        0.1,
        0.025,
        0.5,
        2,
    )
    assert (high.low, high.high, high.mean_prob, high.share.value) == (0.9, 1.0, 0.975, 1.0)


def test_calibrated_labels_have_small_error_and_overconfident_ones_do_not():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 1, 5000)
    better = rng.uniform(0, 1, 5000) < truth
    sharpened = truth**3 / (truth**3 + (1 - truth) ** 3)
    assert calibration.expected_calibration_error(truth, better, 0).value < 0.03
    assert calibration.expected_calibration_error(sharpened, better, 0).value > 0.1


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0.5], [0.5, 0.5], r"Two lists of one length are needed, not \(1,\), \(2,\)."),
        ([1.5], [1], r"Probabilities must lie in \[0, 1\]."),
        ([float("nan")], [1], r"Probabilities must lie in \[0, 1\]."),
    ],
)
def test_bad_input(first, second, message):
    with pytest.raises(ValueError, match=message):
        calibration.swap_flip_rate(first, second)
