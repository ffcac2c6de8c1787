"""The whole method with a model of Mixtral 8x7B's shape, on a slice of a TPU pod.

Command:  cai-jax plan --config=experiments/mixtral_8x7b.py --topology=v5p-64
          cai-jax run --config=experiments/mixtral_8x7b.py --workdir=DIR --config.model=DIR
Hardware: what `plan` finds large enough (docs/plan.md).
Time:     not measured; a run has not been made.
Expect:   as llama3_8b.py, whose settings it has.
"""

from llama3_8b import get_config as llama3_8b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """`model` is a shape until it is set to a folder with weights."""
    config = llama3_8b()
    config.model = "mixtral-8x7b"
    return config
