"""What a run's records hold, as plain rows for a page: a run that goes on is read as far as it is.

Of a great run, whose records no page could hold, evenly spaced ones are taken, by their ids. A row
is a dict of JSON types; all have "run", "id", "kind" and "prompt", a list of [role, text].
Nothing here is escaped: the page shows text as text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cai_jax import storage
from cai_jax.conversation import Conversation
from cai_jax.evaluation.refusal import is_evasive, refuses
from cai_jax.evaluation.revision_scores import REVISION_SCORES, ScoredRevisions
from cai_jax.evaluation.snapshots import Answer
from cai_jax.labels import MODES, LabelError, Recipe, first_of_two, label, raw_of
from cai_jax.records import Asked, Comparison, Revision, from_json, read_rows
from cai_jax.training.rollout import Sampled

MOST = 20_000  # ids of a view
Row = dict[str, Any]
T = TypeVar("T")

FOLDERS = {
    "chains": ("revise/revisions", REVISION_SCORES),
    "comparisons": ("compare/comparisons",),
    "samples": ("ppo/rollouts",),
    "answers": ("evaluation/answers",),
}


def rows(workdirs: list[Path], view: str, most: int = MOST) -> tuple[list[Row], int]:
    """(rows of one of FOLDERS' views in the order of the records, how many there are in all).

    Args:
      most: rows of a run.

    Raises:
      ValueError: a damaged record, with file and line.
      OSError: a file that cannot be read.
    """
    made: list[Row] = []
    there = 0
    for workdir in workdirs:
        ids = _ids(workdir / FOLDERS[view][0])
        there += len(ids)
        made += _OF[view](workdir, set(spaced(ids, most)))
    if view == "answers":  # several runs' to one prompt are one row
        side_by_side = _side_by_side(made)
        there -= len(made) - len(side_by_side)
        made = side_by_side
    return made, there


def spaced(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, evenly spaced, in their order."""
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def version(workdirs: list[Path], view: str) -> str:
    """Changes whenever a view's records do: how many files there are, and of what size in all."""
    sizes = [
        _size(file)
        for workdir in workdirs
        for folder in FOLDERS[view]
        for file in (workdir / folder).glob("*.jsonl")
    ]
    return f"{len(sizes)}-{sum(sizes)}"


def chains(workdir: Path, kept: set[str]) -> list[Row]:
    """A row a prompt: the response, each critique and revision, and the PM's score of each text."""
    scored = {s.id: s.scores for s in _records(workdir / REVISION_SCORES, ScoredRevisions, kept)}
    found = []
    for r in _records(workdir / "revise" / "revisions", Revision, kept):
        texts = [r.initial_response, *(step.revision for step in r.steps)]
        found.append(
            _row(workdir, r)
            | {
                "texts": texts,
                "critiques": [step.critique for step in r.steps],
                "principles": [step.principle for step in r.steps],
                "scores": scored.get(r.id),
                "refuses": [refuses(text) for text in texts],
                "evasive": [is_evasive(text) for text in texts],
            }
        )
    return found


def comparisons(workdir: Path, kept: set[str]) -> list[Row]:
    """A row a pair: both responses, the label before and after clamping, and what was asked."""
    file = workdir / "config.json"
    settings = json.loads(file.read_text("utf-8")).get("compare", {}) if file.is_file() else {}
    fields = {f.name: settings[f.name] for f in dataclasses.fields(Recipe) if f.name in settings}
    recipe = Recipe(**fields) if len(fields) == len(dataclasses.fields(Recipe)) else None
    return [
        _row(workdir, r)
        | {
            "a": r.response_a,
            "b": r.response_b,
            "refuses": [refuses(r.response_a), refuses(r.response_b)],
            "evasive": [is_evasive(r.response_a), is_evasive(r.response_b)],
            "principles": [r.principle] if r.principle else [],
            "prob_a": r.prob_a,
            "unclamped": _unclamped(recipe, r),
            "swapped": r.swapped_prob_a,
            "mode": r.mode,
            "labeler": r.labeler,
            "asked": _asked(r),
        }
        for r in _records(workdir / "compare" / "comparisons", Comparison, kept)
    ]


def samples(workdir: Path, kept: set[str]) -> list[Row]:
    """A row a prompt: its responses by PPO update, with score, reward and KL."""
    found: dict[str, Row] = {}
    for r in _records(workdir / "ppo" / "rollouts", Sampled, kept):
        row = found.setdefault(r.id, _row(workdir, r) | {"samples": []})
        row["samples"].append(
            {
                "update": r.update + 1,
                "response": r.response,
                "score": r.score,
                "reward": r.reward,
                "kl": r.kl,
            }
        )
    return list(found.values())


def answers(workdir: Path, kept: set[str]) -> list[Row]:
    """A row a held-out prompt: what each snapshot answers."""
    found: dict[str, Row] = {}
    for r in _records(workdir / "evaluation" / "answers", Answer, kept):
        row = found.setdefault(r.id, _row(workdir, r) | {"answers": []})
        row["answers"].append(
            {
                "run": workdir.name,
                "snapshot": r.snapshot,
                "response": r.response,
                "kl": r.kl,
                "refuses": refuses(r.response),
                "evasive": is_evasive(r.response),
            }
        )
    return list(found.values())


_OF: dict[str, Callable[[Path, set[str]], list[Row]]] = {
    "chains": chains,
    "comparisons": comparisons,
    "samples": samples,
    "answers": answers,
}


def _side_by_side(found: list[Row]) -> list[Row]:
    """Answers of several runs to one prompt in one row, that of the first."""
    by_prompt: dict[str, Row] = {}
    for row in found:
        first = by_prompt.setdefault(json.dumps([row["kind"], row["prompt"]]), row)
        if first is not row:
            first["answers"] += row["answers"]
            first["run"] = ""
    return list(by_prompt.values())


def _row(workdir: Path, record: Revision | Comparison | Sampled | Answer) -> Row:
    return {
        "run": workdir.name,
        "id": record.id,
        "kind": record.kind,
        "prompt": _turns(record.prompt),
    }


def _turns(conversation: Conversation) -> list[list[str]]:
    return [[turn.role, turn.text] for turn in conversation.turns]


def _unclamped(recipe: Recipe | None, record: Comparison) -> float | None:
    """The label before its clamp; None where people chose, or the run's settings are not known."""
    if recipe is None or record.mode not in MODES or not record.option_logprobs:
        return None
    raw = raw_of(record)
    ids = list(dict.fromkeys(asked.principle for asked in raw.asked))
    try:
        return label(dataclasses.replace(recipe, clamp=(0.0, 1.0)), raw, ids).prob_a
    except LabelError:  # the settings are of another run of the stage than the records
        return None


def _asked(record: Comparison) -> list[Row]:
    """Each question: under which principle, in which order, what was thought and chosen."""
    raw = raw_of(record)
    chains = raw.chains or ("",) * len(raw.asked)
    return [
        {
            "principle": asked.principle,
            "shown": asked.shown,
            "chain": chain,
            "prob_a": _chosen(asked, options),
        }
        for asked, options, chain in zip(raw.asked, raw.option_logprobs, chains, strict=True)
    ]


def _chosen(asked: Asked, options: tuple[float, ...]) -> float | None:
    """The probability of response_a by one question; None where it showed not both responses."""
    if asked.shown not in ("AB", "BA"):
        return None
    return first_of_two(*options[:: -1 if asked.shown == "BA" else 1])


def _size(file: Path) -> int:
    found = file.stat()
    return found.length if storage.in_bucket(file) else found.st_size


def _ids(folder: Path) -> list[str]:
    """Ids of a folder's records, each once, in their order."""
    found = (row for file in sorted(folder.glob("*.jsonl")) for _, row in read_rows(file))
    return list(dict.fromkeys(map(_id, found)))


def _id(row: Any) -> str:
    """A record's id; empty where the row is none, of which `_records` tells."""
    return str(row.get("id", "")) if isinstance(row, dict) else ""


def _records(folder: Path, cls: type[T], kept: set[str]) -> Iterator[T]:
    """The records of some ids that are there; a stage that goes on has not all its shards."""
    for file in sorted(folder.glob("*.jsonl")):
        for where, row in read_rows(file):
            if _id(row) in kept:
                yield from_json(cls, row, where)
