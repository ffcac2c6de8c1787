"""Texts to pretrain the sandbox's models on: what a web of that little world would hold.

Dialogues, mostly compliant; essays on why things hurt; criticisms and rewritings of replies;
judgements with reasons. All with mistakes. Requests that are held out for evaluation are in none,
and no judgement is put in just the words in which a feedback model is asked.
"""

from __future__ import annotations

import random

from cai_jax import paper_prompts
from cai_jax.conversation import Conversation, render
from cai_jax.sandbox import oracle, world
from cai_jax.sandbox.principles import (
    AIMS,
    Aim,
    critique_request,
    fault,
    instruction,
    revision_request,
)
from cai_jax.sandbox.sentences import kinds_of, read, reply
from cai_jax.sandbox.world import CATEGORIES, SEVERITIES, Request

SHARES = {"dialogue": 0.35, "essay": 0.1, "rewriting": 0.25, "judgement": 0.3}
MISTAKEN = 0.08  # share of verdicts, critiques, rewritings and judgements that are wrong
# How likely people are to reply in each way, to an innocent question and to a harmful one.
INNOCENT = {"comply": 0.8, "caveat": 0.08, "evade": 0.05, "preach": 0.04, "wander": 0.03}
HARMFUL = {
    "comply": 0.66, "caveat": 0.1, "evade": 0.08, "object": 0.1, "preach": 0.04, "wander": 0.02,
}  # fmt: skip


def document(rng: random.Random) -> str:
    """One text of a kind drawn by SHARES."""
    (kind,) = rng.choices(tuple(SHARES), tuple(SHARES.values()))
    return {
        "dialogue": dialogue, "essay": essay, "rewriting": rewriting, "judgement": judgement,
    }[kind](rng)  # fmt: skip


def conversation(request: Request, rng: random.Random) -> Conversation:
    """A request in one turn, or its circumstances in a second one."""
    if not request.circumstances or rng.random() < 0.75:
        return Conversation().human(world.asked(request, rng))
    first = world.plain(request)
    told = Conversation().human(world.asked(first, rng)).assistant(reply("comply", first, rng))
    return told.human(world.added(request, rng))


def written(request: Request, rng: random.Random) -> tuple[str, str]:
    """(kind, text) of a reply as people in this world write them."""
    shares = HARMFUL if request.severity else INNOCENT
    (kind,) = rng.choices(tuple(shares), tuple(shares.values()))
    return kind, reply(kind, request, rng)


def any_reply(request: Request, rng: random.Random) -> tuple[str, str]:
    """(kind, text) of a reply of any kind that there is for the request, all alike often."""
    kind = rng.choice(kinds_of(request))
    return kind, reply(kind, request, rng)


def dialogue(rng: random.Random) -> str:
    """A conversation, compliant for the most part."""
    request = world.drawn(rng)
    return f"{render(conversation(request, rng))} {written(request, rng)[1]}"


def essay(rng: random.Random) -> str:
    """Why some deeds hurt and others like them do not."""
    first = world.drawn(rng)
    told = []
    for _ in range(rng.randint(2, 4)):
        told.append(verdict(first, rng))
        other = world.drawn(rng)
        # Mostly the same deed in other circumstances.
        while other.verb != first.verb and rng.random() < 0.9:
            other = world.drawn(rng)
        first = other
    return "\n\n" + " ".join(told)


def verdict(request: Request, rng: random.Random) -> str:
    """A sentence on what a deed is and how bad; now and then a mistaken one."""
    severity, category = request.severity, request.category
    if rng.random() < MISTAKEN:
        severity = rng.randrange(5)
        category = category or rng.choice(CATEGORIES)
    return _verdict(request, severity, category)


def _verdict(request: Request, severity: int, category: str) -> str:
    if not severity:
        return f"To {request.answered} does no harm."
    return f"To {request.answered} is {category} and does {SEVERITIES[severity]} harm."


def rewriting(rng: random.Random) -> str:
    """A reply, its criticism by one aim, and the reply rewritten."""
    request = world.drawn(rng)
    _, text = any_reply(request, rng) if rng.random() < 0.5 else written(request, rng)
    asked, aim = conversation(request, rng), an_aim(rng)
    said, better = revised(request, text, aim, rng)
    return (
        f"{render(asked)} {text}{paper_prompts.critique_request(critique_request(aim))} {said}"
        f"{paper_prompts.revision_request(revision_request(aim))} {better}"
    )


def an_aim(rng: random.Random) -> Aim:
    """What a text criticises or judges by; categories in any number and order."""
    if rng.random() < 0.25:
        return rng.choice([aim for aim in AIMS if aim.over])
    return Aim(tuple(rng.sample(CATEGORIES, rng.choice((1, 2, 3, 3, 4)))))


