"""google-tunix's trainer: finetuning."""

from __future__ import annotations

import jax
import numpy as np
import optax
from flax import nnx
from training_work import B1, B2, CLIP_NORM, EPS, LEARNING_RATE, Work
from tunix.sft import peft_trainer, utils
from tunix.sft.metrics_logger import Mode

from peers import Setup
from peers.stepping import Stepping
from peers.tunix_peer import load


class SL(Stepping):
    """PeftTrainer without LoRA: all weights."""

    warming = 2  # the second may compile again, for arrays that the first one made

    def __init__(self, setup: Setup, work: Work):
        super().__init__()
        _, model, _ = load(setup)
        opt = optax.chain(
            optax.clip_by_global_norm(CLIP_NORM),
            optax.adamw(LEARNING_RATE, B1, B2, EPS, weight_decay=0.0),
        )
        config = peft_trainer.TrainingConfig(eval_every_n_steps=10**9)
        trainer = peft_trainer.PeftTrainer(model, opt, config)
        trainer.is_managed_externally = True  # what train() is given is another step, not the run
        self._trainer = trainer.with_gen_model_input_fn(
            lambda batch: {
                "input_tokens": batch.input_tokens,
                "input_mask": batch.input_mask,
                "positions": utils.build_positions_from_mask(batch.input_mask),
                "attention_mask": utils.make_causal_attn_mask(batch.input_mask),
            }
        )
        tokens = np.array(work.rows, np.int32)
        self._batch = peft_trainer.TrainingInput(tokens, np.ones(tokens.shape, bool))

    def step(self) -> None:
        self._trainer.train([self._batch])
        jax.block_until_ready(nnx.state(self._trainer.model))
        log = self._trainer.metrics_logger  # a step behind
        if log.metric_exists("", "loss", Mode.TRAIN):
            self.losses = log.get_metric_history("", "loss", Mode.TRAIN).tolist()
