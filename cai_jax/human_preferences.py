"""A preference model of people's comparisons alone: `cai-jax human-preferences`.

Trained on files of pairs of dialogues and tested on others. No run's labels, prompts or responses
went into it, so it can judge runs: `--config.preference_model=WORKDIR` of experiments/snapshots.py
and experiments/evaluations.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cai_jax.datasets import splits
from cai_jax.datasets.comparisons import HumanComparison
from cai_jax.datasets.dialogue_pairs import read_pairs
from cai_jax.datasets.prompts import LabelPair
from cai_jax.evaluation.preference_report import PreferenceReport, preference_report
from cai_jax.evaluation.scored_pairs import FOLDER, ScoredPair
from cai_jax.machine import check_batch, mesh_of_shape
from cai_jax.mesh import place
from cai_jax.models.scoring import score_texts
from cai_jax.pipeline import counter, read_records, stepper
from cai_jax.progress import Progress, ResultRow
from cai_jax.records import Provenance
from cai_jax.saved_params import load_params, save_params
from cai_jax.settings import (
    ConfigError,
    MeshShape,
    build,
    check_compute,
    check_machine,
    check_ranges,
)
from cai_jax.shards import Shards
from cai_jax.stages import preference_model
from cai_jax.weights.load import Model, load_model
from cai_jax.workdir import Workdir, commit, digest

STAGE = "preference_model"  # where finished_models looks for one
EVALUATION = "evaluation"
SHARD_SIZE = 256  # held-out pairs


@dataclasses.dataclass(frozen=True)
class Settings:
    """Whose comparisons are learnt and tested; experiments/human_preferences.py explains each."""

    seed: int
    pairs: str
    limit: int
    held_out: str
    held_out_limit: int
    model: str
    dtype: str
    preference_model: preference_model.Settings
    mesh: MeshShape

    def __post_init__(self):
        for name in ("pairs", "held_out"):
            if not files(getattr(self, name)):
                raise ValueError(
                    f'{name} is empty; give files of {{"chosen", "rejected"}} dialogues, with '
                    "commas between (`cai-jax data hh_rlhf/harmless-base`)."
                )
        if self.limit < 0 or self.held_out_limit < 0:
            raise ValueError("limit and held_out_limit must be at least 0.")
        if self.preference_model.human_weight == 0:
            raise ValueError("preference_model.human_weight is 0.0; all pairs here are people's.")
        for name, only in (("members", 1), ("halves", False)):
            if getattr(self.preference_model, name) != only:
                raise ValueError(
                    f"preference_model.{name} must be {only} here, where one model learns from all "
                    "pairs."
                )
        check_compute("preference_model", self.preference_model)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Attributes: train, pairs to learn from; left_out, reason -> how many were not taken;
    held_out, file's name -> its pairs; untested, file's name -> rows that cannot be compared."""

    train: list[LabelPair]
    left_out: dict[str, int]
    held_out: dict[str, list[LabelPair]]
    untested: dict[str, int]


def files(names: str) -> list[Path]:
    """The files of a setting, with commas between."""
    return [Path(name.strip()) for name in names.split(",") if name.strip()]


def read(s: Settings) -> Pairs:
    """All pairs; none to train on has the first human turn of one that is held out, or comes twice.

    Turns are held out by the whole files, also beyond `held_out_limit`.

    Raises:
      ConfigError: two held-out files of one name, or nothing to train on.
      ValueError: a row that is no pair, with file and line.
      OSError: a file that cannot be read.
    """
    held_out: dict[str, list[LabelPair]] = {}
    untested: dict[str, int] = {}
    for file in files(s.held_out):
        name = "/".join(filter(None, (file.parent.name, file.name.split(".")[0])))
        if name in held_out:
            raise ConfigError(
                f"config.held_out: two files have the name {name}; rename one of them."
            )
        held_out[name], untested[name] = read_pairs(file)
    found: dict[str, LabelPair] = {}
    unusable = 0
    for file in files(s.pairs):
        pairs, unlike = read_pairs(file)
        kept = pairs[: s.limit or None]
        unusable += unlike + sum(pair.id in found for pair in kept)
        found |= {pair.id: pair for pair in kept}
    apart = splits.without(found.values(), (pair for of in held_out.values() for pair in of))
    if not apart:
        raise ConfigError(
            "config.pairs: every pair begins with a human turn that is held out, so there is "
            "nothing to train on; give other files."
        )
    counts = {
        "not comparable or said before": unusable,
        "first turn held out": len(found) - len(apart),
    }
    cut = {name: of[: s.held_out_limit or None] for name, of in held_out.items()}
    return Pairs(apart, counts, cut, untested)


