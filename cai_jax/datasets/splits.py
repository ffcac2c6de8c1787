"""Splits that no prompt crosses: rows are told apart by their first human turn.

Two rows with the same first human turn, whatever follows, fall into the same half, in every data
set; so a prompt of one set's test half is never in another set's train half.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from cai_jax.conversation import Conversation

T = TypeVar("T")


def first_turn(row: Any) -> str:
    """The first human turn, in lower case, its white space and character forms made uniform.

    Args:
      row: a Conversation, or a row with one as its `conversation` or else its `prompt`.

    Raises:
      ValueError: there is no human turn.
    """
    conversation = row if isinstance(row, Conversation) else getattr(row, "conversation", None)
    for turn in (conversation or row.prompt).turns:
        if turn.role == "human":
            return " ".join(unicodedata.normalize("NFKC", turn.text).casefold().split())
    raise ValueError("a conversation without a human turn has no place in a split")


def split_of(row: Any, test_share: float = 0.05, split: str = "") -> Literal["train", "test"]:
    """The half that a row belongs to: a pure function of its first human turn.

    A row in the test half for one share is also there for every larger share. 0.05 is the held-out
    share of arXiv 2204.05862. Splits of different names have nothing to do with each other.
    """
    digest = hashlib.sha256((split + first_turn(row)).encode("utf-8", "surrogatepass")).digest()
    return "test" if int.from_bytes(digest[:8]) < test_share * 2**64 else "train"


def unique(rows: Iterable[T]) -> list[T]:
    """The first row of each first human turn, in order."""
    seen: set[str] = set()
    return [row for row in rows if not (first_turn(row) in seen or seen.add(first_turn(row)))]


def without(rows: Iterable[T], others: Iterable[Any]) -> list[T]:
    """The rows whose first human turn is in none of `others`."""
    known = {first_turn(row) for row in others}
    return [row for row in rows if first_turn(row) not in known]


def shared(rows: Iterable[Any], others: Iterable[Any]) -> set[str]:
    """The first human turns that are in both."""
    return {first_turn(row) for row in rows} & {first_turn(row) for row in others}
