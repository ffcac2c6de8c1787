import math

import numpy as np
import pytest
import scipy.stats

from cai_jax.evaluation import intervals


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (30, 60), (1, 1)])
def test_wilson_is_scipys(k, n):
    ours = intervals.wilson(k, n)
    theirs = scipy.stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert (ours.value, ours.n) == (k / n, n)


def test_wilson_of_nothing_and_of_nonsense():
    empty = intervals.wilson(0, 0)
    assert math.isnan(empty.value) and (empty.low, empty.high, empty.n) == (0, 1, 0)
    with pytest.raises(ValueError, match=r"4 successes out of 3 is no share."):
        intervals.wilson(4, 3)


def test_bootstrap_mean_is_near_the_normal_interval_and_repeats():
    values = np.random.default_rng(1).normal(2.0, 3.0, 400)
    ours = intervals.bootstrap_mean(values, seed=0)
    half = 1.96 * values.std() / 20
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((ours.value - half, ours.value + half), abs=0.05)
    assert ours == intervals.bootstrap_mean(values, seed=0)
    assert ours != intervals.bootstrap_mean(values, seed=1)
    assert intervals.bootstrap_mean([5.0] * 9, 0) == intervals.Interval(5.0, 5.0, 5.0, 9)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = intervals.bootstrap_mean(rng.exponential(1.0, 40), trial, resamples=300)
        hits += found.low <= 1 <= found.high
    assert 0.86 <= hits / 200 <= 0.98


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (5, 1), (1, 5), (9, 9), (0, 12)])
def test_mcnemar_is_the_binomial_test_of_what_differs(only_first, only_second):
    pairs = [(1, 0)] * only_first + [(0, 1)] * only_second + [(1, 1)] * 7 + [(0, 0)] * 3
    first, second = zip(*pairs, strict=True)
    n = only_first + only_second
    expected = scipy.stats.binomtest(only_first, n).pvalue if n else 1.0
    assert intervals.mcnemar(first, second) == pytest.approx(expected)


def test_mcnemar_of_lists_that_do_not_match():
    with pytest.raises(ValueError):
        intervals.mcnemar([True], [True, False])


def test_a_paired_difference_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(0)
    second = rng.normal(0, 5, 200)
    first = second + 0.5 + rng.normal(0, 0.5, 200)
    found = intervals.paired_difference(first, second, seed=0)
    assert found.difference.value == pytest.approx(np.mean(first - second))
    assert found.difference.high - found.difference.low < 0.2
    assert found.difference.low > 0 and found.p == 1 / 1000
    again = intervals.paired_difference(second, first, seed=0)
    assert again.difference.value == pytest.approx(-found.difference.value)
    equal = intervals.paired_difference(first, first, seed=0)
    assert (equal.difference.value, equal.p) == (0.0, 1.0)


def test_a_paired_difference_of_hits_has_mcnemars_p():
    first, second = [1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1]
    found = intervals.paired_difference(first, second, seed=0, resamples=200)
    assert found.p == intervals.mcnemar(first, second) == pytest.approx(0.25)
    assert found.difference.value == pytest.approx(0.5) and found.difference.n == 6
