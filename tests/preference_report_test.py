"""How good a preference model is: by hand, and where it does nothing but prefer what is longer."""

import numpy as np
import pytest

from cai_jax.evaluation.preference_report import preference_report


def test_by_hand():
    found = preference_report([2.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0], [3, 1, -2, 0], seed=0)
    assert (found.accuracy.value, found.accuracy.n) == ((1 + 0 + 0.5 + 1) / 4, 4)
    assert found.longer_is_better.value == (1 + 1 + 0 + 0.5) / 4
    # Of three of unequal length the longer one is chosen once, once not, and once it is a tie.
    assert (found.chooses_longer.value, found.chooses_longer.n) == (0.5, 3)
    assert (found.where_longer.value, found.where_longer.n) == (0.5, 2)
    assert (found.where_shorter.value, found.where_shorter.n) == (0.5, 1)
    assert [(b.least, b.most, b.accuracy.value) for b in found.by_length] == [
        (0, 0, 1.0), (1, 1, 0.0), (2, 2, 0.5), (3, 3, 1.0)
    ]  # fmt: skip
    assert [b.longer_is_better.value for b in found.by_length] == [0.5, 1.0, 0.0, 1.0]
    miss = [1 / (1 + np.exp(x)) for x in (2, -1, 0, 1)]
    assert found.brier.value == pytest.approx(np.square(miss).mean())
    assert found.brier.low <= found.brier.value <= found.brier.high


def test_a_model_that_counts_words_is_as_right_as_the_rule():
    draw = np.random.default_rng(0)
    longer = draw.integers(-50, 51, 400)
    found = preference_report(longer / 10, np.zeros(400), longer, seed=0)
    assert found.accuracy == found.longer_is_better
    assert found.chooses_longer.value == found.where_longer.value == 1
    assert found.where_shorter.value == 0
    assert all(b.accuracy == b.longer_is_better for b in found.by_length)
    assert sum(b.accuracy.n for b in found.by_length) == 400


def test_calibration_of_scores_that_mean_what_they_say():
    draw = np.random.default_rng(0)
    gap = draw.uniform(-4, 4, 20_000)
    better = np.where(draw.uniform(size=gap.size) < 1 / (1 + np.exp(-gap)), gap, -gap)
    zero = np.zeros(gap.size)
    found = preference_report(better, zero, zero.astype(int), seed=0)
    assert found.calibration_error.value < 0.02
    assert preference_report(5 * better, zero, zero.astype(int), seed=0).calibration_error.low > 0.1
    assert found.where_longer is None and found.chooses_longer is None


@pytest.mark.parametrize("longer", [[], [1, 2]])
def test_lists_that_do_not_fit(longer):
    with pytest.raises(ValueError, match="cannot be reported on"):
        preference_report([1.0][: len(longer)], [0.0][: len(longer)], longer, seed=0)
