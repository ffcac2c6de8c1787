"""The stages in order: what each reads, what it leaves in the workdir, and how a run resumes."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from cai_jax import constitution as constitutions
from cai_jax.datasets import prompts as shipped
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding import Engine
from cai_jax.encoding import prompt_tokens
from cai_jax.mesh import make_mesh, place
from cai_jax.models import heads, transformer
from cai_jax.models.transformer import Params
from cai_jax.progress import Progress, Stage
from cai_jax.records import Comparison, Provenance, Response, Revision
from cai_jax.settings import ConfigError, RunSettings
from cai_jax.shards import Shards
from cai_jax.stages import ai_feedback, critique_revision, ppo, preference_model, supervised
from cai_jax.training.checkpoint import check_shapes, load_params, save_params
from cai_jax.weights.load import Model, load_model
from cai_jax.workdir import Workdir, commit, digest

SHOWN_CHAINS = 3


@dataclasses.dataclass(frozen=True)
class Data:
    """All texts of a run, read and checked before anything is computed."""

    red_team: list[PromptRow]
    helpful: list[PromptRow]
    held_out_red_team: list[PromptRow]
    held_out_helpful: list[PromptRow]
    helpful_comparisons: list[shipped.HelpfulComparison]
    held_out_comparisons: list[shipped.HelpfulComparison]
    label_pairs: list[shipped.LabelPair]


class Run:
    """One run: settings, workdir, constitution, texts, and the model they start from.

    Raises:
      ValueError: a setting, file, model or prompt that cannot be used; before any compute.
    """

    def __init__(self, settings: RunSettings, workdir: Workdir, progress: Progress):
        self.settings, self.workdir, self.progress = settings, workdir, progress
        self.constitution = constitutions.load(settings.constitution)
        self.data = read_data(settings)
        mesh = make_mesh(dataclasses.asdict(settings.mesh))
        self.mesh = mesh if mesh.size > 1 else None
        _check_batches(settings, mesh)
        self._models: dict[str, Model] = {}
        if self.feedback.config != self.initial.config:
            raise ConfigError(
                f"config.feedback_model: {self.feedback.name} has another shape than "
                f"{self.initial.name}, and the preference model made from it scores what the "
                "policy samples, token by token; use a model of the same shape and vocabulary."
            )
        # Kept apart from the models, which training lets go.
        trunk = jax.eval_shape(partial(transformer.init, self.initial.config), jax.random.key(0))
        scorer = jax.eval_shape(heads.with_scalar_head, trunk)
        self._trees = {"finetune": trunk, "ppo": trunk, "preference_model": scorer}
        self._check_prompts()
        params = sum(x.nbytes for x in jax.tree.leaves(self.initial.params))
        # Three params trees stay; PPO keeps two states and writes the next beside the last.
        workdir.prepare(settings, 12 * params)
        self.provenance = Provenance(
            model=f"{self.initial.name}@{self.initial.fingerprint}",
            constitution=f"{self.constitution.name}@{self.constitution.hash}",
            seed=settings.seed,
            commit=commit(),
        )

    @property
    def initial(self) -> Model:
        """The model that everything starts from."""
        return self._model(self.settings.model)

    @property
    def feedback(self) -> Model:
        """The feedback model; the initial one unless the config names another."""
        return self._model(self.settings.feedback_model or self.settings.model)

    def _model(self, name: str) -> Model:
        if name not in self._models:
            report = self.progress.say
            self._models[name] = load_model(name, self.settings.dtype, self.mesh, report)
        return self._models[name]

    def take(self, model: Model) -> Params:
        """Params of a loaded model to train from, and forgets all loaded models.

        Training takes its start's buffers over, and two copies of each model would be the most
        memory that a run needs. The next use of a model reads it again.
        """
        self._models.clear()
        return jax.tree.map(lambda x: x.astype("float32"), model.params)

    def engine(self, params: Params | None = None, model: Model | None = None) -> Engine:
        """An engine of the configured size for the initial model's shape, or another model."""
        size = self.settings.engine
        engine = Engine(model or self.initial, size.slots, size.max_length)
        if params is not None:
            engine.params = params
        return engine

    def params_of(self, stage: str) -> Params:
        """A finished stage's params."""
        folder = self.workdir.path / stage / "params"
        params, _ = load_params(folder)
        check_shapes(params, self._trees[stage], folder)
        return place(params, self.mesh)

    def save(self, stage: str, params: Params) -> None:
        metadata = {"stage": stage, "start": self.provenance.model}
        save_params(self.workdir.path / stage / "params", params, metadata)

    def _check_prompts(self) -> None:
        """Refuses prompts that do not fit, with the longest of what stages put around them."""
        s, model, principles = self.settings, self.initial, self.constitution.critique
        count = lambda text: len(model.tokenizer.encode(text))  # noqa: E731
        requests = max(count(p.critique_request) + count(p.revision_request) for p in principles)
        tokens = s.revise.response_tokens + s.revise.critique_tokens + s.revise.revision_tokens
        revising = tokens + requests + 64
        answering = max(s.compare.response_tokens, s.evaluate.response_tokens)
        limit = min(s.engine.max_length, model.config.context)
        for rows, name, added in (
            (self.data.red_team, "red_team", revising),
            (self.data.helpful, "helpful", max(s.revise.response_tokens, answering)),
            (self.data.held_out_red_team, "held_out_red_team", answering),
            (self.data.held_out_helpful, "held_out_helpful", answering),
        ):
            for row in rows:
                length = len(prompt_tokens(model.tokenizer, model.format, row.conversation))
                if length + added > limit:
                    raise ConfigError(
                        f"prompts.{name}: prompt '{row.id}' has {length} tokens, {added} more may "
                        f"follow it, and engine.max_length or the model's context is {limit}; "
                        "shorten the prompt or raise engine.max_length."
                    )

    def inputs(self, stage: str) -> dict[str, Any]:
        """What a stage is made from: its own settings and, hashed, all that went before."""
        s = self.settings
        texts = dataclasses.asdict(self.data)
        common = {"seed": s.seed, "dtype": s.dtype, "constitution": self.constitution.hash}
        return {
            "revise": lambda: {
                **common,
                "revise": dataclasses.asdict(s.revise),
                "engine": dataclasses.asdict(s.engine),
                "model": self.initial.fingerprint,
                "prompts": digest([texts["red_team"], texts["helpful"]]),
            },
            "finetune": lambda: {
                "finetune": dataclasses.asdict(s.finetune),
                "revise": digest(self.inputs("revise")),
            },
            "compare": lambda: {
                "compare": dataclasses.asdict(s.compare),
                "feedback_model": self.feedback.fingerprint,
                "finetune": digest(self.inputs("finetune")),
            },
            "preference_model": lambda: {
                "preference_model": dataclasses.asdict(s.preference_model),
                "helpful_comparisons": digest(texts["helpful_comparisons"]),
                "compare": digest(self.inputs("compare")),
            },
            "ppo": lambda: {
                "ppo": dataclasses.asdict(s.ppo),
                "preference_model": digest(self.inputs("preference_model")),
            },
            "evaluation": lambda: {
                "evaluate": dataclasses.asdict(s.evaluate),
                "texts": digest(
                    [texts[k] for k in sorted(texts) if k.startswith(("held_out", "label"))]
                ),
                "ppo": digest(self.inputs("ppo")),
            },
        }[stage]()


