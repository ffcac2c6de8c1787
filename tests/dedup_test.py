"""Repeats among texts, exact and near, against comparing every pair."""

import random

import pytest

from cai_jax.datasets.dedup import Repeat, ngrams, normalised, repeats


def test_normalised():
    assert normalised("  Don't  PANIC -- it\u2019s\u00a0\ufb01ne!\n") == "dont panic its fine"
    assert normalised("snake_case 42") == "snake case 42"
    assert normalised("?!") == ""


def test_ngrams():
    assert ngrams("abcabc", 3) == {"abc", "bca", "cab"}
    assert ngrams("ab", 3) == {"ab"}


def test_by_hand():
    """With 2-grams: abcde has ab bc cd de, abcdf has ab bc cd df: 3 of 5 are shared."""
    texts = ["abcde", "abcdf", "ABCDE!", "xyz", "held", "wxyz"]
    assert repeats(texts, ["Held."], 2, 0.6) == [
        None, Repeat(0, False, 0.6), Repeat(0, False, 1.0), None, Repeat(0, True, 1.0),
        Repeat(3, False, pytest.approx(2 / 3)),
    ]  # fmt: skip
    assert repeats(texts, ["Held."], 2, 0.61)[1] is None


def test_what_was_dropped_is_not_compared_with():
    """b is like a and is dropped; c is like b alone and is kept."""
    a, b, c = "abcdefgh", "bcdefghi", "cdefghij"
    assert repeats([a, b, c], [], 2, 0.7) == [None, Repeat(0, False, 0.75), None]
    assert repeats([b, c], [], 2, 0.7) == [None, Repeat(0, False, 0.75)]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.6, 0.7, 0.9, 1.0])
def test_no_pair_is_missed(threshold):
    draws = random.Random(0)
    texts = ["".join(draws.choices("abc", k=draws.randint(1, 14))) for _ in range(300)]
    known, rest = texts[:40], texts[40:]
    kept = [(j, True, text) for j, text in enumerate(known)]
    expected = []
    for i, text in enumerate(rest):
        found = None
        for j, is_known, other in kept:
            x, y = ngrams(text, 3), ngrams(other, 3)
            similarity = 1.0 if text == other else len(x & y) / len(x | y)
            better = found is None or (similarity == 1.0 and text == other)
            if similarity >= threshold and better and not (found and found.similarity == 1.0):
                found = Repeat(j, is_known, similarity)
        expected.append(found)
        if found is None:
            kept.append((i, False, text))
    got = repeats(rest, known, 3, threshold)
    assert [r is None for r in got] == [r is None for r in expected]
    for one, other in zip(got, expected, strict=True):
        if one and one.similarity < 1:
            assert one == other
    if threshold < 1:
        assert 0 < sum(r is not None for r in got) < len(rest)


def test_nothing_to_compare_and_bad_arguments():
    assert repeats([], ["a"], 3, 0.5) == []
    for size, threshold in ((0, 0.5), (3, 0.0), (3, 1.1)):
        with pytest.raises(ValueError, match="compare nothing"):
            repeats(["a"], [], size, threshold)
