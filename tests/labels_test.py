"""From raw answers to labels: every mode's arithmetic, with numbers worked out by hand."""

import dataclasses
import math

import pytest

from cai_jax.conversation import Conversation
from cai_jax.labels import (
    TOGETHER,
    LabelError,
    Raw,
    Recipe,
    by_principle,
    expected_rating,
    first_of_two,
    label,
    questions,
    raw_of,
)
from cai_jax.records import Asked, Comparison, Provenance

RECIPE = Recipe(
    mode="multiple_choice", principles="drawn", both_orders=False, chains=1, target="soft",
    clamp=(0.0, 1.0), sharpness=1.0, per_token=False,
)  # fmt: skip
IDS = ("p", "q", "r")


def recipe(**changes) -> Recipe:
    return dataclasses.replace(RECIPE, **changes)


def raw(answers: dict[tuple, tuple[float, ...]], tokens: tuple[int, ...] = ()) -> Raw:
    """(principle, shown, chain) -> log-probabilities."""
    asked = tuple(Asked(*key) for key in answers)
    return Raw("x", "q", asked, tuple(answers.values()), tokens)


def says(p: float) -> tuple[float, float]:
    """Log-probabilities of two options of which the first has probability p of both."""
    return math.log(p) - 2, math.log(1 - p) - 2


# Response_a is preferred with 0.8 shown as (A), and with 0.3 shown as (B), under the drawn one.
CHOICES = raw(
    {
        ("q", "AB", 0): says(0.8), ("q", "BA", 0): says(0.7),
        ("p", "AB", 0): says(0.1), ("p", "BA", 0): says(0.5),
        ("r", "AB", 0): says(0.6), ("r", "BA", 0): says(0.2),
        (TOGETHER, "AB", 0): says(0.9),
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0.8),
        ({"both_orders": True}, (0.8 + 0.3) / 2),
        ({"principles": "all"}, (0.8 + 0.1 + 0.6) / 3),
        ({"principles": "all", "both_orders": True}, (0.8 + 0.3 + 0.1 + 0.5 + 0.6 + 0.8) / 6),
        ({"principles": "together"}, 0.9),
        ({"target": "hard"}, 1.0),
        ({"target": "hard", "principles": "all", "clamp": (0.4, 0.6)}, 0.5),
        ({"target": "hard", "clamp": (0.4, 0.6)}, 0.6),
        ({"clamp": (0.4, 0.6)}, 0.6),
        ({"clamp": (0.2, 0.75)}, 0.75),
    ],
)
def test_a_choice(changes, expected):
    made = label(recipe(**changes), CHOICES, IDS)
    assert made.prob_a == pytest.approx(expected, abs=1e-5)


def test_both_orders_are_kept_apart_and_unclamped():
    made = label(recipe(both_orders=True, target="hard", clamp=(0.4, 0.6)), CHOICES, IDS)
    assert (made.first_prob_a, made.swapped_prob_a) == pytest.approx((0.8, 0.3), abs=1e-5)
    assert made.prob_a == 0.6
    assert label(RECIPE, CHOICES, IDS).swapped_prob_a is None
    made = label(recipe(principles="all", both_orders=True), CHOICES, IDS)
    assert made.first_prob_a == pytest.approx(0.5, abs=1e-5)
    assert made.swapped_prob_a == pytest.approx(1.6 / 3, abs=1e-5)


def test_a_label_keeps_its_raw_answers():
    made = label(RECIPE, CHOICES, IDS)
    for field in dataclasses.fields(Raw):
        assert getattr(made, field.name) == getattr(CHOICES, field.name)


def test_chains_are_averaged():
    probs = {"AB": (0.9, 0.2, 0.4), "BA": (0.5, 0.6, 0.6)}
    answers = {("q", s, n): says(p) for s in probs for n, p in enumerate(probs[s])}
    chain = recipe(mode="chain_of_thought")
    for n, expected in ((1, 0.9), (2, 0.55), (3, 0.5)):
        made = label(dataclasses.replace(chain, chains=n), raw(answers), IDS)
        assert made.prob_a == pytest.approx(expected, abs=1e-5)
    made = label(dataclasses.replace(chain, chains=3, both_orders=True), raw(answers), IDS)
    assert made.prob_a == pytest.approx((0.5 + 1.3 / 3) / 2, abs=1e-5)


def rated(*weights: float) -> tuple[float, ...]:
    return tuple(math.log(w) - 5 if w else -200.0 for w in weights)


def test_an_expected_rating():
    assert expected_rating([-700.0] * 10) == pytest.approx(5.5)
    assert expected_rating(rated(0, 0, 0, 0, 0, 0, 0, 0, 0, 1)) == pytest.approx(10)
    assert expected_rating(rated(0.25, 0, 0, 0.75, 0, 0, 0, 0, 0, 0)) == pytest.approx(3.25)