def _check_batches(settings: RunSettings, mesh: jax.sharding.Mesh) -> None:
    """Refuses batches that do not divide over the mesh."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, rows in (
        ("finetune.batch_size", settings.finetune.batch_size),
        ("preference_model.batch_size", settings.preference_model.batch_size),
        ("ppo.batch_size / ppo.minibatches", settings.ppo.batch_size // settings.ppo.minibatches),
    ):
        if rows % ways:
            raise ConfigError(
                f"config.{name} is {rows}, which does not divide over the mesh's data x fsdp = "
                f"{ways} devices; change it or config.mesh."
            )


def read_data(settings: RunSettings) -> Data:
    """The run's texts, cut to their limits.

    Raises:
      ValueError: a file of prompts that is empty or malformed, with file and line.
    """
    p = settings.prompts

    def rows(path: str, kind: str, split: str, limit: int) -> list[PromptRow]:
        found = shipped.read_prompts(path, kind) if path else shipped.prompts(kind, split)
        return found[: limit or None]

    return Data(
        red_team=rows(p.red_team, "red_team", "train", p.red_team_limit),
        helpful=rows(p.helpful, "helpful", "train", p.helpful_limit),
        held_out_red_team=rows(p.held_out_red_team, "red_team", "test", p.held_out_red_team_limit),
        held_out_helpful=rows(p.held_out_helpful, "helpful", "test", p.held_out_helpful_limit),
        helpful_comparisons=shipped.helpful_comparisons("train")[
            : p.helpful_comparisons_limit or None
        ],
        held_out_comparisons=shipped.helpful_comparisons("test")[
            : p.held_out_helpful_limit or None
        ],
        label_pairs=_balanced(shipped.label_pairs(), p.label_pairs_limit),
    )


def _balanced(pairs: list[shipped.LabelPair], limit: int) -> list[shipped.LabelPair]:
    """The first so many pairs, half of each kind."""
    if not limit:
        return pairs
    kinds = {kind: [p for p in pairs if p.kind == kind] for kind in ("harmful", "benign")}
    return [pair for both in zip(*kinds.values(), strict=False) for pair in both][:limit]


def revise(run: Run) -> None:
    """Critique-revision chains of red-team prompts; own responses to helpful ones."""
    folder, s = run.workdir.path / "revise", run.settings.revise
    if not run.workdir.begin("revise", run.inputs("revise")):
        return _skipped(run, "critique and revision")
    engine, form = run.engine(), run.initial.format
    shown = 0
    with run.progress.stage("critique and revision", len(run.data.red_team), "prompts") as bar:

        def revised(done: int, total: int, newest: list[Revision]) -> None:
            nonlocal shown
            for record in newest[: SHOWN_CHAINS - shown]:
                shown += 1
                _show(run, record)
            bar.advance(done - bar.done)

        revisions = critique_revision.revise(
            s, engine, form, run.constitution, run.data.red_team, folder / "revisions",
            run.settings.seed, run.provenance, revised,
        )  # fmt: skip
    with run.progress.stage("helpful responses", len(run.data.helpful), "prompts") as bar:
        helpful = critique_revision.answer_helpful(
            s, engine, form, run.data.helpful, folder / "helpful",
            run.settings.seed, run.provenance, counter(bar),
        )  # fmt: skip
    run.workdir.finish("revise", {"revisions": len(revisions), "helpful": len(helpful)})


def finetune(run: Run) -> None:
    """SL-CAI."""
    run.workdir.require("revise", "revise")
    folder, s = run.workdir.path / "finetune", run.settings.finetune
    if not run.workdir.begin("finetune", run.inputs("finetune")):
        return _skipped(run, "finetuning")
    records = run.workdir.path / "revise"
    revisions = read_records(records / "revisions", Revision)
    helpful = read_records(records / "helpful", Response)
    model = run.initial
    data = supervised.examples(s, model.tokenizer, model.format, revisions, helpful)
    with run.progress.stage("finetuning SL-CAI", 0, "steps") as bar:
        params = supervised.finetune(
            s, model.config, run.take(model), data, folder, run.settings.seed,
            _stepper(bar, "train/loss", "loss"), run.mesh,
        )  # fmt: skip
    run.save("finetune", params)
    run.workdir.finish("finetune", {"examples": len(data)})


def compare(run: Run) -> None:
    """Pairs of SL-CAI responses and the feedback model's choice between them."""
    run.workdir.require("finetune", "finetune")
    folder, s = run.workdir.path / "compare", run.settings.compare
    if not run.workdir.begin("compare", run.inputs("compare")):
        return _skipped(run, "AI feedback")
    rows = run.data.red_team
    sl_cai = run.params_of("finetune")
    with run.progress.stage("pairs of responses", len(rows), "prompts") as bar:
        responses = ai_feedback.sample_pairs(
            s, run.engine(sl_cai), run.initial.format, rows, folder / "responses",
            run.settings.seed, run.provenance, counter(bar),
        )  # fmt: skip
    del sl_cai
    judge = run.feedback
    with run.progress.stage("AI feedback", len(ai_feedback.pairs_of(responses)), "pairs") as bar:
        comparisons = ai_feedback.compare(
            s, run.engine(model=judge), judge.format, run.constitution, responses,
            folder / "comparisons", run.settings.seed, f"{judge.name}@{judge.fingerprint}",
            run.provenance, counter(bar),
        )  # fmt: skip
    run.workdir.finish("compare", {"comparisons": len(comparisons)})


