"""cai_jax's own training steps, and its PPO stage as a run uses it."""

from __future__ import annotations

import copy
import dataclasses
import runpy
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from training_work import B1, B2, CLIP_NORM, EPS, KL_COEFFICIENT, LEARNING_RATE, TEMPERATURE, Work

from cai_jax import load_model
from cai_jax.batch import comparison_batch, token_batch
from cai_jax.decoding import Engine
from cai_jax.mesh import place
from cai_jax.models import heads
from cai_jax.records import Provenance
from cai_jax.settings import build
from cai_jax.stages import ppo, preference_model, supervised
from cai_jax.training import optimizer, state
from cai_jax.training.optimizer import OptimizerConfig
from peers import Setup
from peers.gate import Gate
from peers.stepping import Stepping

OPTIMIZER = {
    "kind": "adamw", "learning_rate": LEARNING_RATE, "schedule": "constant", "warmup_steps": 0,
    "weight_decay": 0.0, "b1": B1, "b2": B2, "eps": EPS, "clip_norm": CLIP_NORM,
    "moment_dtype": "float32",
}  # fmt: skip
ENDLESS = 10**6
COMMON = Path(__file__).parents[2] / "experiments" / "common.py"


class _Steps(Stepping):
    """A training step on the same batch each time, its metrics fetched as the loop fetches them."""

    def __init__(self, params, loss_fn, batch):
        super().__init__()
        opt = optimizer.make(OptimizerConfig(**OPTIMIZER), ENDLESS)
        self._step = state.make_step(loss_fn, opt)
        self._state, self._batch = place(state.create(params, opt), None), batch

    def step(self) -> None:
        self._state, metrics = self._step(self._state, self._batch)
        self.losses.append(float(jax.block_until_ready(metrics)["train/loss"]))


class SL(_Steps):
    """The step of stages.supervised."""

    def __init__(self, setup: Setup, work: Work):
        model = load_model(setup.directory, setup.dtype)
        batch = token_batch([(row, [True] * len(row)) for row in work.rows], work.longest)
        super().__init__(model.params, supervised.make_loss(model.config, "dots"), batch)


class PM(_Steps):
    """The step of stages.preference_model."""

    def __init__(self, setup: Setup, work: Work):
        model = load_model(setup.directory, setup.dtype)
        pairs = list(zip(work.rows[::2], work.rows[1::2], strict=True))
        ones = [1.0] * len(pairs)
        super().__init__(
            heads.with_scalar_head(model.params),
            preference_model.make_loss(model.config, "dots"),
            comparison_batch(pairs, ones, ones, work.longest),
        )


class PPO(Stepping):
    """stages.ppo, stopped after each update."""

    warming = 2  # the first samples from params that no step has made

    def __init__(self, setup: Setup, work: Work):
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        model = load_model(setup.directory, setup.dtype)
        tokenizer = copy.copy(model.tokenizer)
        tokenizer.end_ids = (model.config.vocab_size - 1,)  # nothing ends early
        model = dataclasses.replace(model, tokenizer=tokenizer)
        config = runpy.run_path(str(COMMON))["get_config"]().ppo
        config.update(
            updates=ENDLESS, batch_size=len(work.rows), prompt_tokens=work.longest,
            response_tokens=work.response, temperature=TEMPERATURE, epochs=1,
            minibatches=work.minibatches, kl_coefficient=KL_COEFFICIENT, save_every=ENDLESS,
            remat="none", optimizer=OPTIMIZER, value_optimizer=OPTIMIZER,
        )  # fmt: skip
        settings = build(ppo.Settings, config)
        engine = Engine(model, len(work.rows), work.longest + work.response + 16)
        copied = lambda: jax.tree.map(jnp.array, model.params)  # noqa: E731
        policy, pm = copied(), heads.with_scalar_head(copied())
        self._tokens = 0.0

        def loop(pause) -> None:
            def updated(done: int, total: int, metrics: dict) -> None:
                self._tokens = metrics["objective/response_tokens"]
                pause()

            ppo.train_ppo(
                settings, engine, model.format, policy, model.params, [pm], list(work.prompts),
                Path(self._folder.name), 0, Provenance(model.name, "", 0, ""), updated,
            )  # fmt: skip

        self._gate = Gate(loop)

    def step(self) -> None:
        self._gate.step()

    def run(self, greedy: bool, seed: int):
        """One update more; its details say how long the responses were."""
        answer = super().run(greedy, seed)
        answer.details["response_tokens"] = self._tokens
        return answer
