"""Multiple-choice questions from files of your own: what a model still can do after training.

Read as they are published: ARC (arXiv 1803.05457; AI2's JSON lines or Hugging Face's) and MMLU
(2009.03300; CSV without a header); anything else in a plain form of ours.
"""

from __future__ import annotations

import csv
import io
import os
import re
from pathlib import Path
from typing import Any

from cai_jax import records
from cai_jax.conversation import Conversation
from cai_jax.datasets import rows
from cai_jax.datasets.cai_paper import Question, letters
from cai_jax.datasets.card import Dataset

MOST = 26  # options, which letters name


def name_of(path: str | os.PathLike) -> str:
    """What the questions of a file are called: "ARC-Easy-Test.jsonl.gz" -> "arc_easy_test"."""
    return re.sub(r"[^a-z0-9]+", "_", Path(path).name.split(".")[0].lower()).strip("_")


def read(path: str | os.PathLike) -> list[Question]:
    """The questions of a file, gzipped or not, in its order; ids are "NAME-0" and so on.

    A row is one of
      {"question": "...", "choices": ["...", ...], "answer": N}, N from 0
      {"question": "...", "choices": {"text": [...], "label": [...]}, "answerKey": "C"}
      {"question": {"stem": "...", "choices": [{"text": "...", "label": "C"}]}, "answerKey": "C"}
      CSV: question, two options or more, the letter of the right one; a first row that begins
        with "question" is a header.

    Raises:
      ValueError: a bad row, with file, line and field, or an empty file.
      OSError: the file cannot be read.
    """
    parsed = _csv(path) if ".csv" in Path(path).suffixes else _json(path)
    name = name_of(path) or "questions"
    return [_question(where, f"{name}-{n}", n, *parts) for n, (where, *parts) in enumerate(parsed)]


def cards() -> tuple[Dataset, ...]:
    """Your own questions."""
    return (
        Dataset(
            name="capability",
            what="your own multiple-choice questions: plain JSON lines, ARC's or MMLU's files",
            licence="yours",
            source="a file",
            defects="yours to know",
            row=Question,
            read=read,
        ),
    )


def _json(path: str | os.PathLike) -> list[tuple[str, Any, list, int]]:
    found = []
    for where, row in rows.untyped(path):
        if not isinstance(row, dict) or "question" not in row:
            raise ValueError(f"{where}: the row must be a JSON object with a question.")
        text, choices, labels = row["question"], row.get("choices"), None
        if isinstance(text, dict):
            text, choices = text.get("stem"), text.get("choices")
        if isinstance(choices, dict):
            choices, labels = choices.get("text"), choices.get("label")
        elif isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
            labels = [choice.get("label") for choice in choices]
            choices = [choice.get("text") for choice in choices]
        if labels is None:
            correct = row.get("answer")
        else:
            key, known = row.get("answerKey"), isinstance(labels, list)
            correct = labels.index(key) if known and key in labels else None
        found.append((where, text, choices, correct))
    return found


def _csv(path: str | os.PathLike) -> list[tuple[str, Any, list, int]]:
    reader = csv.reader(io.StringIO(records.read_text(path), newline=""), strict=True)
    found = []
    try:
        for number, cells in enumerate(reader):
            where = f"{path}, line {reader.line_num}"
            if not cells or (number == 0 and cells[0].strip().lower() == "question"):
                continue
            text, *choices, letter = cells if len(cells) > 1 else (*cells, "")
            correct = ord(letter.strip()) - ord("A") if len(letter.strip()) == 1 else None
            found.append((where, text, choices, correct))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from error
    if not found:
        raise ValueError(f"{path}: the file holds no rows.")
    return found


def _question(where: str, name: str, row: int, text: Any, choices: Any, correct: Any) -> Question:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: question is missing or empty.")
    if (
        not isinstance(choices, list)
        or not 2 <= len(choices) <= MOST
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
    ):
        raise ValueError(f"{where}: choices must be 2 to {MOST} texts.")
    if type(correct) is not int or not 0 <= correct < len(choices):
        raise ValueError(f"{where}: the answer must be one of the {len(choices)} choices.")
    options = [" ".join(choice.split()) for choice in choices]
    named = zip(letters(len(options)), options, strict=True)
    listed = "".join(f"\n{letter} {option}" for letter, option in named)
    return Question(
        id=name,
        row=row,
        prompt=f"{text.strip()}{listed}\nThe answer is:",
        conversation=Conversation().human(text.strip()),
        instruction=text.strip(),
        options=tuple(options),
        correct=correct,
    )
