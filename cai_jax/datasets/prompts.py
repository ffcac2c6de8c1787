"""Readers: the shipped prompts, label pairs and helpful comparisons, and a user's own prompts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

from cai_jax import records
from cai_jax.conversation import Conversation, Turn, parse
from cai_jax.datasets import cai_prompts
from cai_jax.datasets.card import Dataset
from cai_jax.records import Kind


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """A prompt: `conversation` ends with a human turn; `category` is empty where none is given."""

    id: str
    kind: Kind
    category: str
    conversation: Conversation


@dataclasses.dataclass(frozen=True)
class HelpfulComparison:
    """A helpful prompt with a response worth preferring and a poor one, both written by people."""

    id: str
    prompt: Conversation
    good: str
    poor: str


@dataclasses.dataclass(frozen=True)
class LabelPair:
    """A clear-cut pair that measures a labeler; `kind` is "harmful" or "benign"."""

    id: str
    kind: str
    prompt: Conversation
    better: str
    worse: str


Row = TypeVar("Row", PromptRow, HelpfulComparison, LabelPair)


def prompts(kind: Kind, split: str) -> list[PromptRow]:
    """Shipped prompts of a kind; `split` is "train" or "test", in the shipped order."""
    return [
        PromptRow(row["id"], kind, row["category"], _conversation(row["turns"]))
        for row in cai_prompts.rows(kind, split)
    ]


def helpful_comparisons(split: str) -> list[HelpfulComparison]:
    """Shipped helpful prompts with their good and poor responses."""
    return [
        HelpfulComparison(row["id"], _conversation(row["turns"]), row["good"], row["poor"])
        for row in cai_prompts.rows("helpful", split)
    ]


def label_pairs() -> list[LabelPair]:
    """The shipped clear-cut pairs, half benign."""
    return [
        LabelPair(row["id"], row["kind"], _conversation(row["turns"]), row["better"], row["worse"])
        for row in cai_prompts.rows("label_pairs", "test")
    ]


def read_prompts(path: str | os.PathLike, kind: Kind = "red_team") -> list[PromptRow]:
    """A user's own prompts, one JSON object a line.

    A row holds {"prompt": TEXT} or {"turns": [{"role": ROLE, "text": TEXT}, ...]}, and may hold an
    "id" and a "category"; other fields are ignored. A TEXT that begins "\\n\\nHuman:" is read as a
    dialogue in the paper's format. Without an "id" the row is named by the hash of its turns, so
    its samples stay the same when rows around it come and go.

    Raises:
      ValueError: an empty file, or the file, line and field of the first bad row.
      OSError: the file cannot be read.
    """
    return _rows(path, lambda where, row: _prompt_row(where, row, kind), "prompt")


def read_comparisons(path: str | os.PathLike) -> list[HelpfulComparison]:
    """A user's own helpful comparisons: rows as `read_prompts` takes them, with "good" and "poor".

    Raises:
      ValueError, OSError: as `read_prompts`.
    """

    def comparison(where: str, row: Any) -> HelpfulComparison:
        prompt = _prompt_row(where, row, "helpful")
        good, poor = (_text(where, name, row.get(name)) for name in ("good", "poor"))
        return HelpfulComparison(prompt.id, prompt.conversation, good, poor)

    return _rows(path, comparison, "comparison")


def read_label_pairs(path: str | os.PathLike) -> list[LabelPair]:
    """A user's own clear-cut pairs: rows as `read_prompts` takes them, with "kind", which is
    "harmful" or "benign", "better" and "worse".

    Raises:
      ValueError, OSError: as `read_prompts`.
    """

    def pair(where: str, row: Any) -> LabelPair:
        prompt = _prompt_row(where, row, "red_team")
        kind, better, worse = (
            _text(where, name, row.get(name)) for name in ("kind", "better", "worse")
        )
        if kind not in ("harmful", "benign"):
            raise ValueError(f"{where}: kind must be harmful or benign, not {kind!r}.")
        return LabelPair(prompt.id, kind, prompt.conversation, better, worse)

    return _rows(path, pair, "pair")


def _rows(path: str | os.PathLike, make: Callable[[str, Any], Row], noun: str) -> list[Row]:
    """The rows of a file of JSON lines, each with an id of its own.

    Args:
      make: of (file and line, row).
    """
    found: dict[str, tuple[str, Row]] = {}
    for where, row in records.read_rows(path):
        made = make(where, row)
        if made.id in found:
            first = found[made.id][0].rsplit(", ", 1)[1]
            what = f"the id {made.id!r}" if "id" in row else f"the {noun}"
            raise ValueError(f"{where}: {what} already stands on {first}; keep one of them.")
        found[made.id] = (where, made)
    if not found:
        raise ValueError(f"{path}: the file holds no {noun}s; write one JSON object a line.")
    return [row for _, row in found.values()]


def cards() -> tuple[Dataset, ...]:
    """A file of the user's."""
    return (
        Dataset(
            name="prompts",
            what="your own, as JSON lines: prompt or turns",
            licence="yours",
            source="a file of yours",
            defects="as measured below",
            row=PromptRow,
            read=read_prompts,
        ),
    )


