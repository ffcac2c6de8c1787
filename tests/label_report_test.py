"""The label report: accuracy, calibration, flips, length and principles of sets made for it."""

import dataclasses

import numpy as np
import pytest
from labels_test import CHOICES, IDS, recipe, says

from cai_jax.evaluation.labels import (
    Labelled,
    label_report,
    labelled,
    more_accurate,
    rank_correlation,
)
from cai_jax.labels import Raw, label
from cai_jax.records import Asked


def row(prob=0.5, first=None, swapped=None, principles=None, longer=0, better=None) -> Labelled:
    first = prob if first is None else first
    return Labelled(prob, first, swapped, principles or {"p": prob}, longer, better)


def test_a_label_as_the_report_reads_it():
    asked = recipe(principles="all", both_orders=True)
    made = label(asked, CHOICES, IDS)
    found = labelled(asked, made, IDS, ("two words", "and these are five"), True)
    assert (found.prob, found.longer, found.better) == (made.prob_a, -2, True)
    assert (found.first, found.swapped) == (made.first_prob_a, made.swapped_prob_a)
    assert list(found.principles) == list(IDS)


def test_known_answers():
    rows = [row(0.9, better=True), row(0.2, better=False), row(0.7, better=False), row(0.4)]
    found = label_report(rows, 0)
    assert (found.pairs, found.accuracy.n) == (4, 3)
    assert found.accuracy.value == pytest.approx(2 / 3)
    assert found.brier.value == pytest.approx((0.01 + 0.04 + 0.49) / 3)
    assert found.brier.low <= found.brier.value <= found.brier.high
    assert found.calibration_error.value == pytest.approx((0.1 + 0.2 + 0.7) / 3)
    assert [b.mean_prob for b in found.reliability] == [0.2, 0.7, 0.9]


def test_without_known_answers_nothing_is_claimed():
    found = label_report([row(0.9), row(0.2)], 0)
    assert (
        found.accuracy is found.brier is found.calibration_error is found.length_of_better is None
    )
    assert found.reliability == ()
    assert found.flip_rate is found.says_a is None
    assert found.entropy.n == 2
    with pytest.raises(ValueError, match=r"there are no labels to report on\."):
        label_report([], 0)


def test_flips_are_counted_where_both_orders_were_asked():
    rows = [row(0.5, 0.9, 0.1), row(0.8, 0.9, 0.7), row(0.2, 0.1, 0.3), row(0.6)]
    found = label_report(rows, 0)
    assert (found.flip_rate.value, found.flip_rate.n) == (pytest.approx(1 / 3), 3)
    assert found.says_a.value == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_a_liking_for_long_responses_shows():
    draw = np.random.default_rng(0)
    longer = draw.integers(-50, 50, 200)
    noise = draw.normal(0, 1, 200)
    likes = [row(float(1 / (1 + np.exp(-x / 20 - e))), longer=int(x), better=bool(e > 0))
             for x, e in zip(longer, noise, strict=True)]  # fmt: skip
    found = label_report(likes, 0)
    assert found.length_bias.low > 0.5
    assert found.length_of_better.low < 0 < found.length_of_better.high
    blind = [dataclasses.replace(r, prob=float(draw.uniform())) for r in likes]
    found = label_report(blind, 0)
    assert found.length_bias.low < 0 < found.length_bias.high
    assert label_report([row(0.5, longer=n) for n in range(4)], 0).length_bias is None
    assert label_report([row(n / 9, longer=3) for n in range(4)], 0).length_bias is None


def test_rank_correlation_by_hand():
    assert rank_correlation([1, 2, 3, 100], [-1, 0, 5, 6], 0).value == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [9, 8, 7], 0).value == pytest.approx(-1)
    # Ranks 1.5, 1.5, 3 against 1, 2, 3: covariance 1.5 and variances 1.5 and 2.
    assert rank_correlation([0, 0, 1], [1, 2, 3], 0).value == pytest.approx(1.5 / 3**0.5)


def test_principles_agree_and_decide():
    # "odd" is against the others in the first pair and with them in the second.
    rows = [
        row(0.6, principles={"p": 0.8, "q": 0.8, "odd": 0.2}, better=True),
        row(0.8, principles={"p": 0.8, "q": 0.7, "odd": 0.9}, better=False),
    ]
    p, q, odd = label_report(rows, 0).principles
    assert (p.id, q.id, odd.id, odd.pairs) == ("p", "q", "odd", 2)
    assert odd.agreement.value == 0.5
    assert p.agreement.value == pytest.approx(0.75)  # the rest of the first pair is a tie
    assert odd.influence.value == pytest.approx((0.2 + 0.05) / 2)
    assert p.influence.value == pytest.approx((0.1 + 0.0) / 2)
    assert (p.accuracy.value, odd.accuracy.value) == (0.5, 0.0)


def test_a_drawn_principle_has_no_others_to_agree_with():
    rows = [row(0.6, principles={"p": 0.6}, better=True), row(0.6, principles={"q": 0.6})]
    p, q = label_report(rows, 0).principles
    assert (p.pairs, p.accuracy.value, p.agreement, p.influence) == (1, 1.0, None, None)
    assert (q.pairs, q.accuracy) == (1, None)


def test_two_modes_on_the_same_pairs():
    good = [row(0.9, better=True), row(0.9, better=True), row(0.5, better=True)]
    poor = [row(0.9, better=True), row(0.1, better=True), row(0.1, better=True)]
    found = more_accurate(good, poor, 0)
    assert found.value == pytest.approx(0.5)
    assert more_accurate(poor, good, 0).value == pytest.approx(-0.5)
    same = more_accurate(good, good, 0)
    assert (same.value, same.low, same.high, same.n) == (0, 0, 0, 3)
    with pytest.raises(ValueError, match="better response of every pair"):
        more_accurate(good, [row()] * 3, 0)


def test_by_principle_comes_through_chains():
    probs = {"p": (0.2, 0.4), "q": (0.9, 0.7)}
    answers = {Asked(p, "AB", n): says(x) for p in probs for n, x in enumerate(probs[p])}
    raw = Raw("x", "p", tuple(answers), tuple(answers.values()), ())
    asked = recipe(mode="chain_of_thought", chains=2, principles="all")
    made = label(asked, raw, ("p", "q"))
    found = labelled(asked, made, ("p", "q"), ("a", "b"))
    assert found.principles == pytest.approx({"p": 0.3, "q": 0.8}, abs=1e-5)