def test_ratings():
    answers = raw({
        ("q", "A", 0): rated(0, 0, 0, 0, 1, 0, 0, 0, 0, 0),
        ("q", "B", 0): rated(0, 0, 0.5, 0.5, 0, 0, 0, 0, 0, 0),
    })  # fmt: skip
    made = label(recipe(mode="rating"), answers, IDS)
    assert made.prob_a == pytest.approx(1 / (1 + math.exp(-1.5)), abs=1e-5)
    assert made.first_prob_a == made.prob_a
    assert made.swapped_prob_a is None
    made = label(recipe(mode="rating", sharpness=0.2), answers, IDS)
    assert made.prob_a == pytest.approx(1 / (1 + math.exp(-0.3)), abs=1e-5)


CONTRAST = raw({("q", "best", 0): (-10.0, -40.0), ("q", "worst", 0): (-12.0, -45.0)}, (4, 20))


def test_contrast_is_the_ratio_of_likelihoods():
    # a gains 2 nats in 4 tokens from the better prompt, b gains 5 in 20.
    made = label(recipe(mode="contrastive"), CONTRAST, IDS)
    assert made.prob_a == pytest.approx(1 / (1 + math.exp(3)), abs=1e-5)
    made = label(recipe(mode="contrastive", per_token=True), CONTRAST, IDS)
    assert made.prob_a == pytest.approx(1 / (1 + math.exp(-0.25)), abs=1e-5)
    made = label(recipe(mode="contrastive", per_token=True, sharpness=10.0), CONTRAST, IDS)
    assert made.prob_a == pytest.approx(1 / (1 + math.exp(-2.5)), abs=1e-5)


def test_an_empty_response_is_no_division_by_nothing():
    answers = raw({("q", "best", 0): (0.0, -4.0), ("q", "worst", 0): (0.0, -4.0)}, (0, 2))
    assert label(recipe(mode="contrastive", per_token=True), answers, IDS).prob_a == 0.5


def test_the_probability_under_each_principle():
    found = by_principle(recipe(principles="all", both_orders=True), CHOICES, IDS)
    assert list(found) == ["p", "q", "r"]
    assert list(found.values()) == pytest.approx([0.3, 0.55, 0.7], abs=1e-5)
    assert by_principle(recipe(clamp=(0.5, 0.5)), CHOICES, IDS)["q"] == pytest.approx(0.8, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"principles": "together", "both_orders": True}, "principle '*', shown 'BA', chain 0"),
        ({"mode": "chain_of_thought", "chains": 2}, "principle 'q', shown 'AB', chain 1"),
        ({"mode": "rating"}, "principle 'q', shown 'A', chain 0"),
    ],
)
def test_what_was_not_asked_is_named(changes, said):
    with pytest.raises(LabelError, match="comparison 'x' was not asked under") as caught:
        label(recipe(**changes), CHOICES, IDS)
    assert said in str(caught.value)
    assert str(caught.value).endswith(".")


def test_how_many_questions_each_recipe_needs():
    def count(**changes) -> int:
        asked = questions(recipe(**changes), "q", IDS)
        assert len(set(asked)) == len(asked)
        return len(asked)

    assert count() == count(principles="together") == count(chains=5) == 1
    assert count(principles="all", both_orders=True) == 6
    assert count(mode="chain_of_thought", principles="all", both_orders=True, chains=4) == 24
    assert count(mode="rating", both_orders=True) == count(mode="contrastive", chains=3) == 2
    assert count(mode="contrastive", principles="all") == 6


def test_records_of_before_questions_were_kept():
    old = Comparison(
        "x", "red_team", Conversation().human("?"), "a", "b", 0.5, "q", "judge", "multiple_choice",
        (says(0.8), says(0.7)), None, "ai", Provenance("m", "c", 0, ""),
    )  # fmt: skip
    found = raw_of(old)
    assert found.asked == (Asked("q", "AB", 0), Asked("q", "BA", 0))
    assert label(recipe(both_orders=True), found, IDS).prob_a == pytest.approx(0.55, abs=1e-5)
    first = raw_of(dataclasses.replace(old, option_logprobs=old.option_logprobs[:1]))
    assert first.asked == (Asked("q", "AB", 0),)


def test_far_away_log_probs_stay_finite():
    assert first_of_two(-1000.0, 0.0) == pytest.approx(0.0, abs=1e-300)
    assert first_of_two(0.0, -1000.0) == 1.0
    assert first_of_two(-3.0, -3.0) == 0.5
    assert first_of_two(math.log(0.03), math.log(0.01)) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mode": "guess"}, "compare.mode is 'guess'"),
        ({"principles": "some"}, "compare.principles is 'some'"),
        ({"target": "firm"}, "compare.target is 'firm'"),
        ({"chains": 0}, "compare.chains is 0; it must be at least 1."),
        ({"sharpness": 0.0}, "compare.sharpness is 0.0; it must be above 0."),
        ({"clamp": (0.55, 0.7)}, "compare.clamp is"),
    ],
)
def test_recipes_that_mean_nothing(changes, said):
    with pytest.raises(ValueError, match=said):
        recipe(**changes)
