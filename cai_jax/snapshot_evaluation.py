"""Snapshots of several runs by one judge: `cai-jax evaluate --config=experiments/snapshots.py`."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cai_jax import constitution as constitutions
from cai_jax import hosts, storage
from cai_jax.evaluation import revision_scores, snapshot_comparisons
from cai_jax.evaluation.intervals import Interval
from cai_jax.evaluation.results import ANCHOR
from cai_jax.evaluation.revision_scores import RevisionScore, ScoredRevisions
from cai_jax.evaluation.snapshot_comparisons import SnapshotComparison
from cai_jax.evaluation.snapshots import Answer
from cai_jax.finished_models import preference_model_of_run
from cai_jax.machine import engine_of, mesh_of_shape
from cai_jax.models.scoring import score_texts
from cai_jax.pipeline import counter, read_records
from cai_jax.principles import Constitution
from cai_jax.progress import Progress, ResultRow
from cai_jax.records import Revision
from cai_jax.settings import ConfigError, EngineSize, MeshShape, build
from cai_jax.shards import write_atomically
from cai_jax.snapshot_answers import titles
from cai_jax.weights.load import Model, load_model
from cai_jax.workdir import Workdir, digest, rl_sequences

KINDS = {"red_team": "harmlessness", "helpful": "helpfulness"}
STAGE = "comparisons"
SCORED_AT_A_TIME = 16


@dataclasses.dataclass(frozen=True)
class SnapshotSettings:
    """Who is compared and who judges; experiments/snapshots.py says what each key means."""

    seed: int
    runs: str
    records: str
    judge: str
    preference_model: str
    dtype: str
    constitution: str
    few_shots: int
    harmless_instruction: str
    helpful_instruction: str
    anchor: str
    hard: bool
    shard_size: int
    resamples: int
    engine: EngineSize
    mesh: MeshShape

    def __post_init__(self):
        judges = [name for name in ("records", "judge", "preference_model") if getattr(self, name)]
        if len(judges) != 1:
            raise ValueError(
                "give one judge: config.judge (a model), config.preference_model (the folder of "
                "one) or config.records (people's comparisons), not "
                f"{len(judges)} of them."
            )
        if not self.runs and not self.records:
            raise ValueError(
                "config.runs is empty; name the folders whose answers are judged, or give "
                "comparisons already made in config.records."
            )
        if self.shard_size < 1 or self.resamples < 1:
            raise ValueError("shard_size and resamples must be at least 1.")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A point of a run. Attributes: run, its folder's name; sequences, that RL-CAI was trained on;
    parameters, None where the run did not note them."""

    run: str
    snapshot: str
    sequences: int
    parameters: int | None