def train_pm(run: Run) -> None:
    """The preference model, from AI harmlessness and human helpfulness comparisons."""
    run.workdir.require("compare", "compare")
    folder, s = run.workdir.path / "preference_model", run.settings.preference_model
    if not run.workdir.begin("preference_model", run.inputs("preference_model")):
        return _skipped(run, "preference model")
    comparisons = read_records(run.workdir.path / "compare" / "comparisons", Comparison)
    human = [_human(run, c) for c in run.data.helpful_comparisons]
    model = run.feedback
    data = preference_model.examples(s, model.tokenizer, model.format, comparisons + human)
    with run.progress.stage("training the preference model", 0, "steps") as bar:
        params = preference_model.train_preference_model(
            s, model.config, run.take(model), data, folder, run.settings.seed,
            _stepper(bar, "pm/accuracy", "agrees"), run.mesh,
        )  # fmt: skip
    run.save("preference_model", params)
    left_out = len(comparisons) + len(human) - len(data)
    run.workdir.finish(
        "preference_model",
        {"ai": len(comparisons), "human": len(human), "too_long_and_left_out": left_out},
    )


def train_rl(run: Run) -> None:
    """RL-CAI by PPO."""
    run.workdir.require("finetune", "finetune")
    run.workdir.require("preference_model", "train-pm")
    folder, s = run.workdir.path / "ppo", run.settings.ppo
    if not run.workdir.begin("ppo", run.inputs("ppo")):
        return _skipped(run, "PPO")
    engine = run.engine()
    rows = run.data.red_team + run.data.helpful
    form = run.initial.format
    kept = len(ppo.fitting(s, engine.tokenizer, form, rows))
    if kept < len(rows):
        run.progress.say(
            f"{len(rows) - kept} of {len(rows)} prompts are longer than ppo.prompt_tokens "
            f"({s.prompt_tokens}) and stay out of PPO"
        )
    run.take(run.initial)  # PPO holds four models of its own
    engine.params = None
    with run.progress.stage("PPO", s.updates, "updates") as bar:
        params = ppo.train_ppo(
            s, engine, form, run.params_of("finetune"), run.params_of("finetune"),
            run.params_of("preference_model"), rows, folder, run.settings.seed, run.provenance,
            _stepper(bar, "objective/score", "score"), run.mesh,
        )  # fmt: skip
    run.save("ppo", params)
    run.workdir.finish("ppo", {"prompts": kept, "too_long_and_left_out": len(rows) - kept})


