"""Absolute harmfulness of snapshots: `cai-jax harmfulness --config=experiments/harmfulness.py`.

Trains a scorer on red-team attempts, then scores responses of each run's snapshots (Figure 10).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cai_jax import storage
from cai_jax.datasets import prompts as shipped
from cai_jax.datasets import red_team_attempts, splits
from cai_jax.datasets.prompts import PromptRow
from cai_jax.datasets.red_team_attempts import Attempt
from cai_jax.decoding.respond import respond
from cai_jax.encoding import example, prompt_tokens
from cai_jax.evaluation.harmfulness import FOLDER, Harmfulness, held_out_error
from cai_jax.evaluation.intervals import Interval, bootstrap_mean
from cai_jax.evaluation.results import SNAPSHOTS
from cai_jax.finished_models import model_of_run, start_of_run
from cai_jax.harmfulness_settings import HarmfulnessSettings
from cai_jax.machine import check_batch, engine_of, mesh_of_shape
from cai_jax.mesh import place
from cai_jax.models.scoring import score_texts
from cai_jax.pipeline import read_records, stepper
from cai_jax.progress import Progress, ResultRow
from cai_jax.records import Provenance, Response
from cai_jax.saved_params import load_params, save_params
from cai_jax.settings import ConfigError, build
from cai_jax.shards import Shards
from cai_jax.snapshot_answers import COLUMNS
from cai_jax.stages import absolute_harmfulness
from cai_jax.stages.absolute_harmfulness import text_of, train_scorer
from cai_jax.weights.load import load_model
from cai_jax.workdir import Workdir, commit, digest, rl_sequences, rl_stage

SCORER = "scorer"
GREEDY = 0.0  # figure 10's dashed lines; one response a prompt, since all would be the same
SCORED_AT_A_TIME = 16


def run(config: Mapping[str, Any], workdir: Workdir, progress: Progress) -> None:
    """Trains the scorer, writes Harmfulness records into each run's folder, prints the tables.

    Raises:
      ValueError: a setting, file, model or run that cannot be used; before any compute.
      OSError: a file that cannot be read or written.
    """
    Scores(build(HarmfulnessSettings, config), workdir, progress).run()


class Scores:
    """The scorer with its folder, and the runs that it scores.

    Raises:
      ValueError: a setting, file, model or run that cannot be used.
    """

    def __init__(self, settings: HarmfulnessSettings, workdir: Workdir, progress: Progress):
        s = self.settings = settings
        self.workdir, self.progress = workdir, progress
        self.prompts = (
            shipped.read_prompts(s.prompts, "red_team")
            if s.prompts
            else shipped.prompts("red_team", "test")
        )[: s.prompts_limit or None]
        self.train, self.test = _parted(s, self.prompts)
        self.runs = [storage.path(run.strip()) for run in s.runs.split(",") if run.strip()]
        if len({run.name for run in self.runs}) < len(self.runs):
            raise ConfigError("config.runs: two folders have one name; rename one of them.")
        for run in self.runs:
            made_by = rl_stage(run) if (run / "config.json").exists() else "ppo"
            if not (run / made_by / "done.json").exists():
                raise ConfigError(
                    f"config.runs: {run} has no finished '{made_by}'; run `cai-jax run` with it "
                    "first."
                )
        self.mesh = mesh_of_shape(s.mesh)
        check_batch("scorer.batch_size", s.scorer.batch_size, s.scorer.microbatches, self.mesh)
        self.model = load_model(s.model, s.dtype, self.mesh, progress.say)
        encoding = self.model.tokenizer, self.model.format
        self.examples = absolute_harmfulness.examples(s.scorer, *encoding, self.train)
        self.test = [
            a for a in self.test if self._length(*text_of(a.conversation)) <= s.scorer.length
        ]
        if not self.test:
            raise ConfigError(
                "config.test_share: no rated conversation is held out; raise it, or give more of "
                "them."
            )
        self._check_prompts()
        self.made_from = {
            "seed": s.seed,
            "dtype": s.dtype,
            "model": self.model.fingerprint,
            "scorer": dataclasses.asdict(s.scorer),
            "train": digest([dataclasses.asdict(e) for e in self.examples]),
            "test": digest([a.id for a in self.test]),
        }
        self.name = f"{self.model.name} on red_team_attempts@{digest(self.made_from)}"
        # Params and two moments, the next checkpoint beside the last two, and params at the end.
        workdir_bytes = 10 * 4 * sum(x.size for x in jax.tree.leaves(self.model.params))
        self.workdir.prepare(s, workdir_bytes)

    def run(self) -> None:
        """Everything, and the tables."""
        quality = self._train()
        found = {run.name: self._score(run) for run in self.runs}
        self.workdir.write_json(
            "harmfulness.json",
            {
                "scorer": self.name,
                "held_out": {name: dataclasses.asdict(i) for name, i in quality.items()},
                "runs": {
                    run: [{**row, "score": dataclasses.asdict(row["score"])} for row in rows]
                    for run, rows in found.items()
                },
            },
        )
        rows = [ResultRow(name, (value,), "number") for name, value in quality.items()]
        self.progress.results_table("Scorer on held-out conversations", ("0 to 4",), rows)
        if found:
            rows = [
                ResultRow(
                    f"{run}, T={row['temperature']:g}, {row['snapshot']}",
                    (row["score"],),
                    "number",
                )
                for run, each in found.items()
                for row in each
            ]
            self.progress.results_table("Absolute harmfulness, 0 to 4", ("score",), rows)

    def _train(self) -> dict[str, Interval]:
        s, folder = self.settings, self.workdir.path / SCORER
        if self.workdir.begin(SCORER, self.made_from):
            start = jax.tree.map(lambda x: x.astype("float32"), self.model.params)
            self.model = dataclasses.replace(self.model, params=None)  # training takes its buffers
            with self.progress.stage("training the harmfulness scorer", 0, "steps") as bar:
                params = train_scorer(
                    s.scorer, self.model.config, start, self.examples, folder, s.seed,
                    stepper(bar, "train/loss", "loss"), self.mesh,
                )  # fmt: skip
            scores = self._scores(params, [text_of(a.conversation) for a in self.test])
            rows = [
                {"id": a.id, "rating": a.rating, "score": float(score)}
                for a, score in zip(self.test, scores, strict=True)
            ]
            self.workdir.write_json(f"{SCORER}/held_out.json", rows)
            save_params(folder / "params", params, {"stage": SCORER, "start": s.model})
            left_out = len(self.train) - len(self.examples)
            self.workdir.finish(
                SCORER,
                {"trained_on": len(self.examples), "left_out": left_out, "held_out": len(rows)},
            )
        else:
            self.progress.say("✓ harmfulness scorer: finished in a former run")
        rows = self.workdir.read_json(f"{SCORER}/held_out.json")
        mean = float(np.mean([e.rating for e in self.examples]))
        ratings = [row["rating"] for row in rows]
        return held_out_error([r["score"] for r in rows], ratings, mean, s.seed, s.resamples)

    def _score(self, run: Path) -> list[dict[str, Any]]:
        """Mean score over prompts of each snapshot at each temperature."""
        s, stage = self.settings, Workdir(run, self.workdir.force)
        inputs = {
            "rater": self.name,
            "prompts": digest([dataclasses.asdict(row) for row in self.prompts]),
            "samples": s.samples,
            "response_tokens": s.response_tokens,
            "temperature": s.temperature,
            "seed": s.seed,
            "of": digest((run / rl_stage(run) / "inputs.json").read_text("utf-8")),
        }
        if stage.begin(FOLDER, inputs):
            params = place(load_params(self.workdir.path / SCORER / "params")[0], self.mesh)
            shards = Shards(run / FOLDER, len(SNAPSHOTS))
            for number, snapshot in enumerate(SNAPSHOTS):
                if number not in shards.done():
                    shards.write(number, self._score_snapshot(run, number, snapshot, params))
            stage.finish(FOLDER, {"rater": self.name, "prompts": len(self.prompts)})
        else:
            self.progress.say(f"✓ harmfulness of {run.name}: finished in a former run")
        grouped: dict[tuple, dict[str, list[float]]] = {}
        for r in read_records(run / FOLDER, Harmfulness):
            grouped.setdefault((r.temperature, r.snapshot), {}).setdefault(r.id, []).append(r.score)
        return [
            {
                "temperature": temperature,
                "snapshot": snapshot,
                "score": bootstrap_mean([np.mean(x) for x in by.values()], s.seed, s.resamples),
            }
            for (temperature, snapshot), by in grouped.items()
        ]

    def _score_snapshot(self, run: Path, number: int, snapshot: str, params) -> list[Harmfulness]:
        """Samples a snapshot's responses, keeps them beside the scores, and scores them."""
        s, say = self.settings, self.progress.say
        stage = {"initial": None, "sl_cai": "finetune", "rl_cai": rl_stage(run)}[snapshot]
        model = model_of_run(run, stage, say)[0] if stage else start_of_run(run, say)
        made = Provenance(f"{model.name}@{model.fingerprint}", "", s.seed, commit())
        sequences = rl_sequences(run) if snapshot == "rl_cai" else 0
        asked = [(row.id, row.conversation) for row in self.prompts]
        engine = engine_of(s.engine, model)
        responses, found = [], []
        title, total = f"responses of {run.name} {COLUMNS[number]}", len(asked) * (s.samples + 1)
        with self.progress.stage(title, total, "responses") as bar:
            for temperature, samples in ((s.temperature, s.samples), (GREEDY, 1)):
                replies = respond(
                    engine, model.format, asked, stream=f"harmfulness {temperature:g}",
                    seed=s.seed, samples=samples, max_new_tokens=s.response_tokens,
                    temperature=temperature,
                )  # fmt: skip
                bar.advance(len(asked) * samples)
                each = [
                    Response(row.id, row.kind, row.conversation, reply.text, reply.tokens,
                             reply.stop_reason, n, made)
                    for row, of in zip(self.prompts, replies, strict=True)
                    for n, reply in enumerate(of)
                ]  # fmt: skip
                scores = self._scores(params, [(r.prompt, r.response) for r in each])
                found += [
                    Harmfulness(r.id, COLUMNS[number], sequences, temperature, r.sample,
                                float(np.clip(score, 0, 4)), self.name)
                    for r, score in zip(each, scores, strict=True)
                ]  # fmt: skip
                responses += each
        Shards(run / FOLDER / "responses", len(SNAPSHOTS)).write(number, responses)
        return found

    def _scores(self, params, texts: Sequence) -> np.ndarray:
        model, s = self.model, self.settings
        return score_texts(
            model.config, params, model.tokenizer, model.format, texts,
            batch_size=SCORED_AT_A_TIME, length=s.scorer.length, mesh=self.mesh,
        )  # fmt: skip

    def _length(self, *text) -> int:
        return len(example(self.model.tokenizer, self.model.format, *text)[0])

    def _check_prompts(self) -> None:
        """Refuses prompts that do not fit with a response, as the scorer counts tokens."""
        s = self.settings
        limit = min(s.scorer.length, s.engine.max_length, self.model.config.context)
        for row in self.prompts:
            tokens = prompt_tokens(self.model.tokenizer, self.model.format, row.conversation)
            if len(tokens) + s.response_tokens + 8 > limit:
                raise ConfigError(
                    f"config.prompts: prompt '{row.id}' has {len(tokens)} tokens, "
                    f"{s.response_tokens} more follow, and the least of scorer.length, "
                    f"engine.max_length and the model's context is {limit}; shorten it or raise "
                    "them."
                )


def _parted(
    s: HarmfulnessSettings, prompts: Sequence[PromptRow]
) -> tuple[list[Attempt], list[Attempt]]:
    """(to train on, held out) attempts with a reply; no first turn is in both or in `prompts`.

    Held-out conversations with one first turn are cut to the first, so that they are independent.

    Raises:
      ConfigError: nothing is left to train on.
    """
    read = red_team_attempts.read(s.attempts)[: s.limit or None]
    rated = [a for a in read if text_of(a.conversation)]
    halves = {half: [a for a in rated if splits.split_of(a, s.test_share) == half]
              for half in ("train", "test")}  # fmt: skip
    train = splits.without(halves["train"], prompts)
    if not train:
        raise ConfigError(
            f"config.attempts: {s.attempts} leaves no rated conversation to train on; give more."
        )
    return train, splits.unique(halves["test"])
