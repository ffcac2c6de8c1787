r"""The paper's three published evaluations (anthropics/ConstitutionalHarmlessnessPaper, evals/).

Each row is a multiple-choice question. `prompt` is the published text as it stands, through "The
answer is:"; the other fields are its parts. The answers to weigh after it are `choices`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from cai_jax.conversation import Conversation, parse, render
from cai_jax.datasets import rows
from cai_jax.datasets.card import Dataset, on_github
from cai_jax.datasets.files import Published, find

# The paper's six chain-of-thought few-shots are also rows of the 438: leave them out when a prompt
# shows these few-shots.
CHAIN_OF_THOUGHT_ROWS = (185, 92, 74, 375, 1, 30)

REPOSITORY = "anthropics/ConstitutionalHarmlessnessPaper"
COMMIT = "831f7813dbafab659a526d7452f7adeac464b796"


def _file(path: str, sha256: str) -> Published:
    url = on_github(REPOSITORY, COMMIT, path)
    return Published(path, f"github.com/{REPOSITORY}", url, sha256)


FILES = {
    "hhh": _file(
        "evals/438HHHEvaluations.jsonl",
        "d1ee180289d3eeeb314ad862344cbd9af07f19c6d52a77524f9a1a21e7373c10",
    ),
    "harmful_vs_ethical": _file(
        "evals/HarmfulVsEthical.jsonl",
        "dfce73b4fba5d6e463ef85f237650f669b91d4e5a7b073a47234643938573b83",
    ),
    "harm_classes": _file(
        "evals/HarmfulnessClassification.jsonl",
        "86364591010f14d6a17028dcbddeafbb1a527fd3eb74409d826c7507e6a0c697",
    ),
}

_HHH = re.compile(
    r"\n\nConsider the following conversation between a human and an assistant:"
    r"(\n\nHuman: .+)\n\n\n([^\n]+) Options:\n \(A\) \[\[\[(.+)\]\]\]\n \(B\) \[\[\[(.+)\]\]\]"
    r"\n\nThe answer is:",
    re.DOTALL,
)
_JUDGED = re.compile(
    r"Here is a conversation between a human and an assistant:"
    r"(\n\nHuman:.+)\n\n([^\n]+)((?:\n \([A-I]\) [^\n]+)+)\nThe answer is:",
    re.DOTALL,
)
_OPTION = re.compile(r"\n \(([A-I])\) ([^\n]+)")


def letters(count: int) -> tuple[str, ...]:
    """The first so many of " (A)", " (B)", ..."""
    return tuple(f" ({chr(ord('A') + i)})" for i in range(count))


@dataclasses.dataclass(frozen=True)
class Question:
    """A multiple-choice question about a conversation.

    Attributes:
      id: "hhh-185": the evaluation and the row.
      row: 0-based row of the published file.
      prompt: the published text, through "The answer is:".
      conversation: the conversation asked about.
      instruction: the published question, without " Options:".
      options: what stands behind (A), (B), ...
      correct: index of the right option.
    """

    id: str
    row: int
    prompt: str
    conversation: Conversation
    instruction: str
    options: tuple[str, ...]
    correct: int

    @property
    def choices(self) -> tuple[str, ...]:
        """What follows the prompt: " (A)", " (B)", ..."""
        return letters(len(self.options))


@dataclasses.dataclass(frozen=True)
class HHHQuestion(Question):
    """Which response is more helpful, honest and harmless; `conversation` ends with a human turn.

    Attributes:
      better, worse: the conversation with each response, for a preference model.
    """

    better: Conversation
    worse: Conversation

    @property
    def is_few_shot(self) -> bool:
        """Whether the pair is one of the paper's chain-of-thought few-shots."""
        return self.row in CHAIN_OF_THOUGHT_ROWS


@dataclasses.dataclass(frozen=True)
class _Published:
    prompt: str
    corrects: tuple[str, ...]
    incorrects: tuple[str, ...]
    text_correct: str = ""
    text_incorrect: str = ""


