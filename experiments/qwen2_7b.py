"""The whole method with a 7B model of Qwen2.5's shape, on a slice of a TPU pod.

Command:  cai-jax plan --config=experiments/qwen2_7b.py --topology=v4-32
          cai-jax run --config=experiments/qwen2_7b.py --workdir=DIR --config.model=DIR
Hardware: what `plan` finds large enough (docs/plan.md).
Time:     not measured; a run has not been made.
Expect:   as llama3_8b.py, whose settings it has; `tensor` divides its 4 heads of keys and values.
"""

from llama3_8b import get_config as llama3_8b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """`model` is a shape until it is set to a folder with weights."""
    config = llama3_8b()
    config.model = "qwen2.5-7b"
    config.mesh.tensor = 4
    return config
