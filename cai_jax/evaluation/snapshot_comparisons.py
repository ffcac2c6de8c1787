"""Comparisons of snapshots' answers to the same prompts, by any judge; Elo and win rates from them.

A judge is a feedback model, a preference model, or people: all leave the same records. The paper's
crowdworkers compared harmlessness on red-team prompts and helpfulness on others, two Elo scales
(arXiv 2212.08073, section 4.4); `kind` tells them apart.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cai_jax import prompts
from cai_jax.conversation import Conversation
from cai_jax.decoding.engine import Engine
from cai_jax.evaluation.elo import Game, elo, win_rates
from cai_jax.evaluation.intervals import Interval
from cai_jax.evaluation.snapshots import Answer
from cai_jax.principles import ComparisonPrinciple, Constitution
from cai_jax.prompts import CHOICES, Format
from cai_jax.records import Kind, Record, from_json, read_rows
from cai_jax.script import Choose, Script
from cai_jax.shards import Shards


@dataclasses.dataclass(frozen=True)
class SnapshotComparison(Record):
    """Two snapshots' responses to a prompt and the probability that the first is better.

    Attributes:
      snapshot_a, snapshot_b: whose responses they are.
      id: the prompt's.
      kind: "red_team", compared for harmlessness, or "helpful".
      prob_a: both orders averaged; 1, 0 or 0.5 where people chose.
      judge: who compared.
      option_logprobs: for each order asked, raw nats of (A) and (B) as they were shown, or the
        preference model's two scores; empty where people chose.
    """

    snapshot_a: str
    snapshot_b: str
    id: str
    kind: Kind
    prompt: Conversation
    response_a: str
    response_b: str
    prob_a: float
    judge: str
    option_logprobs: tuple[tuple[float, ...], ...]


def read(path: Path) -> list[SnapshotComparison]:
    """Comparisons already made, of a file or of a folder of such.

    Raises:
      ValueError: there is none, or one is malformed, with file and line.
      OSError: a file that cannot be read.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    rows = itertools.chain.from_iterable(map(read_rows, files))
    if made := [from_json(SnapshotComparison, row, where) for where, row in rows]:
        return made
    raise ValueError(f"{path} holds no comparisons of snapshots.")


def paired_answers(answers: Mapping[str, Sequence[Answer]]) -> list[SnapshotComparison]:
    """What is to be compared, undecided at 0.5: every two snapshots, on every prompt and sample.

    Args:
      answers: snapshot -> its answers.

    Raises:
      ValueError: two snapshots did not answer the same prompts, or there is one alone.
    """
    if len(answers) < 2:
        raise ValueError("one snapshot alone cannot be compared; give two or more.")
    by_prompt = {name: {(a.id, a.sample): a for a in found} for name, found in answers.items()}
    first = next(iter(by_prompt))
    for name, found in by_prompt.items():
        if differing := set(found) ^ set(by_prompt[first]):
            raise ValueError(
                f"{name} and {first} did not answer the same prompts (for example "
                f"{min(differing)[0]}); evaluate both on the same held-out prompts."
            )
    made = []
    for (name_a, a), (name_b, b) in itertools.combinations(by_prompt.items(), 2):
        for key, one in a.items():
            if one.prompt != b[key].prompt:
                raise ValueError(f"{name_a} and {name_b} know two prompts by the name {one.id}.")
            made.append(
                SnapshotComparison(
                    name_a, name_b, one.id, one.kind, one.prompt, one.response, b[key].response,
                    prob_a=0.5, judge="", option_logprobs=(),
                )
            )  # fmt: skip
    return made


def judge(
    undecided: Sequence[SnapshotComparison],
    engine: Engine,
    form: Format,
    constitution: Constitution,
    instructions: Mapping[str, str],
    few_shots: int,
    directory: Path,
    seed: int,
    name: str,
    shard_size: int,
    progress: Callable[[float, int], None],
) -> list[SnapshotComparison]:
    """Asks a feedback model about each pair in both orders, shard by shard.

    Equal responses tie and are not asked about.

    Args:
      instructions: kind -> what the better response is chosen by.
      few_shots: how many of the constitution's worked comparisons stand before the question.
    """

    def decide(part: Sequence[SnapshotComparison], first: int) -> list[SnapshotComparison]:
        scripts = [
            _script(form, constitution, instructions, few_shots, seed, c, first + n, swapped)
            for n, c in enumerate(part)
            for swapped in (False, True)
            if c.response_a != c.response_b
        ]
        answers = iter(engine.run(scripts, seed) if scripts else [])
        decided = []
        for c in part:
            raw = ()
            if c.response_a != c.response_b:
                raw = tuple(next(answers).segments[-1].option_logprobs for _ in range(2))
            decided.append(
                dataclasses.replace(c, prob_a=_both_orders(raw), judge=name, option_logprobs=raw)
            )
        return decided

    return _by_shard(undecided, decide, directory, shard_size, progress)


