"""A model of the paper's own size, 52B, to see what its run would need. There are no such weights.

Command:  cai-jax plan --config=experiments/paper_52b.py --topology=v4-512
Hardware: what `plan` finds large enough (docs/plan.md).
Time:     not measured.
Expect:   a table. 64 layers of width 8,192 come to 52B; blocks of the time had no gate, so the MLP
          is narrower here, for as many weights. SL-CAI's batch is the paper's; other batches and
          all lengths are llama3_8b.py's, since the paper does not give them.
"""

from llama3_8b import get_config as llama3_8b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """`model` is a shape."""
    config = llama3_8b()
    config.model = "paper-52b"
    config.finetune.batch_size = 1024
    config.finetune.microbatches = 8
    return config
