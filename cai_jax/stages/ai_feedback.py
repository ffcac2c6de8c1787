"""RL-CAI's data: two responses to each prompt, and a feedback model's choice between them.

Section 4.1: the label is the normalised probability of (A) against (B) under a drawn principle,
with or without a chain of thought before the choice. The paper asks in one order only; asking in
both and averaging cancels a feedback model's liking for a letter, which small ones have much of.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from cai_jax import prompts as prompt_texts
from cai_jax.conversation import Conversation
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding.engine import Engine
from cai_jax.decoding.respond import respond
from cai_jax.principles import ComparisonPrinciple, Constitution, draw
from cai_jax.prompts import CHOICES, Format
from cai_jax.records import Comparison, Provenance, Response
from cai_jax.script import Choose, Sample, Script, Transcript
from cai_jax.shards import Shards

MODES = ("multiple_choice", "chain_of_thought")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    response_tokens: limit of each of the two responses.
    temperature: of the responses; 1 in the paper.
    top_p: of the responses.
    mode: one of MODES.
    few_shots: how many of the constitution's examples stand before the question.
    both_orders: ask with the responses swapped too, and average.
    clamp: (low, high) bounds of the label; the paper's are (0, 1) without and (0.4, 0.6) with
      chain of thought.
    chain_tokens: limit of a chain of thought.
    chain_temperature: of a chain of thought.
    shard_size: prompts that are done, or after a kill done again, together.
    """

    response_tokens: int
    temperature: float
    top_p: float
    mode: str
    few_shots: int
    both_orders: bool
    clamp: tuple[float, float]
    chain_tokens: int
    chain_temperature: float
    shard_size: int

    def __post_init__(self):
        object.__setattr__(self, "clamp", tuple(self.clamp))
        if self.mode not in MODES:
            raise ValueError(f"compare.mode is '{self.mode}'; it must be one of {MODES}.")
        if len(self.clamp) != 2 or not 0 <= self.clamp[0] <= 0.5 <= self.clamp[1] <= 1:
            raise ValueError(
                f"compare.clamp is {self.clamp}; it must be (low, high) with "
                "0 <= low <= 0.5 <= high <= 1."
            )


@dataclasses.dataclass(frozen=True)
class Pair:
    """What is labelled: two responses to a prompt."""

    id: str
    prompt: Conversation
    response_a: str
    response_b: str


@dataclasses.dataclass(frozen=True)
class Label:
    """A feedback model's answer.

    Attributes:
      prob_a: averaged over the orders asked and clamped.
      principle: id of the drawn principle.
      option_logprobs: for each order, nats of (A) and (B) as they were shown.
      first_prob_a: probability of response_a when it was shown as (A), not clamped.
      swapped_prob_a: the same when it was shown as (B); None where that was not asked.
    """

    prob_a: float
    principle: str
    option_logprobs: tuple[tuple[float, float], ...]
    first_prob_a: float
    swapped_prob_a: float | None


def sample_pairs(
    settings: Settings,
    engine: Engine,
    form: Format,
    rows: list[PromptRow],
    directory: Path,
    seed: int,
    provenance: Provenance,
    progress: Callable[[int, int], None],
) -> list[Response]:
    """Two responses to each prompt, as records with sample 0 and 1, shard by shard."""
    parts = [rows[i : i + settings.shard_size] for i in range(0, len(rows), settings.shard_size)]
    shards = Shards(directory, len(parts))
    done = shards.done()
    for number, part in enumerate(parts):
        if number not in done:
            answers = respond(
                engine,
                form,
                [(row.id, row.conversation) for row in part],
                stream="compare/response",
                seed=seed,
                samples=2,
                max_new_tokens=settings.response_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
            )
            records = [
                Response(
                    id=row.id,
                    kind=row.kind,
                    prompt=row.conversation,
                    response=reply.text,
                    tokens=reply.tokens,
                    stop_reason=reply.stop_reason,
                    sample=n,
                    provenance=provenance,
                )
                for row, replies in zip(part, answers, strict=True)
                for n, reply in enumerate(replies)
            ]
            shards.write(number, records)
        progress(min((number + 1) * settings.shard_size, len(rows)), len(rows))
    return shards.read(Response)