def _prompt_row(where: str, row: Any, kind: Kind) -> PromptRow:
    if not isinstance(row, dict):
        raise ValueError(f'{where}: the row must be a JSON object such as {{"prompt": "..."}}.')
    if ("prompt" in row) == ("turns" in row):
        found = "both" if "prompt" in row else "neither"
        raise ValueError(f'{where}: give the field "prompt" or the field "turns", not {found}.')
    if "prompt" in row:
        conversation = _from_text(where, row["prompt"])
    else:
        conversation = _from_turns(where, row["turns"])
    _check_roles(where, conversation)
    content = json.dumps([[turn.role, turn.text] for turn in conversation.turns])
    name = row.get("id", "prompt-" + hashlib.sha256(content.encode()).hexdigest()[:12])
    category = _text(where, "category", row["category"]) if row.get("category") else ""
    return PromptRow(_text(where, "id", name), kind, category, conversation)


def _from_text(where: str, value: Any) -> Conversation:
    text = _text(where, "prompt", value)
    if not text.startswith("\n\nHuman:"):
        return Conversation((Turn("human", text),))
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{where}: prompt: {error}") from error


def _from_turns(where: str, value: Any) -> Conversation:
    if not isinstance(value, list) or not value:
        raise ValueError(f'{where}: turns must be a list of {{"role", "text"}} objects.')
    turns = []
    for index, turn in enumerate(value):
        for field in ("role", "text"):
            if not isinstance(turn, dict) or field not in turn:
                raise ValueError(f"{where}: turns[{index}] lacks the field {field}.")
        role = turn["role"]
        if role not in ("system", "human", "assistant"):
            raise ValueError(
                f"{where}: turns[{index}].role must be system, human or assistant, not {role!r}."
            )
        turns.append(Turn(role, _text(where, f"turns[{index}].text", turn["text"])))
    return Conversation(tuple(turns))


def _check_roles(where: str, conversation: Conversation) -> None:
    roles = [turn.role for turn in conversation.turns]
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or spoken[-1] != "human":
        raise ValueError(f"{where}: the last turn must be human, since the assistant answers it.")
    if spoken != ["human", "assistant"] * (len(spoken) // 2) + ["human"]:
        raise ValueError(
            f"{where}: turns must alternate human, assistant, human (a system turn may come "
            f"first), not {', '.join(roles)}."
        )


def _text(where: str, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {field} must be text, not {json.dumps(value)[:40]}.")
    if not value.strip():
        raise ValueError(f"{where}: {field} is empty; write its text or remove the row.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where}: {field} holds half of a surrogate pair; save it as UTF-8.")
    return value


def _conversation(turns: list[dict]) -> Conversation:
    return Conversation(tuple(Turn(turn["role"], turn["text"]) for turn in turns))
