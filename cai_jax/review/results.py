"""What raters' choices come to: Elo, agreement, attention checks, and records for other stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cai_jax.evaluation import agreement
from cai_jax.evaluation.results import ANCHOR
from cai_jax.evaluation.snapshot_comparisons import SnapshotComparison, standing
from cai_jax.records import Comparison, Provenance, to_line
from cai_jax.review.choices import BETTER, Choice
from cai_jax.review.tasks import Task, comparisons
from cai_jax.snapshot_answers import titles
from cai_jax.snapshot_evaluation import KINDS

RESAMPLES = 1000


def results(
    tasks: Mapping[str, Task], ties: Sequence[SnapshotComparison], choices: Sequence[Choice]
) -> dict[str, Any]:
    """Everything that the page of results shows, as JSON types.

    Args:
      tasks: of all choices that count, attention checks too, by id.
      choices: that stand.
    """
    known = [c for c in choices if c.task in tasks]
    chosen = [c for c in known if c.prob_a is not None]
    pairs = [c for c in chosen if tasks[c.task].compared]
    made = with_ties(comparisons(tasks, pairs), ties)
    found: dict[str, Any] = {}
    for kind, name in KINDS.items():
        if any(c.kind == kind for c in made):
            found[name] = _elo(made, kind)
    by_task: dict[str, dict[str, str]] = {}
    for c in pairs:
        by_task.setdefault(c.task, {})[c.rater] = "a" if c.prob_a == 1 else "b"
    several = {task: of for task, of in by_task.items() if len(of) > 1}
    return {
        "choices": len(pairs),
        "skipped": len(known) - len(chosen),
        "unknown": len(choices) - len(known),
        "standings": found,
        "raters": [_rater(name, known, tasks) for name in sorted({c.rater for c in known})],
        "agreement": {
            "pairs": len(several),
            "same": _finite(agreement.same_choice(several)),
            "alpha": agreement.krippendorff_alpha(several),
        },
    }


def _elo(made: Sequence[SnapshotComparison], kind: str) -> dict[str, Any]:
    """Elo of one kind of prompt; empty, and why, while choices do not connect all snapshots."""
    first = anchor(made)
    try:
        elo = standing(made, kind, first, hard=True, seed=0, resamples=RESAMPLES).elo
    except ValueError as error:
        return {"anchor": first, "elo": {}, "why": str(error)}
    return {
        "anchor": first,
        "elo": {name: dataclasses.asdict(interval) for name, interval in elo.items()},
        "why": "",
    }


def with_ties(
    made: Sequence[SnapshotComparison], ties: Sequence[SnapshotComparison]
) -> list[SnapshotComparison]:
    """Comparisons and, between snapshots that somebody compared, the prompts with the same text."""
    met = {(c.kind, c.snapshot_a, c.snapshot_b) for c in made}
    return [*made, *(c for c in ties if (c.kind, c.snapshot_a, c.snapshot_b) in met)]


def anchor(made: Sequence[SnapshotComparison]) -> str:
    """Whose Elo is 0: SL-CAI's of the first run, else the first snapshot's."""
    names = list(dict.fromkeys(name for c in made for name in (c.snapshot_a, c.snapshot_b)))
    title = titles(1)[ANCHOR]
    return next((name for name in names if name.endswith(title)), names[0])


def snapshot_lines(
    tasks: Mapping[str, Task], ties: Sequence[SnapshotComparison], choices: Sequence[Choice]
) -> str:
    """Choices between snapshots as `evaluate --config.records` and its figures read them."""
    return "".join(map(to_line, with_ties(comparisons(tasks, choices), ties)))


def comparison_lines(tasks: Mapping[str, Task], choices: Sequence[Choice]) -> str:
    """The same choices as Comparison records, such as train a preference model."""
    made = [
        Comparison(
            id=f"{c.id}/{c.snapshot_a}/{c.snapshot_b}/{c.judge}",
            kind=c.kind,
            prompt=c.prompt,
            response_a=c.response_a,
            response_b=c.response_b,
            prob_a=c.prob_a,
            principle="",
            labeler=c.judge,
            mode="human",
            option_logprobs=(),
            swapped_prob_a=None,
            source="human",
            provenance=Provenance(f"{c.snapshot_a} and {c.snapshot_b}", "", 0, ""),
        )
        for c in comparisons(tasks, choices)
    ]
    return "".join(map(to_line, made))


def _rater(name: str, known: Sequence[Choice], tasks: Mapping[str, Task]) -> dict[str, Any]:
    own = [c for c in known if c.rater == name]
    checks = [c for c in own if tasks[c.task].better and c.said in BETTER]
    passed = sum((c.prob_a == 1) == (tasks[c.task].better == "a") for c in checks)
    return {
        "name": name,
        "choices": sum(c.prob_a is not None and not tasks[c.task].better for c in own),
        "skipped": sum(c.prob_a is None for c in own),
        "checks": len(checks),
        "passed": passed,
    }


def _finite(interval: Any) -> dict[str, Any] | None:
    """An interval as JSON; None where there is nothing to estimate."""
    return dataclasses.asdict(interval) if interval.n else None
