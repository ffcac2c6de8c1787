"""A constitution as a value: its types, content hash, the draw of a principle, differences."""

import difflib
import hashlib
import json
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar


class ConstitutionError(ValueError):
    """A constitution cannot be used; the message names the file, the line or field, the remedy."""


@dataclass(frozen=True)
class CritiquePrinciple:
    """What the critic is asked and how the reviser is told to rewrite (section 3.1)."""

    id: str
    critique_request: str
    revision_request: str


@dataclass(frozen=True)
class ComparisonPrinciple:
    """The question by which the feedback model chooses between two responses (section 4.1)."""

    id: str
    instruction: str


@dataclass(frozen=True)
class CritiqueExample:
    """A worked critique and revision.

    `prompt` is one human turn, or a whole conversation in the paper's plain text which starts
    with a blank line and "Human:" and ends with a blank line and "Assistant:".
    """

    prompt: str
    response: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str


@dataclass(frozen=True)
class ComparisonExample:
    """A prompt (as in CritiqueExample) with the better and the worse response."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class ReasonedExample:
    """A comparison with its chain of thought; `answer` is "A" or "B"."""

    prompt: str
    response_a: str
    response_b: str
    reasoning: str
    answer: str


@dataclass(frozen=True)
class Constitution:
    """Principles and few-shot examples; make one with `build`, which fills in `hash`.

    `hash` covers the ids, texts and order of everything below it, and not `name`: two files with
    one content give the same draws and the same prompts.
    """

    name: str
    hash: str
    critique: tuple[CritiquePrinciple, ...]
    comparison: tuple[ComparisonPrinciple, ...]
    critique_examples: tuple[CritiqueExample, ...] = ()
    comparison_examples: tuple[ComparisonExample, ...] = ()
    reasoned_examples: tuple[ReasonedExample, ...] = ()


# What reports and messages call one entry of each part.
NOUNS = {
    "critique": "critique principle",
    "comparison": "comparison principle",
    "critique_examples": "critique example",
    "comparison_examples": "comparison example",
    "reasoned_examples": "reasoned example",
}

Principle = TypeVar("Principle", CritiquePrinciple, ComparisonPrinciple)


def build(name: str, **parts: Sequence[Any]) -> Constitution:
    """A Constitution from its parts (`critique=`, `comparison=`, ..., as the fields are called).

    White space at the end of a text never reaches a prompt: it is cut here. White space at the
    beginning is kept. The hash is the first 16 hex digits of the sha256 of a canonical JSON.
    """
    parts = {key: tuple(_trim(item) for item in items) for key, items in parts.items()}
    draft = Constitution(name=name, hash="", **parts)
    content = {key: value for key, value in asdict(draft).items() if key not in ("name", "hash")}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return replace(draft, hash=hashlib.sha256(text.encode()).hexdigest()[:16])


def _trim(item: Any) -> Any:
    return replace(item, **{key: text.rstrip() for key, text in asdict(item).items()})


def draw(principles: Sequence[Principle], *key: int | str) -> Principle:
    """A uniform draw with replacement that depends on the key alone.

    Args:
      principles: what to draw from; their order counts.
      key: e.g. seed, stream name, example id, step. 1 and "1" are different keys. Draws with
        different keys are independent.

    Raises:
      ValueError: there are no principles, or the key is empty.
      TypeError: a part of the key is neither text nor an integer.
    """
    if not principles:
        raise ValueError("there are no principles to draw from; add one to the constitution.")
    if not key:
        raise ValueError("a draw needs a key, such as (seed, 'critique', example id, step).")
    parts = [part if isinstance(part, str) else operator.index(part) for part in key]
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    # 256 bits: the remainder's bias is far below anything that could be measured.
    return principles[int.from_bytes(digest, "big") % len(principles)]


def first_principles(
    principles: Sequence[CritiquePrinciple], count: int, seed: int
) -> tuple[CritiquePrinciple, ...]:
    """The first `count` critique principles of an order that the seed draws; 0 stands for all.

    More principles hold all of fewer, and what is kept stays in its own order, so that asking for
    as many as there are is asking for all. A principle's place depends on its id alone.

    Raises:
      ValueError: there are fewer than `count`.
    """
    if count > len(principles):
        raise ValueError(
            f"config.revise.principles is {count}, and the constitution has {len(principles)} "
            "critique principles; lower it, or set 0 for all."
        )

    def place(principle: CritiquePrinciple) -> bytes:
        return hashlib.sha256(json.dumps([seed, "principles", principle.id]).encode()).digest()

    kept = {p.id for p in sorted(principles, key=place)[: count or None]}
    return tuple(p for p in principles if p.id in kept)


def diff(a: Constitution, b: Constitution) -> str:
    """What changes from `a` to `b`, for a person to read.

    Removed words stand in [-...-], added ones in {+...+}. Principles are matched by id, few-shots
    by their prompt. Equal hashes give "No difference.", plus a note if the names differ.
    """
    lines = [] if a.name == b.name else [f"name: {a.name} -> {b.name}"]
    if a.hash == b.hash:
        return "\n".join(["No difference.", *lines])
    for section, noun in NOUNS.items():
        key = "prompt" if section.endswith("examples") else "id"
        old, new = (_by_key(getattr(side, section), key) for side in (a, b))
        for where, before in old.items():
            title = _title(where[0])
            if where not in new:
                lines.append(f"{noun} removed: {title}")
            elif new[where] != before:
                lines.append(f"{noun} changed: {title}")
                after = asdict(new[where])
                lines += [
                    f"  {name}: {_word_diff(text, after[name])}"
                    for name, text in asdict(before).items()
                    if text != after[name]
                ]
        lines += [f"{noun} added: {_title(where[0])}" for where in new if where not in old]
        if [where for where in old if where in new] != [where for where in new if where in old]:
            lines.append(f"{noun}s in another order")
    return "\n".join(lines)


def _by_key(items: Sequence[Any], key: str) -> dict[tuple[str, int], Any]:
    """Items by key text and, as few-shots may share a prompt, its how-manieth occurrence."""
    seen: Counter[str] = Counter()
    found = {}
    for item in items:
        text = getattr(item, key)
        found[text, seen[text]] = item
        seen[text] += 1
    return found


def _title(text: str) -> str:
    words = text.split()
    return " ".join(words[:10]) + (" ..." if len(words) > 10 else "")


def _word_diff(old: str, new: str) -> str:
    a, b = old.split(), new.split()
    pieces = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            pieces.append(" ".join(a[i:j]))
            continue
        if j > i:
            pieces.append(f"[-{' '.join(a[i:j])}-]")
        if m > k:
            pieces.append(f"{{+{' '.join(b[k:m])}+}}")
    return " ".join(pieces) if a != b else "(only white space differs)"
