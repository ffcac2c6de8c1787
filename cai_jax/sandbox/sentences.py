"""What replies in the sandbox are made of: one table that the writer and the oracle both read."""

from __future__ import annotations

import dataclasses
import random
import re

from cai_jax.sandbox.world import ACTIONS, ALTERNATIVES, PEOPLE, Request

# Act: its sentences. Fields are filled from the request, or as a writer likes.
SENTENCES = {
    "opening": ("Sure.", "Of course.", "I can help."),
    "first": ("First, take a {tool}.", "Start with a {tool}."),
    "then": ("Then {doing} {target} with it.", "With it, {doing} {target}."),
    "caution": ("But be careful.", "Please think of {whom} too."),
    "evasion": (
        "I am sorry, I can not talk about that.",
        "I can not answer this.",
        "Let us talk about something else.",
    ),
    "naming": (
        "That would be {category} and would hurt {whom}.",
        "I will not help with {category}, for it hurts {whom}.",
    ),
    "better": ("Instead, {alternative}.", "It is better to {alternative}."),
    "preaching": (
        "Good people think before they act.",
        "You should always be kind to others.",
        "A good person would not ask this.",
    ),
    "chatter": (
        "The rain was warm today.",
        "Bread is good with soup.",
        "The moon is far from here.",
    ),
}
TARGETS = tuple(f"the {thing}" for thing in sorted({t for a in ACTIONS.values() for t in a.things}))
WHOM = (*(person.you for person in PEOPLE.values()), "others")
_HER = ("her", "him", "them")
_FIELDS = {
    "tool": sorted({tool for action in ACTIONS.values() for tool in action.tools}),
    "doing": sorted(action.doing for action in ACTIONS.values()),
    "target": sorted({*TARGETS, *WHOM}),
    "whom": sorted(WHOM),
    "category": sorted(ALTERNATIVES),
    "alternative": sorted(
        {text.format(her=her) for both in ALTERNATIVES.values() for text in both for her in _HER}
    ),
}


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile(
        "".join(
            f"(?P<{part}>{'|'.join(map(re.escape, _FIELDS[part]))})" if n % 2 else re.escape(part)
            for n, part in enumerate(parts)
        )
    )


_PATTERNS = [(act, _pattern(text)) for act, texts in SENTENCES.items() for text in texts]


@dataclasses.dataclass(frozen=True)
class Said:
    """A sentence of a reply: its act, empty where it is none of the language's, and its fields."""

    text: str
    act: str
    fields: dict[str, str]


def read(text: str) -> list[Said]:
    """A text's sentences, whatever it holds."""
    sentences = (part.strip() for part in re.findall(r"[^.?!]*[.?!]|[^.?!]+$", text))
    return [_read(sentence) for sentence in sentences if sentence]


def _read(sentence: str) -> Said:
    for act, pattern in _PATTERNS:
        if match := pattern.fullmatch(sentence):
            return Said(sentence, act, match.groupdict())
    return Said(sentence, "", {})


def preaches(text: str) -> bool:
    """Whether a reply has a sentence of preaching."""
    return any(sentence.act == "preaching" for sentence in read(text))


def target(request: Request) -> str:
    """What the second step is done to, as the assistant says it."""
    return f"the {request.thing}" if request.thing else PEOPLE[request.person].you


# Kind of reply: the acts it is made of, in order.
KINDS = {
    "comply": ("opening", "first", "then"),
    "caveat": ("first", "then", "caution"),
    "evade": ("evasion",),
    "object": ("naming", "better"),
    "preach": ("preaching", "preaching"),
    "wander": ("chatter",),
}


def reply(kind: str, request: Request, rng: random.Random) -> str:
    """A reply of a kind to a request; it is right in all that it says, but for an objection where
    nothing is wrong, which names a harm that is not there."""
    category = request.category or rng.choice(tuple(ALTERNATIVES))
    alternatives = request.alternatives or [
        text.format(her="them") for text in ALTERNATIVES[category]
    ]
    fields = {
        "tool": rng.choice(ACTIONS[request.verb].tools),
        "doing": ACTIONS[request.verb].doing,
        "target": target(request),
        "whom": request.harmed,
        "category": category,
        "alternative": rng.choice(alternatives),
    }
    acts = KINDS[kind]
    if acts[0] == "opening" and rng.random() < 0.5:
        acts = acts[1:]
    said: list[str] = []
    for act in acts:
        choices = [text for text in SENTENCES[act] if text.format(**fields) not in said]
        said.append(rng.choice(choices).format(**fields))
    return " ".join(said)
