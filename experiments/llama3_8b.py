"""The whole method with an 8B model of Llama 3's shape, on a slice of a TPU pod.

Command:  cai-jax plan --config=experiments/llama3_8b.py --topology=v5e-64
          cai-jax run --config=experiments/llama3_8b.py --workdir=runs/llama3_8b
          with --config.model=DIR, on every host
Hardware: what `plan` finds large enough (docs/plan.md).
Time:     not measured; a run has not been made.
Expect:   the paper's batch sizes and lengths, where it gives them, in bfloat16.
"""

from common import get_config as common
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """`model` is a shape until it is set to a folder with weights."""
    config = common()
    config.model = "llama-3.1-8b"
    config.dtype = "bfloat16"
    for group in (config.finetune, config.preference_model, config.ppo, config.dpo):
        group.batch_size = 64
        group.compute_dtype = "bfloat16"
    config.ppo.batch_size = 256
    config.engine.slots = 256
    config.mesh.tensor = 8  # one device has no room for weights to decode with
    return config
