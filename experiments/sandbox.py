"""The whole method in a little world where harm is known exactly.

Command:  cai-jax run --config=experiments/sandbox.py --workdir=runs/sandbox
          then cai-jax sandbox-scores --workdir=runs/sandbox
Hardware: 2 CPU cores, no accelerator.
Time:     2 min 19 s, 1.4 GB with the tiny models, which ship with the package (2026-11-30).
Expect:   a table by the run's own preference model, then one of what is true. SL-CAI is less
          harmful than the start. RL-CAI is not: models this small judge no better than chance
          (docs/sandbox.md). `cai-jax sandbox --size=small --workdir=DIR` makes larger ones, which
          a run takes as --config.model=DIR/models/helpful and
          --config.feedback_model=DIR/models/pretrained.
"""

from common import get_config as common
from ml_collections import ConfigDict

FILES = "experiments/sandbox"


def get_config(size: str = "tiny") -> ConfigDict:
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
    config.compare.few_shots = 2
    config.compare.chain_tokens = 64
    config.compare.both_orders = True

    config.preference_model.epochs = 2
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
