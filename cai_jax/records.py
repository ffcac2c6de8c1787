"""Records: what a stage leaves behind, as typed rows with provenance, and as lines of JSON.

A record is a frozen dataclass whose floats are rounded to six significant digits and whose lists
become tuples when it is made, so a record in memory equals the same record read back, and the same
run writes the same bytes whether or not it was interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import math
import os
import types
import typing
import zlib
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

from cai_jax import storage
from cai_jax.conversation import Conversation, Turn

Kind = Literal["red_team", "helpful"]
T = TypeVar("T")


class Record:
    """Base of every record type: normalises its fields when made.

    Lists become tuples, floats are rounded to six significant digits, and a float field takes an
    int. ValueError on a float that is not finite, or a probability outside [0, 1].
    """

    def __post_init__(self):
        hints = _hints(type(self))
        for field in dataclasses.fields(self):
            value = _normal(getattr(self, field.name), f"{type(self).__name__}.{field.name}")
            if type(value) is int and hints[field.name] in (float, float | None):
                value = float(value)
            if "prob_a" in field.name and value is not None and not 0 <= value <= 1:
                raise ValueError(f"{type(self).__name__}.{field.name} is {value}, not in [0, 1].")
            object.__setattr__(self, field.name, value)


@dataclasses.dataclass(frozen=True)
class Provenance(Record):
    """Where a record comes from.

    Attributes:
      model: name and fingerprint of the weights that wrote it.
      constitution: name and content hash of the constitution in force.
      seed: the run's seed.
      commit: code commit, empty where unknown.
    """

    model: str
    constitution: str
    seed: int
    commit: str


@dataclasses.dataclass(frozen=True)
class Response(Record):
    """One sampled answer to a prompt.

    Attributes:
      prompt: the conversation up to the assistant's turn; ends with a human turn.
      tokens: the sampled token ids of the response.
      stop_reason: "end", "stop" or "length", as in `script.SegmentResult`.
      sample: which of several answers to the same prompt, from 0.
    """

    id: str
    kind: Kind
    prompt: Conversation
    response: str
    tokens: tuple[int, ...]
    stop_reason: str
    sample: int
    provenance: Provenance


@dataclasses.dataclass(frozen=True)
class RevisionStep(Record):
    """One round of critique and revision; `principle` is the drawn CritiquePrinciple's id.

    Of a revision without a critique, `critique` and `critique_stop_reason` are empty.
    """

    principle: str
    critique: str
    revision: str
    revision_stop_reason: str
    critique_stop_reason: str


@dataclasses.dataclass(frozen=True)
class Revision(Record):
    """A prompt, the initial response and its revisions in order (arXiv 2212.08073, section 3)."""

    id: str
    kind: Kind
    prompt: Conversation
    initial_response: str
    steps: tuple[RevisionStep, ...]
    provenance: Provenance


@dataclasses.dataclass(frozen=True)
class Asked(Record):
    """One question that a feedback model was asked about a pair.

    Attributes:
      principle: the ComparisonPrinciple's id, or "*" for the whole constitution at once.
      shown: what the model saw: both responses in this order ("AB", "BA"), one of them ("A", "B"),
        or a system prompt that asks for the best or the worst answer ("best", "worst").
      chain: which of several chains of thought, from 0.
    """

    principle: str
    shown: str
    chain: int


@dataclasses.dataclass(frozen=True)
class Comparison(Record):
    """Two responses to a prompt and the probability that (A) is better (section 4.1).

    Attributes:
      prob_a: the label that trains the preference model; what `labels.label` makes of the raw
        answers under the run's settings.
      principle: the ComparisonPrinciple's id that was drawn for the pair, whether or not it alone
        was asked; empty for a human label.
      labeler: name of the feedback model, or who labelled.
      mode: how the label was made, one of `labels.MODES`, or "human".
      option_logprobs: for each question asked, the raw log-probabilities in nats of its options.
      swapped_prob_a: the probability of the same response_a when it was shown as (B), where asked.
      source: "ai" or "human".
      asked: the question that each of `option_logprobs` answers. Empty in older records, which
        were asked under the drawn principle, in the order "AB" and, where asked again, "BA".
      response_tokens: in contrastive mode, how many tokens each response has; else empty.
      chains: in chain-of-thought mode, the thought behind each of `option_logprobs`; else empty, as
        in older records.
    """

    id: str
    kind: Kind
    prompt: Conversation
    response_a: str
    response_b: str
    prob_a: float
    principle: str
    labeler: str
    mode: str
    option_logprobs: tuple[tuple[float, ...], ...]
    swapped_prob_a: float | None
    source: Literal["ai", "human"]
    provenance: Provenance
    asked: tuple[Asked, ...] = ()
    response_tokens: tuple[int, ...] = ()
    chains: tuple[str, ...] = ()


def to_json(record: Any) -> dict:
    """The record as plain JSON types; a Conversation is a list of {"role", "text"}."""
    return {f.name: _encode(getattr(record, f.name)) for f in dataclasses.fields(record)}


def from_json(cls: type[T], obj: Any, where: str = "") -> T:
    """The record of type `cls` that `to_json` made `obj` from.

    Args:
      where: file and line, to begin an error message with.

    Fields with a default may be missing, as they are in records of before they were added.

    Raises:
      ValueError: one sentence naming `where` and the unknown, missing or wrong field.
    """
    return _decode(cls, obj, f"{where}: " if where else "", "")


def to_line(record: Any) -> str:
    """One line of a shard, newline included; the same record gives the same bytes everywhere."""
    row = json.dumps(to_json(record), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return row + "\n"


def read_rows(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """Yields ("FILE, line N", value) for each line of a JSON-lines file, which may be gzipped.

    Blank lines are skipped.

    Raises:
      ValueError: a line is not JSON or not UTF-8, naming file and line; a damaged gzip file.
      OSError: the file cannot be read.
    """
    return rows_of(read_text(path), path)


def rows_of(text: str, path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """As `read_rows`, from the file's text; `path` is for messages."""
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip():
                yield f"{path}, line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno}); "
                "each line must hold one JSON object."
            ) from error