def _human(run: Run, c: shipped.HelpfulComparison) -> Comparison:
    """A written helpfulness comparison as a record; which text is A is drawn."""
    first = random.Random(f"{run.settings.seed} helpful order {c.id}").random() < 0.5
    return Comparison(
        id=c.id,
        kind="helpful",
        prompt=c.prompt,
        response_a=c.good if first else c.poor,
        response_b=c.poor if first else c.good,
        prob_a=float(first),
        principle="",
        labeler="shipped with the project",
        mode="human",
        option_logprobs=(),
        swapped_prob_a=None,
        source="human",
        provenance=run.provenance,
    )


def read_records(folder: Path, cls: type) -> list:
    """All records of a finished stage's folder, whatever its number of shards."""
    count = len(list(folder.glob("*.jsonl")))
    return Shards(folder, count).read(cls)


def _show(run: Run, record: Revision) -> None:
    step = record.steps[0]
    asked = record.prompt.turns[-1].text
    run.progress.show_chain(asked, record.initial_response, step.critique, step.revision)


def _skipped(run: Run, name: str) -> None:
    run.progress.say(f"✓ {name}: finished in a former run")


def counter(bar: Stage) -> Callable[[int, int], None]:
    return lambda done, total: bar.advance(done - bar.done)


def _stepper(bar: Stage, metric: str, name: str) -> Callable[[int, int, Any], None]:
    def stepped(done: int, total: int, metrics: Any) -> None:
        bar.total = total
        bar.advance(done - bar.done, note=f"{name} {metrics[metric]:.3f}")

    return stepped