def compare_runs(config: Mapping[str, Any], path: Path, force: bool, progress: Progress) -> None:
    """Judges every two snapshots; leaves results.json and win_rates.csv, and prints the tables.

    Raises:
      ValueError: a setting, run or file that cannot be used; before any compute.
      OSError: a file that cannot be read or written.
    """
    s = build(SnapshotSettings, config)
    workdir = Workdir(path, force)
    snapshots: dict[str, Snapshot] = {}
    by_revision: dict[str, list[RevisionScore]] = {}
    folders = [storage.path(run.strip()) for run in s.runs.split(",") if run.strip()]
    if s.records:
        made = snapshot_comparisons.read(storage.path(s.records))
        snapshots = _compared(made, folders) if folders else {}
        workdir.prepare(s, 10_000_000)
    else:
        snapshots, answers = read_runs(folders)
        undecided = snapshot_comparisons.paired_answers(answers)
        revisions = read_revisions(folders) if s.preference_model else {}
        constitution = constitutions.load(s.constitution)
        mesh = mesh_of_shape(s.mesh)
        model = (
            load_model(s.judge, s.dtype, mesh, progress.say)
            if s.judge
            else preference_model_of_run(storage.path(s.preference_model), mesh, progress.say)
        )
        made = _judged(s, model, mesh, constitution, undecided, workdir, progress)
        by_revision = {
            run: _scored(s, model, mesh, run, rows, workdir, progress)
            for run, rows in revisions.items()
        }
    names = list(snapshots) or list(
        dict.fromkeys(name for c in made for name in (c.snapshot_a, c.snapshot_b))
    )
    anchor = s.anchor or next(
        (name for name, of in snapshots.items() if of.snapshot == ANCHOR), names[0]
    )
    kinds = [kind for kind in KINDS if any(c.kind == kind for c in made)]
    standings = {
        kind: snapshot_comparisons.standing(made, kind, anchor, s.hard, s.seed, s.resamples)
        for kind in kinds
    }
    workdir.write_json(
        "results.json",
        {
            "judge": made[0].judge,
            "anchor": anchor,
            "hard": s.hard,
            "snapshots": {name: dataclasses.asdict(of) for name, of in snapshots.items()},
            "standings": {kind: dataclasses.asdict(found) for kind, found in standings.items()},
            "pm_by_revision": {
                run: [dataclasses.asdict(each) for each in found]
                for run, found in by_revision.items()
            },
        },
    )
    _write_matrix(workdir.path / "win_rates.csv", standings)
    rows = [
        ResultRow(name, tuple(standings[kind].elo.get(name) for kind in kinds), "whole")
        for name in names
    ]
    notes = [f"{anchor} is at 0.", f"Judged by {made[0].judge}."]
    progress.results_table("Elo", [KINDS[kind] for kind in kinds], rows, notes)
    for kind, found in standings.items():
        rows = [
            ResultRow(f"{a} over", tuple(r.values()), "share") for a, r in found.win_rates.items()
        ]
        progress.results_table(f"Win rates, {KINDS[kind]}", list(found.win_rates), rows)
    for run, scores in by_revision.items():
        rows = [
            ResultRow(
                f"revision {n}" if n else "initial response",
                (each.score, each.over_initial and each.over_initial.difference),
                "number",
            )
            for n, each in enumerate(scores)
        ]
        title = f"PM score of red-team revisions, {run}"
        progress.results_table(title, ("score", "less the initial response's"), rows)


def _compared(made: Sequence[SnapshotComparison], folders: list[Path]) -> dict[str, Snapshot]:
    """The runs' snapshots that people compared.

    Raises:
      ConfigError: they compared another.
    """
    known = read_runs(folders)[0]
    named = dict.fromkeys(name for c in made for name in (c.snapshot_a, c.snapshot_b))
    if strange := set(named) - set(known):
        said = f"config.records compares '{min(strange)}', which is no snapshot of config.runs."
        raise ConfigError(said)
    return {name: known[name] for name in named}


def read_runs(folders: list[Path]) -> tuple[dict[str, Snapshot], dict[str, list[Answer]]]:
    """(name -> snapshot, name -> its answers) of finished runs.

    Raises:
      ConfigError: a folder is no run with a finished evaluation, or two have one name.
    """
    if len({folder.name for folder in folders}) < len(folders):
        raise ConfigError("config.runs: two folders have one name; rename one of them.")
    snapshots, answers = {}, {}
    for folder in folders:
        if not (folder / "evaluation" / "done.json").exists():
            raise ConfigError(
                f"config.runs: {folder} has no finished 'evaluation'; run `cai-jax evaluate` with "
                "that run's config and this workdir first."
            )
        made_from = json.loads((folder / "evaluation" / "inputs.json").read_text("utf-8"))
        results = json.loads((folder / "evaluation" / "results.json").read_text("utf-8"))
        found = read_records(folder / "evaluation" / "answers", Answer)
        trained = rl_sequences(folder)
        for snapshot, title in titles(made_from["evaluate"].get("best_of", 1)).items():
            name = f"{folder.name} {title}" if len(folders) > 1 else title
            steps = trained if snapshot == "rl_cai" else 0
            snapshots[name] = Snapshot(folder.name, snapshot, steps, results.get("parameters"))
            answers[name] = [a for a in found if a.snapshot == snapshot]
    return snapshots, answers


