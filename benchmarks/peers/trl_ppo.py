"""TRL's PPO, of the last release that has it: 1.9.2, from a folder of its own."""

from __future__ import annotations

import sys
import tempfile

import torch
from datasets import Dataset
from training_work import KL_COEFFICIENT, TEMPERATURE, Work

from peers import Setup
from peers.gate import Gate
from peers.stepping import Stepping
from peers.transformers_peer import load
from peers.trl_training import ENDLESS, Pausing, arguments, numbers, scorer


class PPO(Stepping):
    """PPOTrainer, stopped after each iteration."""

    def __init__(self, setup: Setup, work: Work):
        super().__init__()
        if work.trl_ppo is not None:
            sys.path.insert(0, str(work.trl_ppo))
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        self._folder = tempfile.TemporaryDirectory()
        count = len(work.rows)
        policy = load(setup)
        config = PPOConfig(
            **arguments(self._folder.name), per_device_train_batch_size=count,
            num_mini_batches=work.minibatches, num_ppo_epochs=1, total_episodes=count * ENDLESS,
            response_length=work.response, temperature=TEMPERATURE, kl_coef=KL_COEFFICIENT,
            local_rollout_forward_batch_size=count, num_sample_generations=0,
        )  # fmt: skip

        def loop(pause) -> None:
            torch.set_num_threads(setup.threads)  # a setting of each thread
            trainer = PPOTrainer(
                args=config, processing_class=numbers(policy.config.vocab_size), model=policy,
                ref_model=load(setup), reward_model=scorer(setup), value_model=scorer(setup),
                train_dataset=Dataset.from_dict({"input_ids": work.rows}),
                callbacks=[Pausing(pause)],
            )  # fmt: skip
            trainer.train()

        self._gate = Gate(loop)

    def step(self) -> None:
        self._gate.step()