def hhh(folder: str | os.PathLike) -> list[HHHQuestion]:
    """The 438 comparisons of helpfulness, honesty and harmlessness (Figure 4).

    Args:
      folder: a checkout of the repository, its folder evals, or the file; may be gzipped.

    Raises:
      ValueError: a row that is not as published, with file and line.
      FileNotFoundError: the folder has no such file.
    """
    found = []
    for where, row, question in _read(folder, "hhh", _HHH):
        better = question.conversation.assistant(question.options[question.correct])
        worse = question.conversation.assistant(question.options[1 - question.correct])
        for field, text in (("text_correct", better), ("text_incorrect", worse)):
            if getattr(row, field) != render(text):
                raise _unlike(where, field)
        found.append(HHHQuestion(**vars(question), better=better, worse=worse))
    return found


def harmful_vs_ethical(folder: str | os.PathLike) -> list[Question]:
    """The 254 whole conversations in which the assistant was harmful (A) or ethical (B) (Fig. 12).

    Arguments and errors as in `hhh`.
    """
    return [question for _, _, question in _read(folder, "harmful_vs_ethical", _JUDGED)]


def harm_classes(folder: str | os.PathLike) -> list[Question]:
    """The 287 harmful conversations to be put into one of nine classes of harm (Fig. 12).

    Arguments and errors as in `hhh`.
    """
    return [question for _, _, question in _read(folder, "harm_classes", _JUDGED)]


def cards() -> tuple[Dataset, ...]:
    """The three evaluations."""
    readers = {"hhh": hhh, "harmful_vs_ethical": harmful_vs_ethical, "harm_classes": harm_classes}
    said = {
        "hhh": (
            "which of two replies is more helpful, honest and harmless (Figure 4)",
            "rows 1, 30, 74, 92, 185 and 375 are also the paper's chain-of-thought few-shots: "
            "leave them out (is_few_shot) where a prompt shows those",
        ),
        "harmful_vs_ethical": (
            "was the assistant harmful or ethical in a dialogue (Figure 12)",
            "none known",
        ),
        "harm_classes": (
            "which of nine kinds of harm is in a dialogue (Figure 12)",
            "'Bullying or Harrassment' is misspelt as published; the classes are uneven",
        ),
    }
    return tuple(
        Dataset(
            name=f"cai_paper/{name}",
            what=what,
            licence="none stated; public supplement of arXiv 2212.08073",
            source=f"github.com/{REPOSITORY}, arXiv 2212.08073",
            defects=defects,
            row=HHHQuestion if name == "hhh" else Question,
            read=readers[name],
            files=(("test", FILES[name]),),
        )
        for name, (what, defects) in said.items()
    )


def _read(
    folder: str | os.PathLike, evaluation: str, pattern: re.Pattern[str]
) -> list[tuple[str, _Published, Question]]:
    folder = Path(folder)
    path = folder if folder.is_file() else find(FILES[evaluation], folder)
    return [
        (where, row, _question(where, row, evaluation, number, pattern))
        for number, (where, row) in enumerate(rows.read(_Published, path))
    ]


def _question(
    where: str, row: _Published, evaluation: str, number: int, pattern: re.Pattern[str]
) -> Question:
    match = pattern.fullmatch(row.prompt)
    if match is None:
        raise _unlike(where, "prompt")
    said, instruction, *options = match.groups()
    if pattern is _JUDGED:
        options = [text for _, text in _OPTION.findall(options[0])]
    question = Question(
        id=f"{evaluation}-{number}",
        row=number,
        prompt=row.prompt,
        conversation=parse(said),
        instruction=instruction.removesuffix(" Options:"),
        options=tuple(options),
        correct=0,
    )
    others = list(question.choices)
    if len(row.corrects) != 1 or row.corrects[0] not in others:
        raise _unlike(where, "corrects")
    correct = others.index(row.corrects[0])
    del others[correct]
    if list(row.incorrects) != others:
        raise _unlike(where, "incorrects")
    return dataclasses.replace(question, correct=correct)


def _unlike(where: str, field: str) -> ValueError:
    return ValueError(f"{where}: {field} is not as published; fetch the file again.")
