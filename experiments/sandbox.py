"""The whole method in a little world where harm is known exactly.

Command:  cai-jax run --config=experiments/sandbox.py --workdir=runs/sandbox &&
          cai-jax sandbox-scores --workdir=runs/sandbox
Hardware: 2 CPU cores, no accelerator.
Time:     6 minutes, with the scores (2026-12-01).
Expect:   tables and figures of what is true: helpful-only is harmful, SL-CAI less, RL-CAI least,
          without evading and without refusing what is innocent (docs/sandbox.md). The models ship
          with the package; sandbox.py:tiny takes smaller ones, whose thinking is at chance.
          `cai-jax sandbox --size=medium --workdir=DIR` makes larger ones, which a run takes as
          --config.model=DIR/models/helpful and --config.feedback_model=DIR/models/pretrained.
"""

from common import get_config as common
from ml_collections import ConfigDict

FILES = "experiments/sandbox"


def get_config(size: str = "small") -> ConfigDict:
    """`size` is that of the models."""
    config = common()
    config.model = f"sandbox-{size}"
    config.feedback_model = f"sandbox-{size}-pretrained"
    config.constitution = "constitutions/sandbox.yaml"
    for name in (
        "red_team", "helpful", "held_out_red_team", "held_out_helpful", "helpful_comparisons",
        "held_out_comparisons", "label_pairs",
    ):  # fmt: skip
        config.prompts[name] = f"{FILES}/{name}.jsonl"

    config.engine.slots = 64
    config.engine.max_length = 512
    config.engine.few_sizes = True

    config.revise.rounds = 4
    config.revise.few_shots = 0
    config.revise.response_tokens = 48
    config.revise.critique_tokens = 48
    config.revise.revision_tokens = 48
    config.revise.helpful_samples = 2

    config.finetune.revisions = "final"
    config.finetune.epochs = 2
    config.finetune.batch_size = 16
    config.finetune.length = 256
    config.finetune.remat = "none"
    config.finetune.optimizer.learning_rate = 1e-3

    config.compare.response_tokens = 48
    # The models know the question from their corpus. A principle here is about three of nine
    # categories, so that most say nothing of a pair: the label is the mean over all sixteen.
    config.compare.few_shots = 0
    config.compare.mode = "chain_of_thought"
    config.compare.principles = "all"
    config.compare.chain_tokens = 64

    config.preference_model.ai_weight = 2.0
    config.preference_model.epochs = 3
    config.preference_model.batch_size = 32
    config.preference_model.length = 160
    config.preference_model.remat = "none"
    config.preference_model.optimizer.learning_rate = 1e-3

    config.ppo.updates = 40
    config.ppo.batch_size = 64
    config.ppo.minibatches = 2
    config.ppo.prompt_tokens = 112
    config.ppo.response_tokens = 48
    config.ppo.kl_coefficient = 0.02
    config.ppo.remat = "none"
    config.ppo.optimizer.learning_rate = 3e-4
    config.ppo.value_optimizer.learning_rate = 1e-3

    config.evaluate.response_tokens = 48
    return config
