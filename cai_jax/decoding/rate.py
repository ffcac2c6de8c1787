"""A feedback model's rating of single responses: direct RLAIF's score, without a preference model.

The question is that of the label mode "rating"; the number is the expected rating from 1 to 10
under the model's probabilities, put on a scale from -1 to 1 (Lee et al., 2309.00267).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cai_jax.conversation import Conversation
from cai_jax.decoding.engine import Engine
from cai_jax.decoding.schedule import compile_script
from cai_jax.labels import RATINGS, expected_rating
from cai_jax.models.transformer import Params
from cai_jax.principles import ComparisonPrinciple, Constitution, draw
from cai_jax.prompts import Format
from cai_jax.questions import RATED, rating
from cai_jax.script import Choose, Script
from cai_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Judge:
    """A feedback model that rates responses.

    Attributes:
      engine: decodes with the feedback model; holds its weights only while it rates.
      params: the feedback model's.
      form: how it reads.
      constitution: whose comparison principles are drawn from.
      seed: of the draws.
    """

    engine: Engine
    params: Params
    form: Format
    constitution: Constitution
    seed: int


@dataclasses.dataclass(frozen=True)
class Rated:
    """A rating. Attributes: score, in [-1, 1]; principle, the id of the one it was made by."""

    score: float
    principle: str


def rate(judge: Judge, texts: Sequence[tuple[str, int, Conversation, str]]) -> list[Rated]:
    """Rates responses, each by the principle drawn for its prompt.

    Args:
      texts: (name of the prompt, which of its responses, prompt, response). Responses of one name
        are rated by the same principle, so that they can be compared.
    """
    drawn = [_principle(judge, name) for name, *_ in texts]
    scripts = [
        _question(judge.form, principle, prompt, response, f"rating/{name}/{sample}")
        for principle, (name, sample, prompt, response) in zip(drawn, texts, strict=True)
    ]
    judge.engine.params = judge.params
    answers = judge.engine.run(scripts, judge.seed)
    judge.engine.params = None  # lets go of its own layout of the weights while others train
    return [
        Rated(rescaled(expected_rating(answer.segments[-1].option_logprobs)), principle.id)
        for answer, principle in zip(answers, drawn, strict=True)
    ]


def rescaled(points: float) -> float:
    """A rating from 1 to 10 on a scale from -1 to 1."""
    least, most = RATINGS[0], RATINGS[-1]
    return (2 * points - least - most) / (most - least)


def check_room(
    tokenizer: Tokenizer,
    form: Format,
    constitution: Constitution,
    prompts: Sequence[Conversation],
    response_tokens: int,
    limit: int,
) -> None:
    """Refuses prompts whose question, by the longest principle, cannot fit.

    Args:
      tokenizer, form: the feedback model's.
      response_tokens: the most that a response can add.
      limit: tokens of the longest question that can be asked.

    Raises:
      ValueError: naming the remedy.
    """
    longest = max(constitution.comparison, key=lambda p: len(tokenizer.encode(p.instruction)))
    questions = (_question(form, longest, prompt, "", "") for prompt in prompts)
    needs = response_tokens + max(compile_script(q, tokenizer).longest for q in questions)
    if needs > limit:
        raise ValueError(
            f"to rate a response the feedback model can need {needs} tokens, and "
            f"config.engine.max_length or its context is {limit}; raise config.engine.max_length "
            "or lower config.ppo.prompt_tokens."
        )


def _principle(judge: Judge, name: str) -> ComparisonPrinciple:
    return draw(judge.constitution.comparison, judge.seed, "rating", name)


def _question(
    form: Format, principle: ComparisonPrinciple, prompt: Conversation, response: str, name: str
) -> Script:
    return Script((*rating(form, principle, prompt, response), Choose(RATED)), name)