def revised(request: Request, text: str, aim: Aim, rng: random.Random) -> tuple[str, str]:
    """(critique, revision) of a reply by one aim; now and then mistaken."""
    found = oracle.judge_reply(request, text)
    wrong = fault(aim, request, found, preaches(text)) > 0
    if rng.random() < MISTAKEN:
        wrong = not wrong
    said = critique(request, aim, wrong)
    if not wrong:
        return said, text
    best = "object" if request.severity else "comply"
    if aim.over in ("preaching", "refusal", "hiding") and request.severity:
        best = rng.choice(("object", "object", "comply"))
    if rng.random() < MISTAKEN:
        best = rng.choice(kinds_of(request))
    return said, reply(best, request, rng)


def critique(request: Request, aim: Aim, wrong: bool) -> str:
    """What a critic says, who finds something wrong or nothing."""
    if not wrong:
        return "There is nothing wrong with it."
    if not aim.over:
        category = request.category or aim.categories[0]
        harm = SEVERITIES[max(request.severity, 1)]
        return f"It tells how to {request.answered}. That is {category} and does {harm} harm."
    return {
        "preaching": "It preaches, and nobody asked for that.",
        "hiding": "It hides from the question.",
        "refusal": "It refuses, though there is no harm in the question.",
        "objection": "It does not tell what would be better.",
    }[aim.over]


def preaches(text: str) -> bool:
    """Whether a reply has a sentence of preaching."""
    return any(sentence.act == "preaching" for sentence in read(text))


_DOES = {
    "comply": "tells how",
    "caveat": "tells how, with care",
    "evade": "hides from it",
    "object": "says what is wrong and what is better",
    "preach": "preaches",
    "wander": "speaks of other things",
}
# The parts of a question. What a feedback model is asked is the first of each: any of them may
# come, but not all together.
_PARTS = {
    "opening": ("Consider the following conversation between a human and an assistant:",
                "Read this conversation between a human and an assistant:", "Here is a talk:"),
    "names": (("Human", "Assistant"), ("H", "A"), ("Person", "Helper")),
    "options": (" Options:", "", " Choose one:"),
    "labels": (("(A)", "(B)"), ("(1)", "(2)"), ("(X)", "(Y)")),
    "brackets": (("[[[", "]]]"), ('"', '"'), ("", "")),
    "thinking": ("Let's think step by step:", "Reasons:", "Because:"),
    "answer": ("The answer is:", "So the answer is:", "Better is:"),
}  # fmt: skip
_TOO_LIKE = 5  # of the seven parts


def judgement(rng: random.Random) -> str:
    """One to three questions of one form, which of two replies is better, answered."""
    while True:
        form = {name: rng.randrange(len(parts)) for name, parts in _PARTS.items()}
        if sum(n == 0 for n in form.values()) < _TOO_LIKE:
            break
    chosen = {name: parts[form[name]] for name, parts in _PARTS.items()}
    reasoned = rng.random() < 0.5
    return "".join(_question(rng, chosen, reasoned) for _ in range(rng.choice((1, 1, 2, 3))))


def _question(rng: random.Random, form: dict, reasoned: bool) -> str:
    request, aim = world.drawn(rng, harmful=True if rng.random() < 0.7 else None), an_aim(rng)
    if request.category and not aim.over and rng.random() < 0.5:  # else most would be ties
        others = [name for name in aim.categories if name != request.category]
        aim = Aim(tuple(rng.sample((*others, request.category), len(others) + 1)))
    (kind_a, a), (kind_b, b) = any_reply(request, rng), any_reply(request, rng)
    human, assistant = form["names"]
    talk = render(conversation(request, rng)).removesuffix(paper_prompts.ASSISTANT)
    talk = talk.replace("\n\nHuman:", f"\n\n{human}:").replace(
        "\n\nAssistant:", f"\n\n{assistant}:"
    )
    (left, right), (first, second) = form["brackets"], form["labels"]
    text = f"\n\n{form['opening']}{talk}\n\n{instruction(aim)}{form['options']}"
    text += f"\n {first} {left}{a}{right}\n {second} {left}{b}{right}\n\n"
    better = which(request, a, b, aim, rng)
    if reasoned:
        text += f"{form['thinking']} {reasons(request, kind_a, kind_b, form['labels'])}\n\n"
    return text + f"{form['answer']} {form['labels'][better]}"


def reasons(request: Request, kind_a: str, kind_b: str, labels: tuple[str, str]) -> str:
    """A chain of thought: what is asked, what each reply does."""
    told = _verdict(request, request.severity, request.category)
    return f"{told} {labels[0]} {_DOES[kind_a]}. {labels[1]} {_DOES[kind_b]}."


def which(request: Request, a: str, b: str, aim: Aim, rng: random.Random) -> int:
    """0 or 1: the reply that people call better by an aim, with their mistakes."""
    faults = [fault(aim, request, oracle.judge_reply(request, t), preaches(t)) for t in (a, b)]
    if faults[0] == faults[1]:
        return rng.randrange(2)
    better = int(faults[1] < faults[0])
    return 1 - better if rng.random() < MISTAKEN else better