def run(config: Mapping[str, Any], workdir: Workdir, progress: Progress) -> None:
    """Trains the preference model, tests it, writes results.json and prints the tables.

    Raises:
      ValueError: a setting, file, pair or model that cannot be used; before any compute.
      OSError: a file that cannot be read or written.
    """
    s = build(Settings, config)
    check_ranges(s)
    check_machine(s)
    pairs = read(s)
    mesh = mesh_of_shape(s.mesh)
    trained = s.preference_model
    check_batch("preference_model.batch_size", trained.batch_size, trained.microbatches, mesh)
    model = load_model(s.model, s.dtype, mesh, progress.say)
    if s.preference_model.length > model.config.context:
        raise ConfigError(
            f"config.preference_model.length is {s.preference_model.length}, and the model's "
            f"context is {model.config.context} tokens; lower it."
        )
    made = Provenance(f"{model.name}@{model.fingerprint}", "", s.seed, commit())
    data = preference_model.examples(
        s.preference_model,
        model.tokenizer,
        model.format,
        # Whether a file's prompts are red-team or helpful is unknown, and training does not ask.
        [
            HumanComparison(p.id, p.kind, p.prompt, p.better, p.worse).record(
                "people", made, s.seed
            )
            for p in pairs.train
        ],
    )
    counts = {"trained_on": len(data), "left_out": {**pairs.left_out,
              "too long": len(pairs.train) - len(data)}}  # fmt: skip
    inputs = {
        "seed": s.seed,
        "dtype": s.dtype,
        "model": model.fingerprint,
        "preference_model": dataclasses.asdict(s.preference_model),
        "pairs": digest([pair.id for pair in pairs.train]),
    }
    parameters = sum(x.size for x in jax.tree.leaves(model.params))
    # Params and two moments, the next checkpoint beside the last two, and the params at the end.
    workdir.prepare(s, 10 * 4 * parameters)
    reasons = ", ".join(f"{reason} {n}" for reason, n in counts["left_out"].items())
    progress.say(f"{len(data)} pairs to train on; left out: {reasons}")
    for name, rows in pairs.untested.items():
        if rows:
            progress.say(f"{rows} rows of {name} cannot be compared and are not tested")
    _train(s, model, data, inputs, counts, made, workdir, mesh, progress)
    size = s.preference_model.batch_size
    scored = _score(model, pairs.held_out, size, inputs, workdir, mesh, progress)
    reports = {name: _report(of, scored, name, s.seed) for name, of in pairs.held_out.items()}
    workdir.write_json(
        "results.json",
        {
            "preference_model": model.name,
            "parameters": parameters,
            **counts,
            "held_out": {
                name: {
                    "pairs": len(of),
                    "not_comparable": pairs.untested[name],
                    "first_turns": len(splits.unique(of)),
                    **dataclasses.asdict(reports[name]),
                }
                for name, of in pairs.held_out.items()
            },
        },
    )
    tables(reports, progress)


