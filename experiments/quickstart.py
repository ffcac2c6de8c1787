"""The whole method on a laptop: SmolLM2-135M, the project's own prompts and constitution.

Command:  cai-jax run --config=experiments/quickstart.py --workdir=runs/quickstart
Hardware: 2 CPU cores, no accelerator.
Time:     8 to 27 minutes with the install, 5.1 to 6.0 GB (README, "What you see");
          `quickstart.py:smoke` does a tenth of the work, for CI.
Expect:   every stage runs and leaves its records; SL-CAI and RL-CAI move away from the start. A
          135M feedback model is near chance at choosing, so this shows the machinery, not the
          paper's science: the table says what its numbers can and cannot show.
"""

from common import get_config as common
from ml_collections import ConfigDict


def get_config(size: str = "full") -> ConfigDict:
    """`size` is "full" or "smoke"."""
    if size not in ("full", "smoke"):
        raise ValueError(
            f"quickstart.py:{size} is unknown; use quickstart.py or quickstart.py:smoke."
        )
    config = common()
    config.engine.max_length = 512
    config.engine.slots = 24
    config.engine.few_sizes = True

    # At the paper's temperature of 1 a 135M model's answers are mostly noise.
    for stage in (config.revise, config.compare, config.ppo, config.evaluate):
        stage.temperature = 0.7

    config.revise.rounds = 2
    config.revise.few_shots = 2
    config.revise.response_tokens = 32
    config.revise.critique_tokens = 24
    config.revise.revision_tokens = 32
    config.revise.helpful_samples = 1
    config.revise.shard_size = 24

    config.finetune.batch_size = 4
    config.finetune.length = 256
    config.finetune.save_every = 16
    config.finetune.remat = "dots"
    config.finetune.optimizer.learning_rate = 2e-5
    config.finetune.optimizer.moment_dtype = "bfloat16"

    config.compare.response_tokens = 32
    config.compare.few_shots = 2
    config.compare.both_orders = True
    config.compare.chain_tokens = 24
    config.compare.shard_size = 24

    config.preference_model.epochs = 1
    config.preference_model.batch_size = 4
    config.preference_model.length = 144
    config.preference_model.save_every = 10
    config.preference_model.remat = "dots"
    config.preference_model.optimizer.learning_rate = 1e-4
    config.preference_model.optimizer.moment_dtype = "bfloat16"

    config.ppo.updates = 6
    config.ppo.batch_size = 16
    config.ppo.minibatches = 2
    config.ppo.prompt_tokens = 64
    config.ppo.response_tokens = 32
    config.ppo.kl_coefficient = 0.02
    config.ppo.save_every = 3
    config.ppo.remat = "dots"
    config.ppo.optimizer.learning_rate = 1e-5
    config.ppo.value_optimizer.learning_rate = 3e-5
    # PPO holds four models; factored moments leave room for them in 6 GB.
    for optimizer in (config.ppo.optimizer, config.ppo.value_optimizer):
        optimizer.kind = "adafactor"
        optimizer.b1 = 0.0

    config.evaluate.response_tokens = 32

    if size == "smoke":
        config.prompts.red_team_limit = 5
        config.prompts.helpful_limit = 4
        config.prompts.held_out_red_team_limit = 4
        config.prompts.held_out_helpful_limit = 3
        config.evaluate.batch_size = 4
        config.prompts.helpful_comparisons_limit = 3
        config.prompts.label_pairs_limit = 4
        config.engine.slots = 8
        config.revise.response_tokens = 16
        config.revise.critique_tokens = 16
        config.revise.revision_tokens = 16
        config.compare.response_tokens = 16
        config.compare.chain_tokens = 16
        config.ppo.updates = 2
        config.ppo.batch_size = 4
        config.ppo.response_tokens = 16
        config.evaluate.response_tokens = 16
        config.evaluate.resamples = 200
    return config
