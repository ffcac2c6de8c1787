"""llama3_8b.py on the smallest slices that hold it: 16 chips of v5e or 8 of v6e.

Command:  cai-jax plan --config=experiments/llama3_8b_small_slice.py --topology=v5e-16
          cai-jax plan --config=experiments/llama3_8b_small_slice.py --topology=v6e-8
          cai-jax run --config=experiments/llama3_8b_small_slice.py --workdir=DIR --config.model=DIR
Hardware: what `plan` finds large enough (docs/plan.md).
Time:     not measured; a run has not been made.
Expect:   less memory at some cost: the optimisers' moments in bfloat16, PPO's value function a head
          on the policy's own trunk, batches in parts.
"""

from llama3_8b import get_config as llama3_8b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """`model` is a shape until it is set to a folder with weights."""
    config = llama3_8b()
    config.ppo.value_trunk = "shared"
    config.ppo.value_init = "zero_head"
    for group in (config.finetune, config.preference_model, config.ppo, config.dpo):
        group.optimizer.moment_dtype = "bfloat16"
        group.microbatches = 8
    config.engine.slots = 128
    return config