def judge_by_scores(
    undecided: Sequence[SnapshotComparison],
    scores: Callable[[list[tuple[Conversation, str]]], np.ndarray],
    directory: Path,
    name: str,
    shard_size: int,
    progress: Callable[[float, int], None],
) -> list[SnapshotComparison]:
    """As `judge`, by a preference model: 1 / (1 + exp(-(score_a - score_b))).

    Args:
      scores: of (conversation, response) pairs, float[N].
    """

    def decide(part: Sequence[SnapshotComparison], first: int) -> list[SnapshotComparison]:
        texts = [(c.prompt, text) for c in part for text in (c.response_a, c.response_b)]
        pairs = np.asarray(scores(texts), float).reshape(-1, 2).tolist()
        return [
            dataclasses.replace(
                c, prob_a=_sigmoid(a - b), judge=name, option_logprobs=((a, b),)
            )
            for c, (a, b) in zip(part, pairs, strict=True)
        ]  # fmt: skip

    return _by_shard(undecided, decide, directory, shard_size, progress)


def games(comparisons: Sequence[SnapshotComparison], kind: str, hard: bool) -> list[Game]:
    """The comparisons of one kind as games.

    Args:
      hard: whether the likelier side wins the whole game, as where people choose; else it wins the
        judge's probability of it.
    """

    def share(prob: float) -> float:
        return (np.sign(prob - 0.5) + 1) / 2 if hard else prob

    return [
        Game(c.id, c.snapshot_a, c.snapshot_b, float(share(c.prob_a)))
        for c in comparisons
        if c.kind == kind
    ]


@dataclasses.dataclass(frozen=True)
class Standing:
    """One kind's results. Attributes: elo, snapshot -> Elo with the anchor at 0; win_rates, first
    snapshot -> second -> share of prompts that the first won, None on the diagonal."""

    elo: dict[str, Interval]
    win_rates: dict[str, dict[str, Interval | None]]


def standing(
    comparisons: Sequence[SnapshotComparison],
    kind: str,
    anchor: str,
    hard: bool,
    seed: int,
    resamples: int,
) -> Standing:
    """Elo and the win-rate matrix of one kind of prompt.

    Raises:
      ValueError: no comparison of that kind, or an unknown anchor.
    """
    played = games(comparisons, kind, hard)
    found, rates = elo(played, anchor, seed, resamples), win_rates(played)
    matrix = {a: {b: rates.get((a, b)) for b in found} for a in found}
    return Standing(found, matrix)


def _by_shard(undecided, decide, directory: Path, size: int, progress) -> list[SnapshotComparison]:
    parts = [undecided[i : i + size] for i in range(0, len(undecided), size)]
    shards = Shards(directory, len(parts))
    done = shards.done()
    for number, part in enumerate(parts):
        if number not in done:
            shards.write(number, decide(part, number * size))
        progress(min((number + 1) * size, len(undecided)), len(undecided))
    return shards.read(SnapshotComparison)


def _script(
    form: Format,
    constitution: Constitution,
    instructions: Mapping[str, str],
    few_shots: int,
    seed: int,
    c: SnapshotComparison,
    number: int,
    swapped: bool,
) -> Script:
    first, second = (c.response_b, c.response_a) if swapped else (c.response_a, c.response_b)
    principle = ComparisonPrinciple(c.kind, instructions[c.kind])
    asked = prompts.comparison(
        form, constitution, few_shots, seed, c.prompt, principle, first, second
    )
    return Script((*asked, Choose(CHOICES)), f"snapshots/{number}/{'BA' if swapped else 'AB'}")


def _both_orders(raw: tuple[tuple[float, float], ...]) -> float:
    """Probability of response_a: it stood at (A) in the first order, at (B) in the second."""
    if not raw:
        return 0.5
    (a, b), (swapped_b, swapped_a) = raw
    return (_sigmoid(a - b) + _sigmoid(swapped_a - swapped_b)) / 2


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(min(x, 700.0), -700.0)))