def read_revisions(folders: Sequence[Path]) -> dict[str, list[Revision]]:
    """Run's name -> its red-team prompts with initial responses and revisions.

    Raises:
      ConfigError: a run has none.
    """
    for folder in folders:
        if not (folder / "revise" / "done.json").exists():
            raise ConfigError(
                f"config.runs: {folder} has no finished 'revise', whose revisions a preference "
                "model scores; run `cai-jax revise` with that run's config and this workdir first."
            )
    return {f.name: read_records(f / "revise" / "revisions", Revision) for f in folders}


def _judged(
    s: SnapshotSettings,
    model: Model,
    mesh: jax.sharding.Mesh | None,
    constitution: Constitution,
    undecided: list[SnapshotComparison],
    workdir: Workdir,
    progress: Progress,
) -> list[SnapshotComparison]:
    name = f"{model.name}@{model.fingerprint}"
    workdir.prepare(s, 10_000_000)
    inputs = {
        **{key: value for key, value in dataclasses.asdict(s).items() if key in _ASKING},
        "judge": name,
        "constitution": constitution.hash,
        "compared": digest([[c.snapshot_a, c.snapshot_b, c.id, c.response_a, c.response_b]
                            for c in undecided]),
    }  # fmt: skip
    folder = workdir.path / STAGE / "records"
    if not workdir.begin(STAGE, inputs):
        progress.say("✓ comparisons of snapshots: finished in a former run")
        return read_records(folder, SnapshotComparison)
    with progress.stage("comparisons of snapshots", len(undecided), "pairs") as bar:
        if s.judge:
            engine = engine_of(s.engine, model)
            instructions = {"red_team": s.harmless_instruction, "helpful": s.helpful_instruction}
            made = snapshot_comparisons.judge(
                undecided, engine, model.format, constitution, instructions, s.few_shots, folder,
                s.seed, name, s.shard_size, counter(bar),
            )  # fmt: skip
        else:
            made = snapshot_comparisons.judge_by_scores(
                undecided, _scores(model, mesh), folder, name, s.shard_size, counter(bar)
            )
    workdir.finish(STAGE, {"comparisons": len(made)})
    return made


def _scored(
    s: SnapshotSettings,
    model: Model,
    mesh: jax.sharding.Mesh | None,
    run: str,
    revisions: Sequence[Revision],
    workdir: Workdir,
    progress: Progress,
) -> list[RevisionScore]:
    """A run's mean scores by number of revisions, by the preference model that judges."""
    name, stage = f"{model.name}@{model.fingerprint}", f"revisions-{run}"
    inputs = {
        "judge": name,
        "scored": digest([[r.id, r.initial_response, *(step.revision for step in r.steps)]
                          for r in revisions]),
    }  # fmt: skip
    folder = workdir.path / stage / "scores"
    if workdir.begin(stage, inputs):
        with progress.stage(f"revisions of {run}", len(revisions), "prompts") as bar:
            found = revision_scores.score_revisions(
                revisions, _scores(model, mesh), folder, name, s.shard_size, counter(bar)
            )
        workdir.finish(stage, {"prompts": len(found)})
    else:
        progress.say(f"✓ revisions of {run}: finished in a former run")
        found = read_records(folder, ScoredRevisions)
    return revision_scores.by_revision(found, s.seed, s.resamples)


def _scores(model: Model, mesh: jax.sharding.Mesh | None) -> Callable[[list], np.ndarray]:
    """The preference model's scores of (conversation, response) pairs."""

    def scores(texts: list) -> np.ndarray:
        return score_texts(
            model.config, model.params, model.tokenizer, model.format, texts,
            batch_size=SCORED_AT_A_TIME, length=model.config.context, mesh=mesh,
        )  # fmt: skip

    return scores


_ASKING = ("seed", "dtype", "few_shots", "harmless_instruction", "helpful_instruction")


def _write_matrix(path: Path, standings: Mapping[str, snapshot_comparisons.Standing]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["kind", "snapshot", "opponent", "win_rate", "low", "high", "n"])
    for kind, found in standings.items():
        for a, row in found.win_rates.items():
            for b, rate in row.items():
                if isinstance(rate, Interval):
                    writer.writerow([kind, a, b, rate.value, rate.low, rate.high, rate.n])
    hosts.once(lambda: write_atomically(path, table.getvalue().encode()))
