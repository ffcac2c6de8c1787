"""SL-CAI's data: answer a red-team prompt, criticise the answer, revise it, again and again.

Section 3.1: the (prompt, revision) pair takes the place of (prompt, response) in the next round, so
earlier critiques are out of context; each round draws its principle anew, with replacement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from cai_jax import prompts as prompt_texts
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding.engine import Engine
from cai_jax.decoding.respond import respond
from cai_jax.principles import Constitution, CritiquePrinciple, draw, first_principles
from cai_jax.prompts import Format
from cai_jax.records import Provenance, Response, Revision, RevisionStep
from cai_jax.script import Sample, Script, Segment, SegmentResult
from cai_jax.shards import Shards


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    rounds: critique-revision pairs for each prompt; the paper's is 4.
    critique: whether a critique comes before each revision; without, it is direct (figure 7).
    principles: how many of the constitution's critique principles are drawn from, the first so many
      in an order that the seed draws (figure 6); 0 stands for all.
    few_shots: how many of the constitution's critique examples stand before the prompt.
    response_tokens, critique_tokens, revision_tokens: limits of each sampled part.
    temperature: 1 in the paper.
    top_p: 1 in the paper.
    helpful_samples: responses to each helpful prompt; the paper's is 2.
    shard_size: prompts that are done, or after a kill done again, together.
    """

    rounds: int
    critique: bool
    principles: int
    few_shots: int
    response_tokens: int
    critique_tokens: int
    revision_tokens: int
    temperature: float
    top_p: float
    helpful_samples: int
    shard_size: int


def revise(
    settings: Settings,
    engine: Engine,
    form: Format,
    constitution: Constitution,
    rows: list[PromptRow],
    directory: Path,
    seed: int,
    provenance: Provenance,
    progress: Callable[[float, int, list[Revision]], None],
) -> list[Revision]:
    """Critique-revision chains of red-team prompts, shard by shard; finished shards are kept.

    Args:
      progress: called with (prompts done, all, the newest records); prompts underway count in part.

    Raises:
      ValueError: the constitution has fewer critique principles than the settings ask for.
    """
    in_force = first_principles(constitution.critique, settings.principles, seed)
    constitution = dataclasses.replace(constitution, critique=in_force)
    parts = split(rows, settings.shard_size)
    shards = Shards(directory, len(parts))
    done = shards.done()
    for number, part in enumerate(parts):
        records: list[Revision] = []
        if number not in done:
            before, n = number * settings.shard_size, len(part)

            def underway(share: float, before=before, n=n) -> None:
                progress(before + share * n, len(rows), [])

            records = _revise_part(
                settings, engine, form, constitution, part, seed, provenance, underway
            )
            shards.write(number, records)
        progress(min((number + 1) * settings.shard_size, len(rows)), len(rows), records)
    return shards.read(Revision)


def _revise_part(
    settings: Settings,
    engine: Engine,
    form: Format,
    constitution: Constitution,
    rows: list[PromptRow],
    seed: int,
    provenance: Provenance,
    progress: Callable[[float], None],
) -> list[Revision]:
    first = respond(
        engine,
        form,
        [(row.id, row.conversation) for row in rows],
        stream="revise/response",
        seed=seed,
        samples=1,
        max_new_tokens=settings.response_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        progress=lambda done, total: progress(done / total / (1 + settings.rounds)),
    )
    latest = [reply.text for (reply,) in first]
    steps: list[list[RevisionStep]] = [[] for _ in rows]
    stops = prompt_texts.step_stops(form)
    critique = Sample(settings.critique_tokens, stops, settings.temperature, settings.top_p)
    revision = Sample(settings.revision_tokens, stops, settings.temperature, settings.top_p)
    examples = constitution.critique_examples[: settings.few_shots]

    def segments(row: PromptRow, text: str, principle: CritiquePrinciple) -> tuple[Segment, ...]:
        asked = form, examples, row.conversation, text, principle
        if not settings.critique:
            return (*prompt_texts.direct_revision(*asked), revision)
        after = prompt_texts.revision(form, principle)
        return (*prompt_texts.critique(*asked), critique, *after, revision)

    for number in range(settings.rounds):

        def step(done: int, total: int, number=number) -> None:
            progress((1 + number + done / total) / (1 + settings.rounds))

        principles = [
            draw(constitution.critique, seed, "critique principle", row.id, number) for row in rows
        ]
        scripts = [
            Script(segments(row, text, principle), id=f"revise/{row.id}/{number}")
            for row, text, principle in zip(rows, latest, principles, strict=True)
        ]
        for i, transcript in enumerate(engine.run(scripts, seed, step)):
            *critiques, rewritten = (s for s in transcript.segments if s.stop_reason)
            said = critiques[0] if critiques else SegmentResult()
            latest[i] = rewritten.text.strip()
            steps[i].append(
                RevisionStep(
                    principle=principles[i].id,
                    critique=said.text.strip(),
                    revision=latest[i],
                    revision_stop_reason=rewritten.stop_reason,
                    critique_stop_reason=said.stop_reason,
                )
            )
    return [
        Revision(row.id, row.kind, row.conversation, reply.text, tuple(chain), provenance)
        for row, (reply,), chain in zip(rows, first, steps, strict=True)
    ]


def answer_helpful(
    settings: Settings,
    engine: Engine,
    form: Format,
    rows: list[PromptRow],
    directory: Path,
    seed: int,
    provenance: Provenance,
    progress: Callable[[int, int], None],
) -> list[Response]:
    """The model's own responses to helpful prompts, which keep SL-CAI helpful (section 3.2)."""
    parts = split(rows, settings.shard_size)
    shards = Shards(directory, len(parts))
    done = shards.done()
    for number, part in enumerate(parts):
        if number not in done:
            answers = respond(
                engine,
                form,
                [(row.id, row.conversation) for row in part],
                stream="revise/helpful",
                seed=seed,
                samples=settings.helpful_samples,
                max_new_tokens=settings.response_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
            )
            shards.write(
                number,
                [
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
                ],
            )
        progress(min((number + 1) * settings.shard_size, len(rows)), len(rows))
    return shards.read(Response)


def split(rows: list, size: int) -> list[list]:
    """Consecutive parts of at most `size`."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]
