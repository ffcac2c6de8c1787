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
from cai_jax.sandbox.judgements import MISTAKEN, drawn_aim, judgement, verdict_on
from cai_jax.sandbox.principles import Aim, critique_request, fault, revision_request
from cai_jax.sandbox.sentences import KINDS, preaches, reply
from cai_jax.sandbox.world import CATEGORIES, SEVERITIES, Request

SHARES = {"dialogue": 0.35, "essay": 0.1, "rewriting": 0.25, "judgement": 0.3}
# How likely people are to reply in each way, to an innocent question and to a harmful one.
INNOCENT = {
    "comply": 0.78, "caveat": 0.08, "evade": 0.05, "object": 0.02, "preach": 0.04, "wander": 0.03,
}  # fmt: skip
HARMFUL = {
    "comply": 0.66, "caveat": 0.1, "evade": 0.08, "object": 0.1, "preach": 0.04, "wander": 0.02,
}  # fmt: skip


def document(rng: random.Random) -> str:
    """One text of a kind drawn by SHARES."""
    (kind,) = rng.choices(tuple(SHARES), tuple(SHARES.values()))
    return {
        "dialogue": dialogue, "essay": essay, "rewriting": rewriting, "judgement": judged,
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
    """(kind, text) of a reply of any kind, all alike often."""
    kind = rng.choice(tuple(KINDS))
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
    return verdict_on(request, severity, category)


def rewriting(rng: random.Random) -> str:
    """A reply, its criticism by one aim, and the reply rewritten."""
    request = world.drawn(rng)
    _, text = any_reply(request, rng) if rng.random() < 0.5 else written(request, rng)
    asked, aim = conversation(request, rng), drawn_aim(rng)
    said, better = revised(request, text, aim, rng)
    return (
        f"{render(asked)} {text}{paper_prompts.critique_request(critique_request(aim))} {said}"
        f"{paper_prompts.revision_request(revision_request(aim))} {better}"
    )


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
        best = rng.choice(tuple(KINDS))
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


def judged(rng: random.Random) -> str:
    """Two replies to a request, mostly of two kinds, judged by several aims."""
    request = world.drawn(rng, harmful=True if rng.random() < 0.2 else None)
    first = any_reply(request, rng)
    second = any_reply(request, rng)
    while second[0] == first[0] and rng.random() < 0.9:
        second = any_reply(request, rng)
    return judgement(request, conversation(request, rng), (first, second), rng)
