"""The sandbox's prompts, people's comparisons and constitution, as files that a run takes.

`write` makes all of them; those in the repository are its output, which a test compares.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from cai_jax import constitution
from cai_jax.conversation import Conversation
from cai_jax.sandbox import corpus, oracle, world
from cai_jax.sandbox.judgements import LABELS, reasons
from cai_jax.sandbox.principles import (
    AIMS,
    Aim,
    critique_request,
    instruction,
    revision_request,
)
from cai_jax.sandbox.sentences import KINDS, reply
from cai_jax.sandbox.world import Request

SEED = 2212
# How many of each: prompts, people's comparisons, clear-cut pairs.
COUNTS = {
    "red_team": 384, "helpful": 192, "held_out_red_team": 128, "held_out_helpful": 96,
    "helpful_comparisons": 768, "held_out_comparisons": 96, "human_comparisons": 640,
    "label_pairs": 120,
}  # fmt: skip
SHARPNESS = 5.0  # of people's choices: a difference of 1 in helpfulness is seen in 99% of pairs


def write(folder: Path) -> None:
    """Writes {name}.jsonl for each of COUNTS, constitution.yaml, and constitutions without a part.

    without-over-reaction.yaml has the twelve principles of harm alone; without-CATEGORY.yaml has
    all sixteen, and none of them names that category.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = {**prompts(), **comparisons(), "human_comparisons": human_comparisons()}
    for name, found in {**rows, "label_pairs": label_pairs()}.items():
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    constitution.save(in_words(AIMS), folder / "constitution.yaml")
    harms = [aim for aim in AIMS if not aim.over]
    constitution.save(in_words(harms), folder / "without-over-reaction.yaml")
    for name in world.CATEGORIES:
        constitution.save(in_words(_without(name)), folder / f"without-{name}.yaml")


def _without(category: str) -> list[Aim]:
    """All aims, with a category named by none."""
    kept = (tuple(name for name in aim.categories if name != category) for aim in AIMS)
    return [Aim(names, aim.over) for names, aim in zip(kept, AIMS, strict=True)]


def prompts() -> dict[str, list[dict]]:
    """Rows of prompts; those held out are of requests that no text of the corpus has."""
    found = {}
    for name in ("red_team", "helpful", "held_out_red_team", "held_out_helpful"):
        source = random.Random(f"{SEED} {name}")
        found[name] = [
            {"id": f"{name}-{n}", "category": request.category, "turns": _turns(asked)}
            for n, (request, asked) in enumerate(
                _asked(source, COUNTS[name], name.endswith("team"), name.startswith("held"))
            )
        ]
    return found


def comparisons() -> dict[str, list[dict]]:
    """People's comparisons of two replies to an innocent question by helpfulness; people err."""
    found = {}
    for name in ("helpful_comparisons", "held_out_comparisons"):
        source = random.Random(f"{SEED} {name}")
        rows = []
        for n, (request, asked) in enumerate(
            _asked(source, COUNTS[name], False, name.startswith("held"))
        ):
            replies = _two_replies(request, source)
            worth = [oracle.judge_reply(request, text).helpfulness for text in replies]
            chosen = _chosen(replies, worth, source)
            rows.append({"id": f"{name}-{n}", "turns": _turns(asked), **chosen})
        found[name] = rows
    return found


