"""How often a run goes through each of its programs, and how long that takes at the least."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from cai_jax.decoding.calls import SIZES
from cai_jax.plan.decoding import READ, TOKEN, score_name, score_rows
from cai_jax.plan.program import Compiled
from cai_jax.plan.programs import ROLLOUT
from cai_jax.plan.topology import Topology
from cai_jax.run_texts import Data
from cai_jax.settings import RunSettings

CHARACTERS = 4  # of a token, about
REQUEST = 40  # tokens that ask for a critique, a revision or a choice, about
Times = Mapping[str, Mapping[str, float]]  # stage -> program -> how often


@dataclasses.dataclass(frozen=True)
class Stage:
    """Attributes: name; seconds at the least; most, the program that takes most of them."""

    name: str
    seconds: float
    most: str


def times_of(s: RunSettings, data: Data) -> Times:
    """How often each stage runs each program, if every sample is as long as its limit.

    The evaluation at the end is left out.
    """
    slots, size = s.engine.slots, SIZES[-1]

    def tokens(rows) -> float:
        texts = (turn.text for row in rows for turn in row.conversation.turns)
        return sum(map(len, texts)) / CHARACTERS

    def asked(count: float, each: float, reads: float) -> dict[str, float]:
        """Of so many Scripts, each of which samples so many tokens, one after the other."""
        return {TOKEN: max(count / slots, 1.0) * each, READ: reads / size}

    r, c, p, o = s.revise, s.compare, s.preference_model, s.ppo
    red, helpful = len(data.red_team), len(data.helpful)
    asks, asks_helpful = tokens(data.red_team), tokens(data.helpful)
    round_sampled = (r.critique_tokens if r.critique else 0) + r.revision_tokens
    round_read = r.revision_tokens + (2 if r.critique else 1) * REQUEST
    orders = 2 if c.both_orders else 1
    principles = 1 if c.principles != "all" else 16
    askings = red * orders * principles * max(1, c.chains)
    chain = c.chain_tokens if c.mode == "chain_of_thought" else 0
    kept = r.rounds if s.finetune.revisions == "all" else 1
    texts = red * kept * r.revision_tokens + kept * asks
    texts += r.helpful_samples * (helpful * r.response_tokens + asks_helpful)
    pairs = (red + len(data.helpful_comparisons)) * (1 - p.held_out)

    def steps(group, rows: float) -> float:
        return group.epochs * math.ceil(rows / group.batch_size)

    found = {
        "critique and revision": asked(
            red,
            r.response_tokens + r.rounds * round_sampled,
            asks * (1 + r.rounds) + red * r.rounds * round_read,
        ),
        "helpful responses": asked(
            helpful * r.helpful_samples, r.response_tokens, asks_helpful * r.helpful_samples
        ),
        "finetuning": {"finetune": steps(s.finetune, texts / s.finetune.length)},
        "pairs of responses": asked(2 * red, c.response_tokens, 2 * asks),
        "AI feedback": asked(
            askings,
            chain,
            askings * (2 * c.response_tokens + REQUEST) + asks * askings / max(red, 1),
        )
        | {score_name(slots): askings / score_rows(slots)},
        "preference model": {"preference model": (p.members + p.halves) * steps(p, pairs)},
    }
    if s.algorithm == "dpo":
        return found | {"DPO": {"DPO": steps(s.dpo, pairs)}}
    each = {
        "PPO, to decode": 1,
        ROLLOUT + TOKEN: max(o.batch_size / slots, 1.0) * o.response_tokens,
        ROLLOUT + READ: o.batch_size * o.prompt_tokens / size,
        "PPO, log-probs": 2,
        "PPO, values": 1,
        "PPO, scores": p.members + p.halves,
        **dict.fromkeys(("PPO", "PPO, policy", "PPO, value"), o.epochs * o.minibatches),
    }
    return found | {"PPO": {name: o.updates * n for name, n in each.items()}}


def hours(times: Times, rows: Sequence[Compiled], found: Topology) -> list[Stage]:
    """Seconds of each stage were every program as fast as its busiest resource allows."""
    each = {
        row.program.name: max(row.bounds(found.chip, len(found.devices)).values()) for row in rows
    }
    stages = []
    for name, counts in times.items():
        taken = {program: n * each[program] for program, n in counts.items() if program in each}
        stages.append(Stage(name, sum(taken.values()), max(taken, key=taken.get, default="")))
    return stages
