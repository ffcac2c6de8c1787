"""RL-CAI's data: two responses to each prompt, and a feedback model's choice between them.

Section 4.1: the label is the normalised probability of (A) against (B) under a drawn principle,
with or without a chain of thought before the choice. The paper asks in one order only; asking in
both and averaging cancels a feedback model's liking for a letter, which small ones have much of.
`labels.Recipe` says which other ways there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from cai_jax.conversation import PaperFormat
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding.engine import Engine
from cai_jax.decoding.respond import respond
from cai_jax.decoding.schedule import ScriptError
from cai_jax.labels import Label, Raw, Recipe, label, questions
from cai_jax.principles import Constitution, draw
from cai_jax.prompts import Format
from cai_jax.questions import Pair, Questions, replies
from cai_jax.records import Asked, Comparison, Provenance, Response
from cai_jax.shards import Shards


@dataclasses.dataclass(frozen=True)
class Settings(Recipe):
    """Attributes, besides those of Recipe:
    response_tokens: limit of each of the two responses.
    temperature: of the responses; 1 in the paper.
    top_p: of the responses.
    few_shots: how many of the constitution's examples stand before the question.
    plain_text: ask in the paper's plain text, as a pretrained model is asked, though the feedback
      model has a chat template.
    chain_tokens: limit of a chain of thought.
    chain_temperature: of a chain of thought.
    shard_size: prompts that are done, or after a kill done again, together.
    """

    response_tokens: int
    temperature: float
    top_p: float
    few_shots: int
    plain_text: bool
    chain_tokens: int
    chain_temperature: float
    shard_size: int


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


def ask(
    settings: Settings,
    engine: Engine,
    form: Format,
    constitution: Constitution,
    wanted: Sequence[tuple[Pair, Sequence[Asked]]],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    refused: Callable[[ScriptError], None] | None = None,
) -> list[Raw | None]:
    """Asks the feedback model what is wanted of each pair, in one run of the engine.

    Args:
      refused: called with the error of each question that cannot fit; None is then returned for
        its pair. Without it the first such error is raised.
    """
    form = PaperFormat() if settings.plain_text else form
    common = Questions(
        settings.mode, form, constitution, settings.few_shots, settings.chain_tokens,
        settings.chain_temperature, seed,
    )  # fmt: skip
    drawn = [drawn_principle(constitution, seed, pair) for pair, _ in wanted]
    scripts = [
        common.script(pair, asked, name)
        for (pair, all_asked), name in zip(wanted, drawn, strict=True)
        for asked in all_asked
    ]
    more = {} if refused is None else {"refused": refused}
    answers = iter(engine.run(scripts, seed, progress, **more))
    found: list[Raw | None] = []
    for (pair, all_asked), name in zip(wanted, drawn, strict=True):
        transcripts = [next(answers) for _ in all_asked]
        if None in transcripts:
            found.append(None)
            continue
        options = [t.segments[-1].option_logprobs for t in transcripts]
        tokens: tuple[int, ...] = ()
        if settings.mode == "contrastive":
            texts = replies(form, pair)
            tokens = tuple(len(engine.tokenizer.encode(text)) for text in texts)
            options = [_with_empty(row, texts) for row in options]
        thoughts = (s.text.strip() for t in transcripts for s in t.segments if s.stop_reason)
        made = Raw(pair.id, name, tuple(all_asked), tuple(options), tokens, chains=tuple(thoughts))
        found.append(made)
    return found


def _with_empty(logprobs: tuple[float, ...], texts: tuple[str, str]) -> tuple[float, ...]:
    """Log-likelihoods of both texts, where an empty one was no option: nothing is certain."""
    given = iter(logprobs)
    return tuple(next(given) if text else 0.0 for text in texts)


def drawn_principle(constitution: Constitution, seed: int, pair: Pair) -> str:
    """Id of the principle drawn for a pair."""
    return draw(constitution.comparison, seed, "comparison", pair.id).id


def label_pairs(
    settings: Settings,
    engine: Engine,
    form: Format,
    constitution: Constitution,
    pairs: Sequence[Pair],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Label]:
    """Asks the feedback model about each pair and labels it."""
    ids = [p.id for p in constitution.comparison]
    wanted = [
        (pair, questions(settings, drawn_principle(constitution, seed, pair), ids))
        for pair in pairs
    ]
    raws = ask(settings, engine, form, constitution, wanted, seed, progress)
    return [label(settings, raw, ids) for raw in raws]


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
                    prob_a=made.prob_a,
                    principle=made.principle,
                    labeler=labeler,
                    mode=settings.mode,
                    option_logprobs=made.option_logprobs,
                    swapped_prob_a=made.swapped_prob_a,
                    source="ai",
                    provenance=provenance,
                    asked=made.asked,
                    response_tokens=made.response_tokens,
                    chains=made.chains,
                )
                for pair, made in zip(part, labels, strict=True)
            ]
            shards.write(number, records)
        progress(min((number + 1) * size, len(pairs)), len(pairs))
    return shards.read(Comparison)