def human_comparisons() -> list[dict]:
    """People's comparisons by helpfulness and, of as many harmful questions, by harmlessness.

    As in the data that the paper compares with: what evades is thought the safest of all.
    """
    source = random.Random(f"{SEED} human comparisons")
    rows = []
    for harmful in (False, True):
        for request, asked in _asked(source, COUNTS["human_comparisons"] // 2, harmful, False):
            replies = _two_replies(request, source)
            found = [oracle.judge_reply(request, text) for text in replies]
            worth = [
                (j.evasiveness - j.harmfulness) / 2 if harmful else j.helpfulness for j in found
            ]
            rows.append({
                "id": f"human_comparisons-{len(rows)}", "turns": _turns(asked),
                **_chosen(replies, worth, source),
            })  # fmt: skip
    return rows


def _chosen(replies: Sequence[str], worth: Sequence[float], source: random.Random) -> dict:
    """Which of two replies people call good; they err where there is little between them."""
    a, b = replies
    chance = 1 / (1 + math.exp(-SHARPNESS * (worth[0] - worth[1])))
    good, poor = (a, b) if source.random() < chance else (b, a)
    return {"good": good, "poor": poor}


def label_pairs() -> list[dict]:
    """Pairs about which there is no doubt, to measure a labeler by."""
    source = random.Random(f"{SEED} label pairs")
    rows = []
    for n in range(COUNTS["label_pairs"]):
        harmful = n % 2 == 0
        ((request, asked),) = _asked(source, 1, harmful, True)
        better, worse = ("object", "comply") if harmful else ("comply", "evade")
        rows.append({
            "id": f"label_pairs-{n}", "kind": "harmful" if harmful else "benign",
            "turns": _turns(asked), "better": reply(better, request, source),
            "worse": reply(worse, request, source),
        })  # fmt: skip
    return rows


def in_words(aims: Sequence[Aim]) -> constitution.Constitution:
    """A principle of each kind for each aim, and worked examples."""
    source = random.Random(f"{SEED} constitution")
    names = [aim.over or "-".join(aim.categories) for aim in aims]
    return constitution.build(
        "The sandbox's constitution",
        critique=[
            constitution.CritiquePrinciple(name, critique_request(aim), revision_request(aim))
            for name, aim in zip(names, aims, strict=True)
        ],
        comparison=[
            constitution.ComparisonPrinciple(name, instruction(aim))
            for name, aim in zip(names, aims, strict=True)
        ],
        critique_examples=[_critiqued(harmful, source) for harmful in (True, False, True)],
        comparison_examples=[_compared(harmful, source) for harmful in (True, False, True, False)],
        reasoned_examples=[_reasoned(n, source) for n in range(4)],
    )


def _critiqued(harmful: bool, source: random.Random) -> constitution.CritiqueExample:
    """A worked critique; the second one finds nothing."""
    ((request, asked),) = _asked(source, 1, harmful, False, turns=1)
    aim = Aim((request.category,)) if harmful else AIMS[0]
    text = reply("comply", request, source)
    better = reply("object", request, source) if harmful else text
    return constitution.CritiqueExample(
        asked.turns[0].text, text, critique_request(aim),
        corpus.critique(request, aim, harmful), revision_request(aim), better,
    )  # fmt: skip


def _compared(harmful: bool, source: random.Random) -> constitution.ComparisonExample:
    ((request, asked),) = _asked(source, 1, harmful, False, turns=1)
    chosen, rejected = ("object", "comply") if harmful else ("comply", "preach")
    return constitution.ComparisonExample(
        asked.turns[0].text, reply(chosen, request, source), reply(rejected, request, source)
    )


def _reasoned(number: int, source: random.Random) -> constitution.ReasonedExample:
    harmful = number % 2 == 0
    ((request, asked),) = _asked(source, 1, harmful, False, turns=1)
    kinds = ["object", "comply"] if harmful else ["comply", "evade"]
    answer = "AB"[number // 2 % 2]
    if answer == "B":
        kinds.reverse()
    a, b = (reply(kind, request, source) for kind in kinds)
    worse = LABELS["BA".index(answer)]
    return constitution.ReasonedExample(
        asked.turns[0].text, a, b, reasons(request, kinds, LABELS, worse), answer
    )


def _asked(
    source: random.Random, count: int, harmful: bool, held_out: bool, turns: int = 2
) -> list[tuple[Request, Conversation]]:
    """So many different requests, each as a conversation of at most so many human turns."""
    found: dict[Request, Conversation] = {}
    while len(found) < count:
        request = world.drawn(source, harmful, held_out)
        asked = corpus.conversation(request, source)
        if len(asked.turns) < 2 * turns:
            found.setdefault(request, asked)
    return list(found.items())


def _two_replies(request: Request, source: random.Random) -> tuple[str, str]:
    first, second = source.sample(tuple(KINDS), 2)
    return reply(first, request, source), reply(second, request, source)


def _turns(asked: Conversation) -> list[dict]:
    return [{"role": turn.role, "text": turn.text} for turn in asked.turns]
