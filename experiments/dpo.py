"""The quickstart with DPO for PPO: RL-CAI from the comparisons, without a score or a rollout.

Command:  cai-jax run --config=experiments/dpo.py --workdir=runs/dpo
Hardware: 2 CPU cores, no accelerator.
Time:     not measured.
Expect:   every stage runs; `dpo/metrics.jsonl` begins at a loss of log 2 and a margin of 0. The
          preference model is trained too: it scores the answers. As in the quickstart, a 135M
          feedback model is near chance at choosing.
"""

from ml_collections import ConfigDict
from quickstart import get_config as quickstart


def get_config(size: str = "full") -> ConfigDict:
    """`size` is "full" or "smoke"."""
    config = quickstart(size)
    config.algorithm = "dpo"
    config.dpo.batch_size = 4
    config.dpo.length = 144
    config.dpo.save_every = 10
    config.dpo.remat = "dots"
    config.dpo.optimizer.learning_rate = 1e-5
    config.dpo.optimizer.moment_dtype = "bfloat16"
    return config