def pairs_of(responses: Sequence[Response]) -> list[Pair]:
    """Pairs that differ, from records with samples 0 and 1 of each prompt."""
    firsts = {r.id: r for r in responses if r.sample == 0}
    seconds = {r.id: r for r in responses if r.sample == 1}
    return [
        Pair(name, first.prompt, first.response, seconds[name].response)
        for name, first in firsts.items()
        if first.response != seconds[name].response
    ]


def label_pairs(
    settings: Settings,
    engine: Engine,
    form: Format,
    constitution: Constitution,
    pairs: Sequence[Pair],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Label]:
    """Asks the feedback model about each pair, in one run of the engine."""
    principles = [draw(constitution.comparison, seed, "comparison", pair.id) for pair in pairs]
    orders = (False, True) if settings.both_orders else (False,)
    scripts = [
        _script(settings, form, constitution, pair, principle, swapped, seed)
        for pair, principle in zip(pairs, principles, strict=True)
        for swapped in orders
    ]
    answers = engine.run(scripts, seed, progress)
    return [
        _label(settings, principle, answers[i * len(orders) : (i + 1) * len(orders)])
        for i, principle in enumerate(principles)
    ]


def _script(
    settings: Settings,
    form: Format,
    constitution: Constitution,
    pair: Pair,
    principle: ComparisonPrinciple,
    swapped: bool,
    seed: int,
) -> Script:
    first, second = pair.response_a, pair.response_b
    if swapped:
        first, second = second, first
    shown = (constitution, settings.few_shots, seed, pair.prompt, principle, first, second)
    name = f"compare/{settings.mode}/{pair.id}/{'BA' if swapped else 'AB'}"
    if settings.mode == "multiple_choice":
        return Script((*prompt_texts.comparison(form, *shown), Choose(CHOICES)), name)
    stops = prompt_texts.reasoning_stops(form)
    return Script(
        (
            *prompt_texts.reasoned_comparison(form, *shown),
            Sample(settings.chain_tokens, stops, settings.chain_temperature),
            *prompt_texts.after_reasoning(form),
            Choose(CHOICES),
        ),
        name,
    )


def _label(settings: Settings, principle: ComparisonPrinciple, asked: list[Transcript]) -> Label:
    raw = tuple(transcript.segments[-1].option_logprobs for transcript in asked)
    # In the swapped order response_a stands at (B).
    probs = [first_of_two(*options[:: -1 if n else 1]) for n, options in enumerate(raw)]
    low, high = settings.clamp
    return Label(
        prob_a=min(max(sum(probs) / len(probs), low), high),
        principle=principle.id,
        option_logprobs=raw,
        first_prob_a=probs[0],
        swapped_prob_a=probs[1] if len(probs) == 2 else None,
    )


def first_of_two(first: float, second: float) -> float:
    """Softmax of two log-probabilities, its first entry."""
    return 1 / (1 + math.exp(min(second - first, 700.0)))


def compare(
    settings: Settings,
    engine: Engine,
    form: Format,
    constitution: Constitution,
    responses: list[Response],
    directory: Path,
    seed: int,
    labeler: str,
    provenance: Provenance,
    progress: Callable[[float, int], None],
) -> list[Comparison]:
    """Labels pairs of responses, shard by shard; each keeps its raw option log-probabilities."""
    pairs = pairs_of(responses)
    kinds = {r.id: r.kind for r in responses}
    size = settings.shard_size
    parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    shards = Shards(directory, len(parts))
    done = shards.done()
    for number, part in enumerate(parts):
        if number not in done:
            before, n = number * size, len(part)

            def asked(done: int, total: int, before=before, n=n) -> None:
                progress(before + n * done / total, len(pairs))

            labels = label_pairs(settings, engine, form, constitution, part, seed, asked)
            records = [
                Comparison(
                    id=pair.id,
                    kind=kinds[pair.id],
                    prompt=pair.prompt,
                    response_a=pair.response_a,
                    response_b=pair.response_b,
                    prob_a=label.prob_a,
                    principle=label.principle,
                    labeler=labeler,
                    mode=settings.mode,
                    option_logprobs=label.option_logprobs,
                    swapped_prob_a=label.swapped_prob_a,
                    source="ai",
                    provenance=provenance,
                )
                for pair, label in zip(part, labels, strict=True)
            ]
            shards.write(number, records)
        progress(min((number + 1) * size, len(pairs)), len(pairs))
    return shards.read(Comparison)
