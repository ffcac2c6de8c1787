"""BIG-bench's helpful, honest and harmless comparisons (google/BIG-bench, arXiv 2112.00861)."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from cai_jax.conversation import Conversation, parse
from cai_jax.datasets import rows
from cai_jax.datasets.card import Dataset
from cai_jax.datasets.files import Published

SUBSETS = ("harmless", "helpful", "honest", "other")
HOME = "github.com/google/BIG-bench, bigbench/benchmark_tasks/hhh_alignment"


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt and two replies; `conversation` ends with a human turn."""

    id: str
    subset: str
    conversation: Conversation
    better: str
    worse: str


@dataclasses.dataclass(frozen=True)
class _Published:
    input: str
    target_scores: dict


def read(path: str | os.PathLike) -> list[Item]:
    """The items of one subset's task.json, such as hhh_alignment/harmless/task.json.

    Raises:
      ValueError: a bad entry, with file, entry and field.
      OSError: the file cannot be read.
    """
    path = Path(path)
    subset = path.parent.name
    items = []
    for number, (where, row) in enumerate(rows.read(_Published, path, "examples")):
        scores = {text: score for text, score in row.target_scores.items() if text.strip()}
        if sorted(scores.values()) != [0, 1]:
            raise ValueError(f"{where}: target_scores must give one reply 1 and one reply 0.")
        worse, better = sorted(scores, key=scores.get)
        # The file leaves out the name of the first speaker.
        said = row.input if row.input.startswith("\n\nHuman:") else f"\n\nHuman: {row.input}"
        conversation = parse(said)
        if conversation.turns[-1].role != "human" or not conversation.turns[-1].text.strip():
            raise ValueError(f"{where}: input must end with a human turn.")
        items.append(Item(f"hhh_alignment-{subset}-{number}", subset, conversation, better, worse))
    return items


def cards() -> tuple[Dataset, ...]:
    """The four subsets."""
    return tuple(
        Dataset(
            name=f"hhh_alignment/{subset}",
            what="a prompt and two replies, one of them better",
            licence="Apache-2.0",
            source=f"{HOME}, arXiv 2112.00861",
            defects="220 of the 221 items of the four subsets are also in cai_paper/hhh",
            row=Item,
            read=read,
            files=(("test", Published(f"{subset}/task.json", HOME)),),
        )
        for subset in SUBSETS
    )
