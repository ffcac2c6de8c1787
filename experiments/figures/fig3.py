"""Figure 3: helpfulness and harmlessness Elo by the number of parameters.

Command:  cai-jax run --config=experiments/figures/fig3.py:host --workdir=runs/SIZE
          --config.model=DIR
          once for each size of a family, each with its DIR, and then
          cai-jax evaluate --config=experiments/snapshots.py --workdir=compared/fig3
          --config.runs=runs/SIZE,runs/SIZE --config.judge=MODEL
          cai-jax figures --figure=3 --runs=compared/fig3 --workdir=figures
Hardware: laptop: 2 CPU cores, 6 GB for 135M parameters; host: 8 accelerators; pod: more of them.
          DIR is a model in Hugging Face layout; MODEL judges all sizes.
Time:     not measured.
Expect:   a point for each size and snapshot, each less SL-CAI of the first run named. On a laptop
          intervals are wide: the project holds out 24 red-team and 16 helpful prompts.
"""

from ml_collections import ConfigDict
from scales import run


def get_config(scale: str = "laptop") -> ConfigDict:
    """`scale` is "laptop", "host" or "pod"."""
    return run(scale)