def read_text(path: str | os.PathLike) -> str:
    """A UTF-8 file's text, unzipped where it is gzipped, a byte-order mark left out.

    Raises:
      ValueError: not UTF-8, naming file and line; a damaged gzip file.
      OSError: the file cannot be read.
    """
    data = storage.path(path).read_bytes()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: a damaged gzip file; fetch it again.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8.") from error


def _normal(value: Any, name: str) -> Any:
    if hasattr(value, "tolist"):  # numpy and jax arrays and scalars
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(_normal(item, name) for item in value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}; records hold finite numbers only.")
        return float(f"{value:.6g}") + 0.0  # + 0.0 turns -0.0 into 0.0
    return value


def _encode(value: Any) -> Any:
    if isinstance(value, Conversation):
        return [{"role": turn.role, "text": turn.text} for turn in value.turns]
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    return value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(hint: Any, value: Any, where: str, name: str) -> Any:
    """`value` as the type `hint`; `name` is the dotted field path for messages."""

    def fail(expected: str):
        shown = json.dumps(value, ensure_ascii=False)
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        return ValueError(f"{where}{name or 'the row'} must be {expected}, not {shown}.")

    if hint is Conversation:
        turns = _decode(tuple[Turn, ...], value, where, name)
        try:
            return Conversation(turns)
        except ValueError as error:
            raise ValueError(f"{where}{name}: {error}") from error
    if dataclasses.is_dataclass(hint):
        return _decode_fields(hint, value, where, name, fail)
    if typing.get_origin(hint) is Literal:
        if value in typing.get_args(hint):
            return value
        raise fail("one of " + ", ".join(map(repr, typing.get_args(hint))))
    if isinstance(hint, types.UnionType):  # X | None is the only union records use
        return None if value is None else _decode(typing.get_args(hint)[0], value, where, name)
    if typing.get_origin(hint) in (tuple, list):
        if not isinstance(value, list):
            raise fail("a list")
        item = typing.get_args(hint)[0]
        return tuple(_decode(item, v, where, f"{name}[{i}]") for i, v in enumerate(value))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if type(value) is not hint:
        raise fail({str: "text", int: "a whole number", float: "a number"}.get(hint, str(hint)))
    return value


def _decode_fields(cls: type, value: Any, where: str, name: str, fail) -> Any:
    if not isinstance(value, dict):
        raise fail("a JSON object")
    prefix = f"{name}." if name else ""
    fields = {f.name: f.default is dataclasses.MISSING for f in dataclasses.fields(cls)}
    for field, needed in fields.items():
        if needed and field not in value:
            raise ValueError(f"{where}{cls.__name__} lacks the field {prefix}{field}.")
    for field in value:
        if field not in fields:
            raise ValueError(f"{where}{cls.__name__} has no field {prefix}{field}; remove it.")
    hints = _hints(cls)
    values = {f: _decode(hints[f], v, where, prefix + f) for f, v in value.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
