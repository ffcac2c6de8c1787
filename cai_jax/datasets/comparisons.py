"""Comparisons by people: two replies to a prompt, one of them preferred; readers of your own."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import random
from typing import Literal

from cai_jax import records
from cai_jax.conversation import Conversation, parse
from cai_jax.datasets import rows
from cai_jax.datasets.card import Dataset
from cai_jax.records import Kind


@dataclasses.dataclass(frozen=True)
class HumanComparison:
    """A reply that was preferred to another; `prompt`, of any length, ends with a human turn."""

    id: str
    kind: Kind
    prompt: Conversation
    chosen: str
    rejected: str

    def record(
        self, labeler: str, provenance: records.Provenance, seed: int = 0
    ) -> records.Comparison:
        """The comparison as a preference model's training record; which reply is A is drawn."""
        first = random.Random(f"{seed} order {self.id}").random() < 0.5
        return records.Comparison(
            id=self.id,
            kind=self.kind,
            prompt=self.prompt,
            response_a=self.chosen if first else self.rejected,
            response_b=self.rejected if first else self.chosen,
            prob_a=float(first),
            principle="",
            labeler=labeler,
            mode="human",
            option_logprobs=(),
            swapped_prob_a=None,
            source="human",
            provenance=provenance,
        )


@dataclasses.dataclass(frozen=True)
class Dialogues:
    """Two whole dialogues, the first preferred; as published, so they may differ anywhere."""

    id: str
    chosen: Conversation
    rejected: Conversation

    @property
    def conversation(self) -> Conversation:
        """The turns that both have, up to the first that differs."""
        pairs = zip(self.chosen.turns, self.rejected.turns, strict=False)
        count = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if count is None:
            count = min(len(self.chosen.turns), len(self.rejected.turns))
        return Conversation(self.chosen.turns[:count])

    def comparison(self, kind: Kind) -> HumanComparison | None:
        """Prompt and two replies; None unless the dialogues differ in one last reply each."""
        prompt = self.conversation
        if not prompt.turns or prompt.turns[-1].role != "human":
            return None
        replies = [d.turns[len(prompt.turns) :] for d in (self.chosen, self.rejected)]
        if not all(len(r) == 1 and r[0].role == "assistant" and r[0].text.strip() for r in replies):
            return None
        return HumanComparison(self.id, kind, prompt, replies[0][0].text, replies[1][0].text)


@dataclasses.dataclass(frozen=True)
class _Own:
    chosen: str | None = None
    rejected: str | None = None
    prompt: str | None = None
    response_a: str | None = None
    response_b: str | None = None
    preferred: Literal["a", "b", ""] = ""
    id: str | None = None


def read(path: str | os.PathLike, kind: Kind) -> list[HumanComparison]:
    r"""Your own comparisons: JSON lines, or CSV with a header, gzipped or not.

    A row holds one of
      chosen, rejected                          two dialogues "\n\nHuman: ...\n\nAssistant: ..."
      prompt, chosen, rejected                  a prompt and two replies
      prompt, response_a, response_b, preferred a prompt and two replies; preferred is "a" or "b"
    where a prompt is a human turn, or a dialogue that begins "\n\nHuman:" and ends with a human
    turn. It may hold an "id"; other fields are ignored. Without an id the row is named by the hash
    of its content.

    Raises:
      ValueError: an empty file, a row said twice, or the file, line and field of a bad row.
      OSError: the file cannot be read.
    """
    found: dict[str, tuple[str, HumanComparison]] = {}
    for where, row in rows.read(_Own, path):
        comparison = _comparison(where, row, kind)
        if comparison.id in found:
            first = found[comparison.id][0].rsplit(", ", 1)[1]
            raise ValueError(
                f"{where}: the comparison {comparison.id!r} already stands on {first}; keep one of "
                "them."
            )
        found[comparison.id] = (where, comparison)
    return [comparison for _, comparison in found.values()]


def _comparison(where: str, row: _Own, kind: Kind) -> HumanComparison:
    if row.response_a is not None or row.response_b is not None:
        texts = {"prompt": row.prompt, "response_a": row.response_a, "response_b": row.response_b}
        if row.preferred not in ("a", "b"):
            raise ValueError(f'{where}: preferred must be "a" or "b".')
    else:
        texts = {"chosen": row.chosen, "rejected": row.rejected}
        texts |= {} if row.prompt is None else {"prompt": row.prompt}
    for field, text in texts.items():
        if text is None or not text.strip():
            raise ValueError(f"{where}: {field} is missing or empty.")
    content = json.dumps([row.prompt, *texts.values(), row.preferred])
    name = row.id or "comparison-" + hashlib.sha256(content.encode()).hexdigest()[:12]
    if row.prompt is None:
        return _from_dialogues(where, name, row, kind)
    prompt = _dialogue(where, "prompt", row.prompt)
    if prompt.turns[-1].role != "human":
        raise ValueError(f"{where}: prompt must end with a human turn, which the replies answer.")
    if "chosen" in texts:
        for field in ("chosen", "rejected"):
            if texts[field].startswith("\n\nHuman:"):
                raise ValueError(
                    f"{where}: {field} must be the reply alone, since prompt is given."
                )
        return HumanComparison(name, kind, prompt, row.chosen, row.rejected)
    better, worse = row.response_a, row.response_b
    if row.preferred == "b":
        better, worse = worse, better
    return HumanComparison(name, kind, prompt, better, worse)


def _from_dialogues(where: str, name: str, row: _Own, kind: Kind) -> HumanComparison:
    dialogues = [_dialogue(where, f, getattr(row, f)) for f in ("chosen", "rejected")]
    comparison = Dialogues(name, *dialogues).comparison(kind)
    if comparison is None:
        raise ValueError(
            f"{where}: chosen and rejected must be the same dialogue but for one last assistant "
            "turn; or give prompt, chosen and rejected apart."
        )
    return comparison


def _dialogue(where: str, field: str, text: str) -> Conversation:
    if field == "prompt" and not text.startswith("\n\nHuman:"):
        return Conversation().human(text)
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{where}: {field}: {error}") from error


def cards() -> tuple[Dataset, ...]:
    """A file of the user's."""
    return (
        Dataset(
            name="comparisons",
            what="your own, as JSON lines or CSV: chosen and rejected, or prompt, response_a, "
            "response_b and preferred",
            licence="yours",
            source="a file of yours",
            defects="as measured below",
            row=HumanComparison,
            read=functools.partial(read, kind="helpful"),
        ),
    )
