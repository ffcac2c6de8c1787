"""Agreement of raters against published numbers."""

import pytest

from cai_jax.evaluation.agreement import krippendorff_alpha, same_choice


def published():
    """Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: four observers,
    twelve units, missing data; the nominal alpha is printed there as 0.743."""
    rows = {
        "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        "C": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    }
    return {
        unit: {who: values[unit] for who, values in rows.items() if values[unit] is not None}
        for unit in range(12)
    }


def test_the_published_alpha():
    assert krippendorff_alpha(published()) == pytest.approx(0.743, abs=5e-4)


def test_raters_who_agree_disagree_or_say_nothing():
    assert krippendorff_alpha({1: {"x": "a", "y": "a"}, 2: {"x": "b", "y": "b"}}) == 1
    assert krippendorff_alpha({1: {"x": "a", "y": "b"}, 2: {"x": "b", "y": "a"}}) < 0
    assert krippendorff_alpha({1: {"x": "a", "y": "a"}}) is None  # one value alone
    assert krippendorff_alpha({1: {"x": "a"}, 2: {"y": "b"}}) is None
    assert krippendorff_alpha({}) is None


def test_how_often_two_raters_agree():
    ratings = {
        1: {"x": "a", "y": "a"},
        2: {"x": "a", "y": "b"},
        3: {"x": "a", "y": "a", "z": "b"},  # one pair of three
        4: {"x": "a"},  # nobody to agree with
    }
    found = same_choice(ratings)
    assert found.n == 3 and found.value == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert same_choice({}).n == 0
