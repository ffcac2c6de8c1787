"""The paper's published principles and few-shots (anthropics/ConstitutionalHarmlessnessPaper).

None of the published texts has white space at its ends once the template around it is taken off,
with one exception: the first chain of thought starts on a new line, and keeps that line break.
White space inside a text, curly quotes and misspellings stay as published.
"""

import json
import re
from pathlib import Path
from typing import Any

from cai_jax.paper_prompts import ASSISTANT, HUMAN
from cai_jax.principles import (
    ComparisonExample,
    ComparisonPrinciple,
    Constitution,
    ConstitutionError,
    CritiqueExample,
    CritiquePrinciple,
    ReasonedExample,
    build,
)

_CRITIQUE_REQUEST = re.compile(r"\n\nCritiqueRequest: (.+)\n\nCritique:", re.DOTALL)
_REVISION_REQUEST = re.compile(r"\n\nRevisionRequest: (.+)\n\nRevision:", re.DOTALL)
_INSTRUCTION = re.compile(r"\n(\S.*) Options:", re.DOTALL)
_CRITIQUE_EXAMPLE = re.compile(
    r"(\n\nHuman: .+\n\nAssistant:) (.+?)"
    r"\n\nCritiqueRequest: (.+?)\n\nCritique: (.+?)"
    r"\n\nRevisionRequest: (.+?)\n\nRevision: (.+)",
    re.DOTALL,
)
_REASONED_EXAMPLE = re.compile(
    r"\n\nHuman: Consider the following conversation between a human(?: \(H\))? and an assistant"
    r"(?: \(A\))?:(\n\nH:.+)\n\n\{\}\n \(A\) \[\[\[(.+)\]\]\]\n \(B\) \[\[\[(.+)\]\]\]"
    r"\n\nAssistant: Let's think step by step:(.+)\n\nHuman:\nSo the answer is: \(([AB])\)",
    re.DOTALL,
)


def import_paper(directory: str | Path) -> Constitution:
    """The paper's constitution, from a folder with its five published JSON files.

    The defects of the few-shots are put right: the "\\n\\nHuman:" that ends four of the five
    critique strings is cut off, all six chains of thought start with two line breaks, and the one
    header that does not explain its H and A does so. Everything else can be rendered again byte
    for byte by cai_jax.paper_prompts.

    Raises:
      ConstitutionError: a file is missing, is not JSON, or is not as published; the message names
        the file and the entry.
    """
    directory = Path(directory)
    critique = []
    path, entries = _read(directory, "CritiqueRevisionInstructions.json", dict)
    for key, entry in entries.items():
        try:
            texts = entry["prompt"][0], entry["edit_request"]
        except (KeyError, IndexError, TypeError):
            raise _unlike(path, key) from None
        request = _match(_CRITIQUE_REQUEST, texts[0], path, key)[0]
        critique.append(
            CritiquePrinciple(key, request, _match(_REVISION_REQUEST, texts[1], path, key)[0])
        )

    path, entries = _read(directory, "RLMadisonInstructions.json", list)
    comparison = [
        ComparisonPrinciple(f"comparison{i}", _match(_INSTRUCTION, text, path, i)[0])
        for i, text in enumerate(entries)
    ]

    path, entries = _read(directory, "CritiqueRevisionFewShotPrompts.json", list)
    critique_examples = []
    for i, text in enumerate(entries):
        text = text.removesuffix(HUMAN) if isinstance(text, str) else text
        prompt, *texts = _match(_CRITIQUE_EXAMPLE, text, path, i)
        critique_examples.append(CritiqueExample(_prompt(prompt), *texts))

    path, entries = _read(directory, "RLMadisonFewShotPrompts.json", list)
    comparison_examples = []
    for i, entry in enumerate(entries):
        try:
            prompt, chosen, rejected = entry["prompt"], entry["corrects"][0], entry["incorrects"][0]
        except (KeyError, IndexError, TypeError):
            raise _unlike(path, i) from None
        if not all(isinstance(text, str) and text.strip() for text in (prompt, chosen, rejected)):
            raise _unlike(path, i)
        comparison_examples.append(ComparisonExample(_prompt(prompt), chosen, rejected))

    path, entries = _read(directory, "RLMadisonPrecogFewShotPrompts.json", list)
    reasoned_examples = []
    for i, entry in enumerate(entries):
        text = entry.get("prompt") if isinstance(entry, dict) else None
        text = "\n\n" + text.lstrip("\n") if isinstance(text, str) else text
        turns, *texts, reasoning, answer = _match(_REASONED_EXAMPLE, text, path, i)
        turns = turns.replace("\n\nH:", HUMAN).replace("\n\nA:", ASSISTANT) + ASSISTANT
        reasoning = reasoning.removeprefix(" ")
        reasoned_examples.append(ReasonedExample(_prompt(turns), *texts, reasoning, answer))

    return build(
        "The paper's constitution",
        critique=critique,
        comparison=comparison,
        critique_examples=critique_examples,
        comparison_examples=comparison_examples,
        reasoned_examples=reasoned_examples,
    )


def _read(directory: Path, name: str, kind: type) -> tuple[Path, Any]:
    path = directory / name
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = "no such file; give the folder that holds the paper's five prompt files."
        raise ConstitutionError(f"{path}: {message}") from None
    except UnicodeDecodeError:
        raise ConstitutionError(f"{path}: not UTF-8; fetch the file again.") from None
    except json.JSONDecodeError as error:
        message = f"not valid JSON ({error.msg}); fetch the file again."
        raise ConstitutionError(f"{path}, line {error.lineno}: {message}") from None
    if not isinstance(entries, kind) or not entries:
        shape = "an object" if kind is dict else "a list"
        raise ConstitutionError(f"{path}: expected {shape} with entries; fetch the file again.")
    return path, entries


def _match(pattern: re.Pattern[str], text: Any, path: Path, entry: int | str) -> tuple[str, ...]:
    match = pattern.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise _unlike(path, entry)
    return match.groups()


def _unlike(path: Path, entry: int | str) -> ConstitutionError:
    return ConstitutionError(f"{path}, entry {entry}: not as published; fetch the file again.")


def _prompt(text: str) -> str:
    """One human turn where the conversation is no more than that, else the whole conversation."""
    turn = text.removeprefix(f"{HUMAN} ").removesuffix(ASSISTANT)
    whole = f"{HUMAN} {turn}{ASSISTANT}" == text
    return turn if whole and HUMAN not in turn and ASSISTANT not in turn else text
