"""Diversity of texts, against numbers worked out by hand."""

import itertools
import math
from statistics import NormalDist

import pytest

from cai_jax.conversation import Conversation
from cai_jax.evaluation import diversity
from cai_jax.evaluation.diversity import jackknife, measure, of_revisions
from cai_jax.records import Provenance, Revision, RevisionStep

SOURCE = Provenance("model@0", "test@0", 0, "")


def test_self_bleu_by_hand():
    """a: "the cat sat on the mat"; b: "the cat sat"; c: "a dog ran".

    a against b and c: 3 of 6 words (the once, not twice), 2 of 5 pairs, 1 of 4 triples, none of 3
    quadruples (0.1 counted); the closer length of 3 and 3 is shorter: no penalty.
    b against a and c: 3/3, 2/2, 1/1, and no quadruple (0.1 of 1); c is as long: no penalty.
    c shares no word: 0.
    """
    a = (3 / 6 * 2 / 5 * 1 / 4 * 0.1 / 3) ** 0.25
    b = 0.1**0.25
    found = measure(["The cat sat on the mat", "the  cat sat", "a dog ran"])["self_bleu"]
    assert found.value == pytest.approx((a + b + 0) / 3)
    assert found.n == 3


def test_a_short_text_among_long_ones_is_penalised():
    """ "a b c d e" in both others of 10 words: precisions 1, penalty exp(1 - 10 / 5)."""
    long = "a b c d e f g h i j"
    short = "a b c d e"
    of_long = 1.0  # each other's copies
    found = measure([long, long, short])["self_bleu"].value
    assert found == pytest.approx((2 * of_long + math.exp(-1)) / 3)


def test_a_word_counts_in_a_reference_as_often_as_it_occurs_in_one_text():
    """ "a a a" against "a a" and "a": at most twice, though a occurs three times in all."""
    grams = [diversity._grams(t.split()) for t in ("a a a", "a a", "a")]
    # 2 of 3 words, 1 of 2 pairs, 0.1 of 1 triple, 0.1 of no quadruple; no penalty: it is longest.
    first = (2 / 3 * 1 / 2 * 0.1 * 0.1) ** 0.25
    # 2 of 2, 1 of 1, 0.1, 0.1. Lengths 3 and 1 are as close; the shorter counts.
    second = (0.1 * 0.1) ** 0.25
    third = math.exp(1 - 2 / 1) * (0.1**3) ** 0.25
    assert diversity.self_bleu(grams) == pytest.approx((first + second + third) / 3)


def test_distinct_by_hand():
    """4 of 7 words are different ones, and 3 of the pairs the-cat cat-sat the-dog the-cat."""
    found = measure(["the cat sat", "The dog", "the cat"])
    assert found["distinct_1"].value == pytest.approx(4 / 7)
    assert found["distinct_2"].value == pytest.approx(3 / 4)


def test_spread_by_hand():
    """4-grams abcd bcde | bcde cdef | wxyz: one cosine of 1/2, two of 0."""
    assert measure(["abcde", "bcdef", "wxyz"])["spread"].value == pytest.approx(1 - 0.5 / 3)


def test_the_same_text_again_and_again_and_texts_with_nothing_in_common():
    same = measure(["one two three four five"] * 4)
    assert same["self_bleu"].value == pytest.approx(1)
    assert same["spread"].value == pytest.approx(0)
    assert same["distinct_2"].value == pytest.approx(1 / 4)
    letters = ["aaaa bbbb", "cccc dddd", "eeee ffff"]
    other = measure(letters)
    assert other["self_bleu"].value == 0
    assert other["distinct_1"].value == other["distinct_2"].value == 1
    assert other["spread"].value == pytest.approx(1)


def test_texts_without_words_are_left_out_and_three_are_the_least():
    assert measure(["one two", "", " \n", "three"]) == {}
    assert measure(["one two", "", "three", "four"])["spread"].n == 3


def test_single_words_have_no_word_pairs():
    assert set(measure(["one", "two", "three"])) == {"self_bleu", "distinct_1", "spread"}
    # Left out once, the only pair leaves nothing to measure.
    assert "distinct_2" not in measure(["one two", "three", "four"])


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = [0.0, 1.0, 3.0, 7.0]  # mean 2.75, variance 28.75 / 3
    found = jackknife(lambda kept: sum(values[i] for i in kept) / len(kept), 4)
    half = NormalDist().inv_cdf(0.975) * math.sqrt(28.75 / 3 / 4)
    assert found.value == 2.75
    assert (found.low, found.high) == (pytest.approx(2.75 - half), pytest.approx(2.75 + half))


def test_a_jackknife_of_many_leaves_out_groups():
    kept = []
    jackknife(lambda indices: kept.append(list(indices)) or 0.0, 120)
    assert len(kept) == 1 + diversity.GROUPS
    left_out = [set(range(120)) - set(k) for k in kept[1:]]
    assert set().union(*left_out) == set(range(120))
    assert not any(a & b for a, b in itertools.combinations(left_out, 2))


def test_each_revision_is_measured_apart(monkeypatch):
    monkeypatch.setattr(diversity, "MOST", 3)
    records = [
        Revision(
            f"r{n}", "red_team", Conversation().human("Hi."), f"Answer number {n} of many.",
            (RevisionStep("p", "", "I will not do that.", "end", ""),
             RevisionStep("p", "", "a b c d"[2 * (n % 2):], "end", "")), SOURCE,
        )
        for n in range(5)
    ]  # fmt: skip
    found = of_revisions(records)
    assert len(found) == 3
    assert found[1]["self_bleu"].value == pytest.approx(1)
    assert 0 < found[0]["self_bleu"].value < 1
    assert {interval.n for measures in found for interval in measures.values()} == {3}
