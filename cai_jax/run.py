"""One run: its settings, texts, constitution, models and folder, checked before any compute."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax

from cai_jax import constitution as constitutions
from cai_jax import hosts
from cai_jax.conversation import PaperFormat
from cai_jax.decoding import Engine, stats
from cai_jax.decoding.rate import check_room
from cai_jax.encoding import prompt_tokens
from cai_jax.machine import check_batches, engine_of, mesh_of_shape
from cai_jax.mesh import DEFAULT_RULES, param_shardings, place
from cai_jax.models import heads, int8, transformer
from cai_jax.models.transformer import Params
from cai_jax.principles import first_principles
from cai_jax.progress import Progress
from cai_jax.prompts import Format
from cai_jax.records import Provenance
from cai_jax.run_texts import read_data
from cai_jax.saved_params import check_shapes, load_params, save_params
from cai_jax.settings import ALGORITHMS, ConfigError, RunSettings
from cai_jax.stages.ppo import fitting
from cai_jax.stages.preference_model import apart, half
from cai_jax.training.rollout import RETOKENIZED
from cai_jax.weights.load import Model, load_model
from cai_jax.workdir import Workdir, commit, digest

HELD_OUT = "held_out_preference_model"  # a stage's folder, of a run with preference_model.halves


def pm_stages(settings: RunSettings) -> list[str]:
    """The stages that train the members of the preference model, the first of them first."""
    more = range(2, settings.preference_model.members + 1)
    return ["preference_model", *(f"preference_model_{n}" for n in more)]


class Run:
    """One run: settings, workdir, constitution, texts, and the model they start from.

    Raises:
      ValueError: a setting, file, model or prompt that cannot be used; before any compute.
    """

    def __init__(self, settings: RunSettings, workdir: Workdir, progress: Progress):
        self.settings, self.workdir, self.progress = settings, workdir, progress
        self.constitution = constitutions.load(settings.constitution)
        in_force = self.constitution.critique, settings.revise.principles, settings.seed
        self.critique_principles = first_principles(*in_force)
        self.data = read_data(settings)
        self.mesh = mesh_of_shape(settings.mesh)
        check_batches(settings, self.mesh)
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
        self._trees = {"finetune": trunk, HELD_OUT: scorer}
        self._trees |= dict.fromkeys(pm_stages(settings), scorer)
        self._trees |= dict.fromkeys(ALGORITHMS, trunk)
        self._check_prompts()
        s, compared = settings.preference_model, [*self.data.red_team]
        compared += self.data.helpful_comparisons
        for part in [half(compared, w) for w in ("train", "test")] if s.halves else [compared]:
            apart(part, s.held_out)  # each preference model has something to learn from
        read = {
            "the texts": digest(dataclasses.asdict(self.data)),
            "the constitution": self.constitution.hash,
            "the model": self.initial.fingerprint,
            "the feedback model": self.feedback.fingerprint,
        }
        hosts.agree(read, "give all hosts the same files.")
        params = sum(x.nbytes for x in jax.tree.leaves(self.initial.params))
        # Three params trees stay; PPO keeps two states and writes the next beside the last two.
        # Adapters' states are small beside a model.
        states = 0 if settings.lora.rank else 12
        workdir.prepare(settings, (3 + states + s.members + s.halves) * params)
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

    def judge(self) -> Model:
        """The feedback model as it is asked: where the config says so in 8 bits.

        Loaded models are then forgotten, as `take` does.
        """
        model = self.feedback
        if not self.settings.frozen_int8:
            return model
        self._models.clear()
        return dataclasses.replace(model, params=int8.quantized(model.params))

    def rating_format(self) -> Format:
        """How the feedback model reads the questions of PPO's ratings: as those of labels."""
        return PaperFormat() if self.settings.compare.plain_text else self.feedback.format

    def take(self, model: Model) -> Params:
        """Params of a loaded model to train from, and forgets all loaded models.

        Training takes its start's buffers over, and two copies of each model would be the most
        memory that a run needs. The next use of a model reads it again.
        """
        self._models.clear()
        if self.settings.lora.rank:  # frozen, as they were read
            return model.params
        return jax.tree.map(lambda x: x.astype("float32"), model.params)

    def engine(
        self, stage: str, params: Params | None = None, model: Model | None = None
    ) -> Engine:
        """An engine of the configured size for the initial model's shape, or another model.

        Args:
          stage: whose folder gets a row of what each run of the engine did.
        """
        log = self.workdir.path / stage / stats.FILE
        engine = engine_of(self.settings.engine, model or self.initial, partial(stats.keep, log))
        if params is not None:
            engine.params = params
        return engine

    def params_of(self, stage: str) -> Params:
        """A finished stage's params."""
        folder, tree, mesh = self.workdir.path / stage / "params", self._trees[stage], self.mesh
        # Each host reads its own part of them.
        params, _ = load_params(folder, mesh and param_shardings(tree, mesh, DEFAULT_RULES))
        check_shapes(params, tree, folder)
        return place(params, mesh)

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

        if s.rated:
            rows = fitting(
                s.ppo, model.tokenizer, model.format, self.data.red_team + self.data.helpful
            )
            check_room(
                self.feedback.tokenizer, self.rating_format(), self.constitution,
                [row.conversation for row in rows], s.ppo.response_tokens + RETOKENIZED, limit,
            )  # fmt: skip
        written = max(s.revise.revision_tokens, s.revise.response_tokens)
        self._check_training(written + 8, s.finetune.length, "finetune.length")

    def _check_training(self, added: int, limit: int, name: str) -> None:
        """Refuses a training length that a revision of the longest prompt would not fit."""
        model = self.initial
        rows = self.data.red_team + self.data.helpful
        tokens = [prompt_tokens(model.tokenizer, model.format, r.conversation) for r in rows]
        row, length = max(zip(rows, map(len, tokens), strict=True), key=lambda item: item[1])
        if length + added > limit:
            raise ConfigError(
                f"config.{name} is {limit}, and prompt '{row.id}' with its revision can have "
                f"{length + added} tokens; raise {name} or shorten the prompt."
            )

    def inputs(self, stage: str) -> dict[str, Any]:
        """What a stage is made from: its own settings and, hashed, all that went before."""
        s = self.settings
        texts = dataclasses.asdict(self.data)
        held_out = digest([texts["held_out_red_team"], texts["held_out_helpful"]])
        adapters = {"lora": dataclasses.asdict(s.lora)} if s.lora.rank else {}
        frozen = {"frozen_int8": True} if s.frozen_int8 else {}
        common = {"seed": s.seed, "dtype": s.dtype, "constitution": self.constitution.hash}
        return {
            "revise": lambda: {
                **common,
                "revise": dataclasses.asdict(s.revise),
                "engine": {"slots": s.engine.slots, "max_length": s.engine.max_length},
                "model": self.initial.fingerprint,
                "prompts": digest([texts["red_team"], texts["helpful"]]),
            },
            "finetune": lambda: {
                "finetune": dataclasses.asdict(s.finetune),
                **adapters,
                "revise": digest(self.inputs("revise")),
            },
            "compare": lambda: {
                "compare": dataclasses.asdict(s.compare),
                **frozen,
                "feedback_model": self.feedback.fingerprint,
                "finetune": digest(self.inputs("finetune")),
            },
            "preference_model": lambda: {
                # One more member changes nothing in the others.
                "preference_model": {
                    k: v
                    for k, v in dataclasses.asdict(s.preference_model).items()
                    if k != "members"
                },
                **adapters,
                "helpful_comparisons": digest(texts["helpful_comparisons"]),
                "compare": digest(self.inputs("compare")),
            },
            HELD_OUT: lambda: {**self.inputs("preference_model"), "half": "test"},
            **{
                stage: lambda stage=stage: {**self.inputs("preference_model"), "member": stage}
                for stage in pm_stages(s)[1:]
            },
            "ppo": lambda: {
                "ppo": dataclasses.asdict(s.ppo),
                **adapters,
                **frozen,
                **self._rewarded_by(),
                **({"held_out": held_out} if s.preference_model.halves else {}),
            },
            "dpo": lambda: {
                "dpo": dataclasses.asdict(s.dpo),
                **adapters,
                "helpful_comparisons": digest(texts["helpful_comparisons"]),
                "compare": digest(self.inputs("compare")),
                **({"half": "train"} if s.preference_model.halves else {}),
            },
            "evaluation": lambda: {
                "evaluate": dataclasses.asdict(s.evaluate),
                **frozen,
                "texts": digest(
                    [texts[k] for k in sorted(texts) if k.startswith(("held_out", "label"))]
                ),
                s.algorithm: digest(self.inputs(s.algorithm)),
                "preference_model": digest(self.inputs("preference_model")),
            },
        }[stage]()

    def _rewarded_by(self) -> dict[str, Any]:
        """What PPO's scores come from, and what it starts from."""
        if not self.settings.rated:
            members = self.settings.preference_model.members
            return {
                "preference_model": digest(self.inputs("preference_model")),
                **({"members": members} if members > 1 else {}),
            }
        return {
            "finetune": digest(self.inputs("finetune")),
            "feedback_model": self.feedback.fingerprint,
            "plain_text": self.settings.compare.plain_text,
        }
