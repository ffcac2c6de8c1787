"""The truth about a finished run in the sandbox, with intervals over its prompts."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cai_jax.evaluation.intervals import Interval, bootstrap_mean
from cai_jax.evaluation.snapshots import Answer
from cai_jax.pipeline import read_records
from cai_jax.progress import ResultRow
from cai_jax.records import Revision
from cai_jax.sandbox import oracle
from cai_jax.sandbox.oracle import Judgement
from cai_jax.snapshot_answers import titles

# What is told of each kind of prompt: (field, as a share of 1 or a number).
TOLD = {
    "red_team": ("harmfulness", "helpfulness", "evasiveness", "coherence"),
    "helpful": ("helpfulness", "over_refusal", "evasiveness", "coherence"),
}
KINDS = {"red_team": "harmful", "helpful": "innocent"}


def verdicts(workdir: Path) -> dict:
    """The oracle's means: of snapshots' held-out answers, and of revisions by their number.

    Returns:
      {"answers": {snapshot: {kind: {field: interval}}},
       "by category": {snapshot: {category: interval of harmfulness}},
       "revisions": [interval of harmfulness, ...]}, intervals as dicts.
    """
    answers = read_records(workdir / "evaluation" / "answers", Answer)
    judged: dict = defaultdict(lambda: defaultdict(list))
    harmful: dict = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        request = oracle.request_of(answer.prompt)
        found = oracle.judge_reply(request, answer.response)
        judged[answer.snapshot][answer.kind].append((answer.id, found))
        if request.category:
            harmful[answer.snapshot][request.category].append((answer.id, found))
    return {
        "answers": {
            snapshot: {
                kind: {field: _mean(found[kind], field) for field in TOLD[kind]} for kind in TOLD
            }
            for snapshot, found in judged.items()
        },
        "by category": {
            snapshot: {name: _mean(rows, "harmfulness") for name, rows in sorted(found.items())}
            for snapshot, found in harmful.items()
        },
        "revisions": _by_revision(read_records(workdir / "revise" / "revisions", Revision)),
    }


def _by_revision(chains: Sequence[Revision]) -> list[dict]:
    rounds: list[list[tuple[str, Judgement]]] = []
    for chain in chains:
        request = oracle.request_of(chain.prompt)
        texts = [chain.initial_response, *(step.revision for step in chain.steps)]
        rounds = rounds or [[] for _ in texts]
        for found, text in zip(rounds, texts, strict=True):
            found.append((chain.id, oracle.judge_reply(request, text)))
    return [_mean(found, "harmfulness") for found in rounds]


def _mean(found: Sequence[tuple[str, Judgement]], field: str) -> dict:
    """Over prompts, each the mean of its samples."""
    samples: dict[str, list[float]] = defaultdict(list)
    for name, judgement in found:
        samples[name].append(getattr(judgement, field))
    means = [float(np.mean(values)) for values in samples.values()]
    return dataclasses.asdict(bootstrap_mean(means, seed=0))


def rows_of(found: dict) -> dict[str, tuple[list[str], list[ResultRow]]]:
    """Tables of `verdicts`: title to (columns, rows)."""
    names = {name: title for name, title in titles(2).items() if name in found["answers"]}
    columns = list(names.values())

    def row(label: str, value: Callable[[str], dict], style: str) -> ResultRow:
        return ResultRow(label, tuple(Interval(**value(name)) for name in names), style)

    answers = [
        row(
            f"{field.replace('_', ' ')}, {KINDS[kind]}",
            lambda name, kind=kind, field=field: found["answers"][name][kind][field],
            "number" if field == "harmfulness" else "share",
        )
        for kind, fields in TOLD.items()
        for field in fields
    ]
    categories = sorted(set.intersection(*map(set, found["by category"].values())))
    by_category = [
        row(name, lambda snapshot, name=name: found["by category"][snapshot][name], "number")
        for name in categories
    ]
    rounds = [Interval(**value) for value in found["revisions"]]
    return {
        "The oracle's verdict on held-out prompts": (columns, answers),
        "Harmfulness, 0 to 4, by category": (columns, by_category),
        "Harmfulness, 0 to 4, by number of revisions": (
            [str(n) for n in range(len(rounds))],
            [ResultRow("harmfulness", tuple(rounds), "number")],
        ),
    }
