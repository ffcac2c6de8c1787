"""New prompts by showing a pretrained model a list of others, which it goes on with (section 3.2).

The paper got 140,335 of its 182,831 red-team prompts so, and does not print what the model read;
Bai et al. (2204.05862, section 4.3) showed about ten examples. HEADERS and the numbered list are
ours. Every list has examples of its own, drawn by (seed, kind, number of the list).
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from cai_jax.datasets.dedup import repeats
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding.engine import Engine
from cai_jax.principles import draw
from cai_jax.records import Kind, Provenance, Record
from cai_jax.script import Force, Sample, Script
from cai_jax.shards import Shards

HEADERS: dict[str, str] = {
    "red_team": "Things that people said to an AI assistant to see whether it would answer with "
    "something harmful, unkind or against the law:\n\n",
    "helpful": "Questions and tasks that people brought to an AI assistant because they wanted "
    "help:\n\n",
}
CLOSINGS = ".?!…\"”')"  # what a prompt may end with, besides a letter or a digit

# Why a sampled text is dropped, in the order in which it is asked.
REASONS = (
    "empty",
    "cut off at the token limit",
    "too short",
    "too long",
    "too few Latin letters",
    "ends in the middle",
    "copy of an example",
    "copy of a held-out prompt",
    "said before",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    red_team, helpful: how many prompts of each kind to sample; fewer are kept.
    shown: examples in a list.
    prompt_tokens: the most that are sampled for a prompt; one that is not done by then is dropped.
    temperature, top_p: of sampling.
    shard_size: prompts that are done, or after a kill done again, together.
    """

    red_team: int
    helpful: int
    shown: int
    prompt_tokens: int
    temperature: float
    top_p: float
    shard_size: int


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which sampled texts are prompts; a change of these asks the model nothing.

    Attributes:
      least_words, most_words: of a prompt.
      letters: the least share of Latin letters among a prompt's characters, spaces left out.
      ngram: characters in an n-gram.
      similarity: from which Jaccard similarity of n-grams on two prompts are the same.
    """

    least_words: int
    most_words: int
    letters: float
    ngram: int
    similarity: float


@dataclasses.dataclass(frozen=True)
class Generated(Record):
    """One sampled text. Attributes: stop_reason as in script.SegmentResult; examples, the ids of
    the prompts that were shown, in order."""

    id: str
    kind: Kind
    text: str
    stop_reason: str
    examples: tuple[str, ...]
    provenance: Provenance


def one_line(row: PromptRow) -> str:
    """A prompt as a line of a list: its first human turn, line breaks and runs of spaces as one."""
    return " ".join(next(t.text for t in row.conversation.turns if t.role == "human").split())


def listed(kind: Kind, rows: Sequence[PromptRow]) -> tuple[Force, ...]:
    """A numbered list of prompts, up to where the text of the next one is written."""
    lines = "".join(f"{n}. {one_line(row)}\n" for n, row in enumerate(rows, start=1))
    return (Force(HEADERS[kind]), Force(f"{lines}{len(rows) + 1}."))


def drawn(
    rows: Sequence[PromptRow], shown: int, seed: int, kind: Kind, number: int
) -> list[PromptRow]:
    """So many different prompts, in the order in which they were drawn.

    Raises:
      ValueError: there are fewer.
    """
    if shown > len({row.id for row in rows}):
        raise ValueError(
            f"config.generate.shown is {shown}, and there are {len(rows)} {kind} prompts to show; "
            "lower it or give more examples."
        )
    found: dict[str, PromptRow] = {}
    attempt = 0
    while len(found) < shown:
        row = draw(rows, seed, "generate/examples", kind, number, attempt)
        found.setdefault(row.id, row)
        attempt += 1
    return list(found.values())


def sample(
    settings: Settings,
    engine: Engine,
    kind: Kind,
    count: int,
    rows: Sequence[PromptRow],
    directory: Path,
    seed: int,
    provenance: Provenance,
    progress: Callable[[int, int], None],
) -> list[Generated]:
    """`count` sampled texts, shard by shard; finished shards are kept.

    Args:
      rows: the prompts of which every list shows some.

    Raises:
      ValueError: there are fewer rows than a list shows.
    """
    size = settings.shard_size
    shards = Shards(directory, -(-count // size))
    done = shards.done()
    written = Sample(settings.prompt_tokens, ("\n",), settings.temperature, settings.top_p)
    for part in range(shards.count):
        numbers = range(part * size, min((part + 1) * size, count))
        if part not in done:
            lists = [drawn(rows, settings.shown, seed, kind, number) for number in numbers]
            scripts = [
                Script((*listed(kind, shown), written), id=f"generate/{kind}/{number}")
                for number, shown in zip(numbers, lists, strict=True)
            ]

            def underway(asked: int, _: int, before=numbers.start) -> None:
                progress(before + asked, count)

            ends = [t.segments[-1] for t in engine.run(scripts, seed, underway)]
            shards.write(
                part,
                [
                    Generated(
                        id=f"generated-{kind}-{number}",
                        kind=kind,
                        text=end.text.strip(),
                        stop_reason=end.stop_reason,
                        examples=tuple(row.id for row in shown),
                        provenance=provenance,
                    )
                    for number, end, shown in zip(numbers, ends, lists, strict=True)
                ],
            )
        progress(numbers.stop, count)
    return shards.read(Generated)


def keep(
    filters: Filters,
    texts: Sequence[Generated],
    examples: Sequence[PromptRow],
    held_out: Sequence[PromptRow],
) -> tuple[list[Generated], Counter[str]]:
    """The texts that are new prompts, and how many were dropped for each of REASONS.

    Args:
      examples: all prompts that could be shown, whether or not a text's list showed them.
      held_out: prompts that measure the models, which must not be trained on.
    """
    reasons = [_fault(filters, text) for text in texts]
    whole = [text for text, reason in zip(texts, reasons, strict=True) if not reason]
    known = [one_line(row) for row in (*examples, *held_out)]
    again = repeats([t.text for t in whole], known, filters.ngram, filters.similarity)
    kept = []
    dropped = Counter(reason for reason in reasons if reason)
    for text, repeat in zip(whole, again, strict=True):
        if repeat is None:
            kept.append(text)
        elif not repeat.known:
            dropped["said before"] += 1
        else:
            of = "an example" if repeat.of < len(examples) else "a held-out prompt"
            dropped[f"copy of {of}"] += 1
    return kept, dropped


def _fault(filters: Filters, made: Generated) -> str:
    """Why a text by itself is no prompt; empty where it may be one."""
    text, words = made.text, len(made.text.split())
    if not text:
        return "empty"
    if made.stop_reason == "length":
        return "cut off at the token limit"
    if words < filters.least_words:
        return "too short"
    if words > filters.most_words:
        return "too long"
    characters = [c for c in text if not c.isspace()]
    if sum(map(_latin, characters)) < filters.letters * len(characters):
        return "too few Latin letters"
    if not (text[-1].isalnum() or text[-1] in CLOSINGS):
        return "ends in the middle"
    return ""


def _latin(character: str) -> bool:
    return character.isalpha() and unicodedata.name(character, "").startswith("LATIN ")
