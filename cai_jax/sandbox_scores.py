"""The truth about a finished run in the sandbox, with intervals over its prompts."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cai_jax.evaluation.diversity import of_revisions
from cai_jax.evaluation.intervals import bootstrap_mean
from cai_jax.evaluation.snapshots import Answer
from cai_jax.pipeline import read_records
from cai_jax.records import Kind, Revision
from cai_jax.sandbox import oracle
from cai_jax.sandbox.oracle import Judgement
from cai_jax.sandbox.principles import NAMING, naming
from cai_jax.sandbox.sentences import preaches
from cai_jax.sandbox_labels import label_verdicts
from cai_jax.shards import Shards
from cai_jax.training.rollout import Sampled

# What is told of each kind of prompt: fields, all shares of 1 but for harmfulness, 0 to 4.
TOLD = {
    "red_team": ("harmfulness", "helpfulness", "evasiveness", "preaching", "coherence"),
    "helpful": ("helpfulness", "over_refusal", "evasiveness", "preaching", "coherence"),
}
POINTS = 10  # along RL: each the mean of as many updates in a row
Found = tuple[str, dict[str, float]]  # id of a prompt, and the truth about an answer to it


def verdicts(workdir: Path) -> dict:
    """The oracle's means over a run's records, as far as it went; intervals as dicts.

    Returns:
      {"answers": {snapshot: {kind: {field: interval}}}, to held-out prompts, once it has evaluated;
       "by category": {snapshot: {category: interval of harmfulness}};
       "revisions": [interval of harmfulness, ...] by their number; "diversity": [{measure of
         evaluation.diversity: interval}, ...] likewise;
       "cleared": {each of NAMING: interval of the share of harmful responses that a revision by
         such a principle frees of harm};
       "labels": sandbox_labels.label_verdicts;
       "rl": [{"sequences", "kl", "score", "held_out_score", "red_team": {field: interval},
         "helpful": {...}}, ...] along PPO, to the prompts that it trains on}
    """
    judged: dict = defaultdict(lambda: defaultdict(list))
    harmful: dict = defaultdict(lambda: defaultdict(list))
    answers = workdir / "evaluation" / "answers"
    for answer in read_records(answers, Answer) if answers.exists() else ():
        request = oracle.request_of(answer.prompt)
        found = (answer.id, _truth(request, answer.response))
        judged[answer.snapshot][answer.kind].append(found)
        if request.category:
            harmful[answer.snapshot][request.category].append(found)
    chains = read_records(workdir / "revise" / "revisions", Revision)
    return {
        "answers": {snapshot: _told(found) for snapshot, found in judged.items()},
        "by category": {
            snapshot: {name: _mean(rows, "harmfulness") for name, rows in sorted(found.items())}
            for snapshot, found in harmful.items()
        },
        "revisions": _by_revision(chains),
        "diversity": [
            {name: dataclasses.asdict(value) for name, value in measured.items()}
            for measured in of_revisions(chains)
        ],
        "cleared": _cleared(chains),
        "labels": label_verdicts(workdir),
        "rl": _along_rl(workdir / "ppo" / "rollouts"),
    }


def _truth(request: oracle.Request, text: str) -> dict[str, float]:
    found: Judgement = oracle.judge_reply(request, text)
    return {**dataclasses.asdict(found), "preaching": float(preaches(text))}


def _told(found: dict[Kind, list[Found]]) -> dict:
    return {
        kind: {field: _mean(found[kind], field) for field in TOLD[kind]}
        for kind in TOLD
        if kind in found
    }


def _by_revision(chains: Sequence[Revision]) -> list[dict]:
    rounds: list[list[Found]] = []
    for chain in chains:
        request = oracle.request_of(chain.prompt)
        texts = [chain.initial_response, *(step.revision for step in chain.steps)]
        rounds = rounds or [[] for _ in texts]
        for found, text in zip(rounds, texts, strict=True):
            found.append((chain.id, _truth(request, text)))
    return [_mean(found, "harmfulness") for found in rounds]


def _cleared(chains: Sequence[Revision]) -> dict:
    found: dict[str, list[Found]] = defaultdict(list)
    for chain in chains:
        request = oracle.request_of(chain.prompt)
        before = _truth(request, chain.initial_response)["harmfulness"]
        for step in chain.steps:
            after = _truth(request, step.revision)["harmfulness"]
            named = naming(step.principle, request.category)
            if before and named:
                found[named].append((chain.id, {"cleared": float(not after)}))
            before = after
    return {name: _mean(found[name], "cleared") for name in NAMING if name in found}


def _along_rl(folder: Path) -> list[dict]:
    """Empty where the run's RL was not PPO."""
    by_update: dict[int, list[Sampled]] = defaultdict(list)
    for sampled in Shards(folder).read(Sampled) if folder.exists() else ():
        by_update[sampled.update].append(sampled)
    updates = sorted(by_update)
    points = []
    for group in np.array_split(updates, min(POINTS, len(updates))) if updates else ():
        rows = [row for update in group for row in by_update[int(update)]]
        found: dict[Kind, list[Found]] = defaultdict(list)
        for row in rows:
            found[row.kind].append((row.id, _truth(oracle.request_of(row.prompt), row.response)))
        held_out = [row.held_out_score for row in rows if row.held_out_score is not None]
        points.append({
            "sequences": float(np.mean([len(by_update[int(u)]) * int(u) for u in group])),
            "kl": float(np.mean([row.kl for row in rows])),
            "score": float(np.mean([row.score for row in rows])),
            "held_out_score": float(np.mean(held_out)) if held_out else None,
            **_told(found),
        })  # fmt: skip
    return points


def _mean(found: Sequence[Found], field: str) -> dict:
    """Over prompts, each the mean of its samples."""
    samples: dict[str, list[float]] = defaultdict(list)
    for name, truth in found:
        samples[name].append(truth[field])
    means = [float(np.mean(values)) for values in samples.values()]
    return dataclasses.asdict(bootstrap_mean(means, seed=0))
