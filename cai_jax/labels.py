"""From a feedback model's raw answers to a label: arithmetic alone, so that it can be done again.

Section 4.1 of arXiv 2212.08073 takes the normalised probability of (A) against (B) under one drawn
principle as the label, and clamps it to 0.4-0.6 with chain of thought. The other modes are from
later work: a direct rating (Lee et al., 2309.00267) and contrastive prompts (RLCD, 2307.12950).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from cai_jax.records import Asked, Comparison, Record

MODES = ("multiple_choice", "chain_of_thought", "rating", "contrastive")
PRINCIPLES = ("drawn", "all", "together")
TARGETS = ("soft", "hard")
TOGETHER = "*"  # stands for the whole constitution where a principle's id is due
RATINGS = tuple(range(1, 11))


class LabelError(ValueError):
    """Raw answers that do not hold what a label needs."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How raw answers become a label.

    Attributes:
      mode: "multiple_choice" asks for the better response, "chain_of_thought" lets the feedback
        model reason first, "rating" has each response rated from 1 to 10, "contrastive" compares
        how likely each response is under a prompt that keeps to the principle and one that breaks
        it.
      principles: "drawn" asks under one drawn principle, "all" under each in turn and averages,
        "together" under the whole constitution at once.
      both_orders: where both responses are shown, ask with them swapped too, and average.
      chains: how many chains of thought are averaged.
      target: "soft" takes the probability, "hard" 1 or 0, and 0.5 for a tie.
      clamp: (low, high) bounds of the label, after `target`; the paper's are (0, 1) without and
        (0.4, 0.6) with chain of thought.
      sharpness: log-odds of the label for a point of rating, or for a nat of contrast.
      per_token: in contrastive mode, divide each response's log-likelihood by its tokens.
    """

    mode: str
    principles: str
    both_orders: bool
    chains: int
    target: str
    clamp: tuple[float, float]
    sharpness: float
    per_token: bool

    def __post_init__(self):
        object.__setattr__(self, "clamp", tuple(self.clamp))
        for name, known in (("mode", MODES), ("principles", PRINCIPLES), ("target", TARGETS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"compare.{name} is '{getattr(self, name)}'; it must be one of {known}."
                )
        if len(self.clamp) != 2 or not 0 <= self.clamp[0] <= 0.5 <= self.clamp[1] <= 1:
            raise ValueError(
                f"compare.clamp is {self.clamp}; it must be (low, high) with "
                "0 <= low <= 0.5 <= high <= 1."
            )
        if self.chains < 1:
            raise ValueError(f"compare.chains is {self.chains}; it must be at least 1.")
        if not 0 < self.sharpness < math.inf:
            raise ValueError(f"compare.sharpness is {self.sharpness}; it must be above 0.")


@dataclasses.dataclass(frozen=True)
class Raw(Record):
    """All that a feedback model said of a pair.

    Attributes:
      id: the pair's.
      principle: id of the principle that was drawn for the pair.
      asked: the questions.
      option_logprobs: for each question, nats of its options: of (A) and (B) as they were shown,
        of the ten ratings, or of both responses.
      response_tokens: how many tokens response_a and response_b have; contrastive mode only.
      chains: for each question, the chain of thought before the choice; that mode only.
    """

    id: str
    principle: str
    asked: tuple[Asked, ...]
    option_logprobs: tuple[tuple[float, ...], ...]
    response_tokens: tuple[int, ...]
    chains: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)


@dataclasses.dataclass(frozen=True)
class Label(Raw):
    """A label with what it was made from.

    Attributes:
      prob_a: averaged over what was asked, then `Recipe.target` and `Recipe.clamp`.
      first_prob_a: probability of response_a where it was shown as (A), or by itself; not clamped.
      swapped_prob_a: the same where it was shown as (B); None where that was not asked.
    """

    prob_a: float
    first_prob_a: float
    swapped_prob_a: float | None


def raw_of(record: Comparison) -> Raw:
    """The raw answers that a record keeps, older records included."""
    asked = record.asked or tuple(
        Asked(record.principle, shown, 0)
        for shown, _ in zip(("AB", "BA"), record.option_logprobs, strict=False)
    )
    return Raw(
        record.id, record.principle, asked, record.option_logprobs, record.response_tokens,
        chains=record.chains,
    )  # fmt: skip


def questions(recipe: Recipe, drawn: str, principles: Sequence[str]) -> tuple[Asked, ...]:
    """What a label needs to have been asked.

    Args:
      drawn: id of the principle drawn for the pair.
      principles: ids of all comparison principles of the constitution.
    """
    under = {"drawn": (drawn,), "all": tuple(principles), "together": (TOGETHER,)}
    if recipe.mode in ("multiple_choice", "chain_of_thought"):
        shown = ("AB", "BA") if recipe.both_orders else ("AB",)
    else:
        shown = ("A", "B") if recipe.mode == "rating" else ("best", "worst")
    chains = recipe.chains if recipe.mode == "chain_of_thought" else 1
    return tuple(
        Asked(principle, how, chain)
        for principle in under[recipe.principles]
        for how in shown
        for chain in range(chains)
    )


def label(recipe: Recipe, raw: Raw, principles: Sequence[str]) -> Label:
    """The label of a pair; a mean of probabilities over principles, orders and chains.

    Raises:
      LabelError: something was not asked that the recipe needs.
    """
    found = _probabilities(recipe, raw, principles)
    first = _mean([p for _, shown, p in found if shown != "BA"])
    swapped = [p for _, shown, p in found if shown == "BA"]
    prob = _mean([p for *_, p in found])
    if recipe.target == "hard":
        near = round(prob, 6)  # a tie of two orders may come out a rounding error off
        prob = (near > 0.5) + 0.5 * (near == 0.5)
    low, high = recipe.clamp
    return Label(
        **{f.name: getattr(raw, f.name) for f in dataclasses.fields(Raw)},
        prob_a=min(max(prob, low), high),
        first_prob_a=first,
        swapped_prob_a=_mean(swapped) if swapped else None,
    )


def by_principle(recipe: Recipe, raw: Raw, principles: Sequence[str]) -> dict[str, float]:
    """The probability of response_a under each principle asked, before target and clamp.

    Raises:
      LabelError: as `label`.
    """
    found: dict[str, list[float]] = {}
    for principle, _, prob in _probabilities(recipe, raw, principles):
        found.setdefault(principle, []).append(prob)
    return {principle: _mean(probs) for principle, probs in found.items()}


def _probabilities(
    recipe: Recipe, raw: Raw, principles: Sequence[str]
) -> list[tuple[str, str, float]]:
    """(principle, how it was shown, probability of response_a) of each choice or comparison."""
    answers = dict(zip(raw.asked, raw.option_logprobs, strict=True))
    wanted = questions(recipe, raw.principle, principles)
    for asked in wanted:
        if asked not in answers:
            raise LabelError(
                f"comparison '{raw.id}' was not asked under principle '{asked.principle}', shown "
                f"'{asked.shown}', chain {asked.chain}, which {_settings(recipe)} needs; label it "
                "with the feedback model."
            )
    if recipe.mode in ("multiple_choice", "chain_of_thought"):
        return [
            # In the swapped order response_a stands at (B).
            (a.principle, a.shown, first_of_two(*answers[a][:: -1 if a.shown == "BA" else 1]))
            for a in wanted
        ]
    found = []
    for one, other in zip(wanted[::2], wanted[1::2], strict=True):
        if recipe.mode == "rating":
            a, b = expected_rating(answers[one]), expected_rating(answers[other])
        else:
            sizes = raw.response_tokens if recipe.per_token else (1, 1)
            a, b = (
                (best - worst) / max(size, 1)
                for best, worst, size in zip(answers[one], answers[other], sizes, strict=True)
            )
        found.append((one.principle, "", first_of_two(recipe.sharpness * (a - b), 0.0)))
    return found


def expected_rating(logprobs: Sequence[float]) -> float:
    """The mean of RATINGS under the normalised probabilities of their options."""
    most = max(logprobs)
    weights = [math.exp(x - most) for x in logprobs]
    return sum(r * w for r, w in zip(RATINGS, weights, strict=True)) / sum(weights)


def first_of_two(first: float, second: float) -> float:
    """Softmax of two log-probabilities, its first entry."""
    return 1 / (1 + math.exp(min(second - first, 700.0)))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _settings(recipe: Recipe) -> str:
    return (
        f"principles={recipe.principles}, both_orders={recipe.both_orders}, chains={recipe.chains}"
    )
