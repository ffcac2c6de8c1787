"""Accuracy by score difference, by hand and of a preference model that is calibrated."""

import numpy as np
import pytest

from cai_jax.evaluation.scored_pairs import accuracy_by_gap


def test_bins_by_hand():
    low, high = accuracy_by_gap([1.0, 0.0, 3.0, 0.0], [0.5, 0.0, 0.0, 2.0], bins=2)
    assert (low.gap, low.accuracy.value, low.accuracy.n) == (0.25, 0.75, 2)
    assert (high.gap, high.accuracy.value, high.accuracy.n) == (2.5, 0.5, 2)


def test_no_more_bins_than_pairs():
    (only,) = accuracy_by_gap([2.0], [1.0], bins=10)
    assert (only.gap, only.accuracy.value) == (1.0, 1.0)


def test_a_calibrated_model_lies_on_the_ideal_curve():
    draw = np.random.default_rng(0)
    gap = draw.uniform(0, 4, 40_000)
    right = draw.uniform(size=gap.size) < 1 / (1 + np.exp(-gap))
    lead = np.where(right, gap, -gap)
    for each in accuracy_by_gap(lead, np.zeros_like(lead), bins=8):
        assert each.accuracy.value == pytest.approx(1 / (1 + np.exp(-each.gap)), abs=0.02)
