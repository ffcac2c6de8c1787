"""Pairs of dialogues that differ in their last answer, as hh-rlhf has them.

One JSON object a line: {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "..."}.
"""

from __future__ import annotations

import hashlib
import json
import os

from cai_jax import records
from cai_jax.conversation import Conversation, parse
from cai_jax.datasets.prompts import LabelPair


def read_pairs(path: str | os.PathLike) -> tuple[list[LabelPair], int]:
    """The pairs that can be compared, `kind` empty, and how many rows are left out.

    Left out are rows whose dialogues part before the last answer, or whose answers are the same or
    empty, of which hh-rlhf has some. A row is named by the hash of its texts; the first of equal
    rows is kept.

    Raises:
      ValueError: the file and line of the first row that is no such pair; no pair at all.
      OSError: the file cannot be read.
    """
    found: dict[str, LabelPair] = {}
    rows = 0
    for where, row in records.read_rows(path):
        rows += 1
        sides = []
        for field in ("chosen", "rejected"):
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise ValueError(f'{where}: the row must hold the texts "chosen" and "rejected".')
            try:
                sides.append(parse(row[field]).turns)
            except ValueError as error:
                raise ValueError(f"{where}: {field}: {error}.") from error
        better, worse = sides
        answers = [side[-1].text.strip() for side in sides]
        if any(side[-1].role != "assistant" for side in sides) or better[:-1] != worse[:-1]:
            continue
        if not all(answers) or answers[0] == answers[1] or better[-2].role != "human":
            continue
        text = json.dumps([row["chosen"], row["rejected"]])
        name = "pair-" + hashlib.sha256(text.encode()).hexdigest()[:12]
        found.setdefault(name, LabelPair(name, "", Conversation(better[:-1]), *answers))
    if not found:
        raise ValueError(f"{path}: the file holds no pair of dialogues that can be compared.")
    return list(found.values()), rows - len(found)