def _train(
    s: Settings,
    model: Model,
    data: list[preference_model.Example],
    inputs: dict[str, Any],
    counts: dict[str, Any],
    made: Provenance,
    workdir: Workdir,
    mesh: jax.sharding.Mesh | None,
    progress: Progress,
) -> None:
    if not workdir.begin(STAGE, inputs):
        return progress.say("✓ preference model: finished in a former run")
    folder = workdir.path / STAGE
    with progress.stage("training the preference model", 0, "steps") as bar:
        params = preference_model.train_preference_model(
            s.preference_model, model.config,
            jax.tree.map(lambda x: x.astype("float32"), model.params), data, folder, s.seed,
            stepper(bar, "pm/accuracy", "agrees"), mesh,
        )  # fmt: skip
    save_params(folder / "params", params, {"stage": STAGE, "start": made.model})
    workdir.finish(STAGE, counts)


def _score(
    model: Model,
    held_out: Mapping[str, Sequence[LabelPair]],
    batch_size: int,
    inputs: dict[str, Any],
    workdir: Workdir,
    mesh: jax.sharding.Mesh | None,
    progress: Progress,
) -> list[ScoredPair]:
    """Scores of the held-out pairs, read as a judge reads them: up to the model's context.

    `batch_size` texts are scored at a time.
    """
    rows = [(name, pair) for name, of in held_out.items() for pair in of]
    tested = {
        "trained": digest(inputs),
        "held_out": digest([[name, pair.id] for name, pair in rows]),
    }
    if not workdir.begin(EVALUATION, tested):
        progress.say("✓ scores of held-out pairs: finished in a former run")
        return read_records(workdir.path / FOLDER, ScoredPair)
    params = place(load_params(workdir.path / STAGE / "params")[0], mesh)
    shards = Shards(workdir.path / FOLDER, -(-len(rows) // SHARD_SIZE))
    done = shards.done()
    with progress.stage("scores of held-out pairs", len(rows), "pairs") as bar:
        advanced = counter(bar)
        for number in range(shards.count):
            part = rows[number * SHARD_SIZE : (number + 1) * SHARD_SIZE]
            if number not in done:
                found = score_texts(
                    model.config, params, model.tokenizer, model.format,
                    [(p.prompt, text) for _, p in part for text in (p.better, p.worse)],
                    batch_size=batch_size, length=model.config.context, mesh=mesh,
                ).reshape(-1, 2)  # fmt: skip
                shards.write(
                    number,
                    [ScoredPair(name, p.id, *x) for (name, p), x in zip(part, found, strict=True)],
                )
            advanced(number * SHARD_SIZE + len(part), len(rows))
    workdir.finish(EVALUATION, {"pairs": len(rows)})
    return shards.read(ScoredPair)


def _report(
    pairs: Sequence[LabelPair], scored: Sequence[ScoredPair], name: str, seed: int
) -> PreferenceReport:
    mine = [row for row in scored if row.source == name]
    longer = [len(p.better.split()) - len(p.worse.split()) for p in pairs]
    return preference_report([r.better for r in mine], [r.worse for r in mine], longer, seed)


def tables(reports: Mapping[str, PreferenceReport], progress: Progress) -> None:
    """Prints how right the model is on each file, beside length, and how calibrated."""
    columns = "accuracy", "the longer one is better", "chooses the longer one"
    rows = [
        ResultRow(name, (r.accuracy, r.longer_is_better, r.chooses_longer), "share")
        for name, r in reports.items()
    ]
    progress.results_table("The preference model on held-out pairs", columns, rows)
    rows = []
    for name, r in reports.items():
        for of, accuracy in (("longer", r.where_longer), ("shorter", r.where_shorter)):
            rows.append(ResultRow(f"{name}, the better one is {of}", (accuracy, None), "share"))
        for b in r.by_length:
            words = f"{name}, lengths differ by {b.least} to {b.most} words"
            rows.append(ResultRow(words, (b.accuracy, b.longer_is_better), "share"))
    progress.results_table("Its accuracy by length", columns[:2], rows)
    rows = [
        ResultRow(name, (r.calibration_error, r.brier), "number") for name, r in reports.items()
    ]
    progress.results_table(
        "Its calibration",
        ("calibration error", "Brier"),
        rows,
        ["A Brier score of 0.25 is what giving every response 50% would have."],
    )
