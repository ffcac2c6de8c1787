"""One model on the published evaluations: `cai-jax evaluate --config=experiments/evaluations.py`.

Each evaluation in each mode is a stage of the workdir, with its records, and resumes by shard.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cai_jax import constitution as constitutions
from cai_jax import storage
from cai_jax.datasets import capability, hhh_alignment, xstest
from cai_jax.datasets.cai_paper import Question
from cai_jax.datasets.files import find
from cai_jax.decoding import Engine
from cai_jax.evaluation import accuracy, multiple_choice, over_refusal
from cai_jax.evaluation.intervals import Interval
from cai_jax.evaluation.multiple_choice import PREFERENCE_MODEL, Choice
from cai_jax.evaluation_settings import (
    OVER_REFUSAL,
    READERS,
    EvaluationSettings,
    given,
    names,
)
from cai_jax.finished_models import model_of_run, preference_model_of_run
from cai_jax.machine import engine_of, mesh_of_shape
from cai_jax.models.scoring import score_texts
from cai_jax.pipeline import counter, read_records
from cai_jax.progress import Progress, ResultRow
from cai_jax.records import Provenance
from cai_jax.settings import ConfigError, build
from cai_jax.weights.load import Model, load_model
from cai_jax.workdir import Workdir, commit, digest

MEASURES = ("refusal by phrases", "refusal by the judge", "evasive by phrases")
SCORED_AT_A_TIME = 16
ORIGINAL = "hhh_original.json"  # which of the 438 are the original ones


def evaluate_model(config: Mapping[str, Any], path: Path, force: bool, progress: Progress) -> None:
    """Runs every evaluation that the config names, writes results.json and prints the tables.

    Raises:
      ValueError: a setting, file, model or run that cannot be used; before any compute.
      OSError: a file that cannot be read or written.
    """
    settings = build(EvaluationSettings, config)
    Evaluation(settings, Workdir(path, force), progress).run()


class Evaluation:
    """One model, its questions and the folder for what it says.

    Raises:
      ValueError: a setting, file, model or run that cannot be used.
    """

    def __init__(self, settings: EvaluationSettings, workdir: Workdir, progress: Progress):
        s = self.settings = settings
        self.workdir, self.progress = workdir, progress
        self.constitution = constitutions.load(s.constitution)
        self.questions = {
            name: _spread(READERS[name](given(s, "data")), s.limit)
            for name in names(s.evaluations)
            if name != OVER_REFUSAL
        }
        for path in names(s.questions):
            self.questions[capability.name_of(path)] = _spread(capability.read(path), s.limit)
        wants_refusal = OVER_REFUSAL in names(s.evaluations)
        self.original = _original(self.questions.get("hhh", []), s.hhh_alignment)
        self.items = _spread(xstest.read(given(s, "xstest")), s.limit) if wants_refusal else []
        self.rivals = _rivals(s)
        self.mesh = mesh_of_shape(s.mesh)
        self.model = self._load()
        self.judge = (
            load_model(s.judge, s.dtype, self.mesh, progress.say) if s.judge else self.model
        )
        self.preference_model = (
            preference_model_of_run(storage.path(s.preference_model), self.mesh, progress.say)
            if s.preference_model
            else None
        )
        self.system = s.system or self.model.name
        self.provenance = Provenance(
            model=f"{self.model.name}@{self.model.fingerprint}",
            constitution=f"{self.constitution.name}@{self.constitution.hash}",
            seed=s.seed,
            commit=commit(),
        )
        workdir.prepare(settings, 10_000_000)

    def _load(self) -> Model:
        s = self.settings
        if s.run:
            return model_of_run(storage.path(s.run), s.stage or None, self.progress.say)[0]
        return load_model(s.model, s.dtype, self.mesh, self.progress.say)

    def run(self) -> None:
        """Every evaluation, the results and the tables."""
        s, found = self.settings, {}
        for name, questions in self.questions.items():
            choices = [c for mode in names(s.modes) for c in self._ask(name, mode, questions)]
            if name == "hhh" and self.preference_model:
                choices += self._score(questions)
            if not choices:
                raise ConfigError("config.modes is empty; name a mode, or a preference_model.")
            found[name] = accuracy.summary(choices, len(questions), s.seed, s.resamples)
            self._compare(name, choices, found[name])
        if self.items:
            found[OVER_REFUSAL] = self._over_refusal()
        if self.original:
            self.workdir.write_json(ORIGINAL, self.original)
        self.workdir.write_json(
            "results.json",
            {
                "system": self.system,
                "parameters": sum(x.size for x in jax.tree.leaves(self.model.params)),
                "evaluations": found,
            },
        )
        self._show(found)

    def _engine(self, model: Model) -> Engine:
        return engine_of(self.settings.engine, model)

    def _inputs(self, asked: Sequence[Any], of: Model, **more: Any) -> dict[str, Any]:
        s = self.settings
        made = storage.path(s.run) / (s.stage or "") if s.run else None
        notes = [n for p in ("", "*/") for n in made.glob(f"{p}inputs.json")] if made else []
        return {
            "seed": s.seed,
            "dtype": s.dtype,
            "model": of.fingerprint,
            "trained": digest([of.name, *(note.read_text("utf-8") for note in sorted(notes))]),
            "max_length": s.engine.max_length,
            "constitution": self.constitution.hash,
            "asked": digest([item.id for item in asked]),
            **more,
        }

    def _ask(self, name: str, mode: str, questions: list[Question]) -> list[Choice]:
        s, stage = self.settings, f"{name}-{mode}"
        folder = self.workdir.path / stage / "choices"
        title = f"{name}, {mode}".replace("_", " ")
        if not self.workdir.begin(
            stage, self._inputs(questions, self.model, choices=dataclasses.asdict(s.choices))
        ):
            self.progress.say(f"✓ {title}: finished in a former run")
            return read_records(folder, Choice)
        with self.progress.stage(title, len(questions), "questions") as bar:
            found = multiple_choice.ask(
                s.choices, mode, self._engine(self.model), self.model.format, self.constitution,
                questions, folder, s.seed, self.system, self.provenance, counter(bar),
            )  # fmt: skip
        self.workdir.finish(stage, {"questions": len(questions), "answered": len(found)})
        return found

    def _score(self, questions: list) -> list[Choice]:
        stage, pm = f"hhh-{PREFERENCE_MODEL}", self.preference_model
        folder = self.workdir.path / stage / "choices"
        if not self.workdir.begin(stage, self._inputs(questions, pm)):
            self.progress.say("✓ hhh, preference model: finished in a former run")
            return read_records(folder, Choice)

        def scores(texts: list):
            return score_texts(
                pm.config, pm.params, pm.tokenizer, pm.format, texts,
                batch_size=SCORED_AT_A_TIME, length=pm.config.context, mesh=self.mesh,
            )  # fmt: skip

        with self.progress.stage("hhh, preference model", len(questions), "questions") as bar:
            found = multiple_choice.score(questions, scores, folder, pm.name, self.provenance)
            bar.advance(len(questions))
        self.workdir.finish(stage, {"questions": len(questions), "answered": len(found)})
        return found

    def _over_refusal(self) -> dict[str, Any]:
        s, folder = self.settings, self.workdir.path / OVER_REFUSAL
        inputs = self._inputs(
            self.items,
            self.model,
            responses=dataclasses.asdict(s.responses),
            judge=[self.judge.name, self.judge.fingerprint],
        )
        if self.workdir.begin(OVER_REFUSAL, inputs):
            form = self.model.format
            with self.progress.stage("responses to XSTest", len(self.items), "prompts") as bar:
                reactions = over_refusal.react(
                    s.responses, self._engine(self.model), form, self.items, folder / "responses",
                    s.seed, self.system, self.provenance, counter(bar),
                )  # fmt: skip
            with self.progress.stage("refusal by the judge", len(reactions), "responses") as bar:
                over_refusal.judge(
                    s.responses, self._engine(self.judge), self.judge.format, reactions,
                    folder / "judgements", s.seed, self.judge.name, counter(bar),
                )  # fmt: skip
            self.workdir.finish(OVER_REFUSAL, {"responses": len(reactions)})
        else:
            self.progress.say("✓ over-refusal: finished in a former run")
        return over_refusal.summary(
            read_records(folder / "responses", over_refusal.Reaction),
            read_records(folder / "judgements", over_refusal.Judgement),
        )

    def _compare(self, name: str, choices: list[Choice], found: dict[str, Any]) -> None:
        """Adds the paired differences from the system at `config.against`."""
        ours, s = accuracy.credits_by_mode(choices), self.settings
        theirs = accuracy.credits_by_mode(self.rivals.get(name, []))
        found["against"] = {
            mode: dataclasses.asdict(accuracy.paired(ours[mode], theirs[mode], s.seed, s.resamples))
            for mode in ours
            if mode in theirs
        }

    def _show(self, found: dict[str, Any]) -> None:
        for name in self.questions:
            rows = [
                ResultRow(mode.replace("_", " "), (Interval(**value),), "share")
                for mode, value in found[name]["accuracy"].items()
            ]
            rows += [
                ResultRow(
                    f"{mode.replace('_', ' ')}, less {self.settings.against} (p {both['p']:.2g})",
                    (Interval(**both["difference"]),),
                    "share",
                )
                for mode, both in found[name]["against"].items()
            ]
            title = f"{name.replace('_', ' ')}: {self.system}"
            chance = f"By chance: {found[name]['chance']:.0%}."
            self.progress.results_table(title, ("accuracy",), rows, [chance])
        if OVER_REFUSAL in found:
            rows = [
                ResultRow(group, tuple(Interval(**rates[m]) for m in MEASURES), "share")
                for group, rates in found[OVER_REFUSAL].items()
            ]
            self.progress.results_table(f"XSTest: {self.system}", MEASURES, rows)


def _spread(rows: list, limit: int) -> list:
    """`limit` rows, evenly spread over all; 0 takes all."""
    if not limit or limit >= len(rows):
        return rows
    return [rows[n * len(rows) // limit] for n in range(limit)]


def _original(questions: list, folder: str) -> list[str]:
    """Ids of the comparisons that BIG-bench's files hold too, by the texts of both replies.

    Raises:
      ConfigError: there is none.
      OSError: a file is missing.
    """
    if not folder or not questions:
        return []
    files = [find(file, Path(folder)) for d in hhh_alignment.cards() for _, file in d.files]
    known = {
        frozenset((" ".join(item.better.split()), " ".join(item.worse.split())))
        for file in files
        for item in hhh_alignment.read(file)
    }
    ids = [
        q.id for q in questions if frozenset(" ".join(text.split()) for text in q.options) in known
    ]
    if not ids:
        raise ConfigError(
            f"config.hhh_alignment: {folder} shares no comparison with the 438; give the folder of "
            "BIG-bench's hhh_alignment task."
        )
    return ids


def _rivals(settings: EvaluationSettings) -> dict[str, list[Choice]]:
    """Evaluation -> records of the system at `config.against`.

    Raises:
      ConfigError: that folder holds no evaluation.
    """
    if not settings.against:
        return {}
    folder, found = storage.path(settings.against), {}
    for mark in sorted(folder.glob("*-*/done.json")):
        records = read_records(mark.parent / "choices", Choice)
        found.setdefault(mark.parent.name.split("-")[0], []).extend(records)
    if not found:
        raise ConfigError(
            f"config.against: {folder} holds no finished evaluation; run `cai-jax evaluate "
            "--config=experiments/evaluations.py` with it as --workdir first."
        )
    return found
