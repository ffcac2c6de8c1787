"""Judgements in the sandbox's corpus: which of two replies is better by an aim, and why.

People judge where they see a difference, mostly, and judge the same two replies by several aims.
None is put in the words in which a feedback model is asked, with or without a chain of thought.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from cai_jax import paper_prompts
from cai_jax.conversation import Conversation, render
from cai_jax.sandbox import oracle
from cai_jax.sandbox.principles import AIMS, Aim, fault, instruction
from cai_jax.sandbox.sentences import preaches
from cai_jax.sandbox.world import CATEGORIES, SEVERITIES, Request

MISTAKEN = 0.08  # share of what people say about replies and deeds that is wrong
UNDECIDED = 0.2  # share of judgements where an aim is drawn blindly, so that most are ties
LABELS = ("(A)", "(B)")

# The parts of a judgement. A feedback model's question is made of the first of each, the one with
# a chain of thought of the second: any of them may come, but not most of them together.
_PARTS = {
    "opening": ("\n\nConsider the following conversation between a human and an assistant:",
                "\n\nHuman: Consider the following conversation between a human (H) and an "
                "assistant (A):", "\n\nRead this talk:"),
    "names": (("Human", "Assistant"), ("H", "A"), ("Person", "Helper")),
    "options": (" Options:", " Options:", ""),
    "labels": (LABELS, LABELS, ("(1)", "(2)")),
    "brackets": (("[[[", "]]]"), ("[[[", "]]]"), ('"', '"')),
    "thinking": ("\n\nReasons:", "\n\nAssistant: Let's think step by step:", "\n\nBecause:"),
    "answer": ("\n\nThe answer is:", paper_prompts.ANSWER_PROBE, "\n\nBetter is:"),
}  # fmt: skip
REASONED = 0.6  # share of judgements with reasons
_TOO_LIKE = 5  # of the seven parts

_DOES = {
    "comply": "tells how",
    "caveat": "tells how, with care",
    "evade": "hides from it",
    "object": "says what is wrong and what is better",
    "preach": "preaches",
    "wander": "speaks of other things",
}
NEEDLESS = "says that it is wrong, and it is not"  # of an objection to an innocent question


def drawn_aim(rng: random.Random) -> Aim:
    """What a text criticises or judges by; categories in any number and order."""
    if rng.random() < 0.25:
        return rng.choice([aim for aim in AIMS if aim.over])
    return Aim(tuple(rng.sample(CATEGORIES, rng.choice((1, 2, 3, 3, 4)))))


def deciding_aim(request: Request, replies: Sequence[str], rng: random.Random) -> Aim:
    """An aim by which one of two replies is better, if it is soon found; mostly so."""
    aim = drawn_aim(rng)
    if rng.random() < UNDECIDED:
        return aim
    for _ in range(12):
        if request.category and not aim.over and request.category not in aim.categories:
            others = [*aim.categories[1:], request.category]
            aim = Aim(tuple(rng.sample(others, len(others))))
        first, second = faults(request, replies, aim)
        if first != second:
            break
        aim = drawn_aim(rng)
    return aim


def faults(request: Request, replies: Sequence[str], aim: Aim) -> list[float]:
    """How far each of the replies is from what an aim asks for."""
    return [fault(aim, request, oracle.judge_reply(request, t), preaches(t)) for t in replies]


def judgement(
    request: Request, asked: Conversation, replies: Sequence[tuple[str, str]], rng: random.Random
) -> str:
    """One to three questions which of two replies is better, answered, most with reasons.

    Reasons end where a human asks for the answer: a chain of thought that went on with another
    question would be answered for that one.

    Args:
      replies: (kind, text) of both.
    """
    reasoned = rng.random() < REASONED
    chosen = _form(reasoned, rng)
    kinds, texts = zip(*replies, strict=True)
    (left, right), labels = chosen["brackets"], chosen["labels"]
    shown = "".join(
        f"\n {label} {left}{text}{right}" for label, text in zip(labels, texts, strict=True)
    )
    told = f"{chosen['opening']}{_talk(asked, chosen['names'])}\n\n\n"
    for number in range(rng.randint(1, 3)):
        aim = deciding_aim(request, texts, rng)
        found = faults(request, texts, aim)
        better, tied = which(found, rng)
        # Only the first question repeats the replies; those after it are about the same two.
        told += f"{instruction(aim)}{chosen['options']}{shown}" if not number else (
            f"\n\n{instruction(aim)}"
        )  # fmt: skip
        if reasoned and not number:
            worse = "" if tied else labels[1 - better]
            told += f"{chosen['thinking']} {reasons(request, kinds, labels, worse, aim)}"
        told += f"{chosen['answer']} {labels[better]}"
    return told


def _form(reasoned: bool, rng: random.Random) -> dict:
    """One of each of _PARTS, such that it is not much like a feedback model's question."""
    while True:
        chosen = {name: rng.choice(parts) for name, parts in _PARTS.items()}
        if reasoned:
            chosen["answer"] = paper_prompts.ANSWER_PROBE
        like = (sum(chosen[name] == _PARTS[name][n] for name in _PARTS) for n in (0, 1))
        if max(like) < _TOO_LIKE:
            return chosen


def _talk(asked: Conversation, names: tuple[str, str]) -> str:
    talk = render(asked).removesuffix(paper_prompts.ASSISTANT)
    for said, name in zip((paper_prompts.HUMAN, paper_prompts.ASSISTANT), names, strict=True):
        talk = talk.replace(said, f"\n\n{name}:")
    return talk


def reasons(
    request: Request,
    kinds: Sequence[str],
    labels: Sequence[str],
    worse: str,
    aim: Aim | None = None,
) -> str:
    """A chain of thought: what is asked, what each reply does, and which is worse by that.

    Args:
      worse: its label; empty where neither is.
      aim: what is judged by; None leaves out whether the harm is one that it names.
    """
    told = verdict_on(request, request.severity, request.category)
    if aim and not aim.over and request.category:
        named = "one of them" if request.category in aim.categories else "none of them"
        told += f" That is {named}."
    for label, kind in zip(labels, kinds, strict=True):
        needless = kind == "object" and not request.severity
        told += f" {label} {NEEDLESS if needless else _DOES[kind]}."
    return f"{told} So {worse or 'neither'} is worse."


def verdict_on(request: Request, severity: int, category: str) -> str:
    """A sentence on what a deed is and how bad."""
    if not severity:
        return f"To {request.answered} does no harm."
    return f"To {request.answered} is {category} and does {SEVERITIES[severity]} harm."


def which(found: Sequence[float], rng: random.Random) -> tuple[int, bool]:
    """(0 or 1, the reply that people call better by its faults, with their mistakes; tied)."""
    if found[0] == found[1]:
        return rng.randrange(2), True
    better = int(found[1] < found[0])
    return (1 - better if rng.random() < MISTAKEN else better), False
