"""Figure 8: helpfulness and harmlessness Elo over RL training; from the same runs as figure 2.

Command:  cai-jax run --config=experiments/figures/fig8.py:laptop --workdir=runs/rl-cai
          cai-jax run --config=experiments/figures/fig8.py:laptop --workdir=runs/rl-cai-cot
          --config.compare.mode=chain_of_thought --config.compare.clamp='(0.4, 0.6)'
          cai-jax evaluate --config=experiments/snapshots.py --workdir=compared/fig8
          --config.runs=runs/rl-cai,runs/rl-cai-cot --config.judge=MODEL
          cai-jax figures --figure=8 --runs=compared/fig8 --workdir=figures
Hardware: laptop: 2 CPU cores, 6 GB; host: 8 accelerators; pod: more of them. MODEL is the judge, by
          name or path; smollm2-135m-instruct on a laptop.
Time:     not measured; the quickstart's 8 to 27 minutes for each run on a laptop.
Expect:   a line for each run from SL-CAI to RL-CAI, one snapshot after RL where the paper has four.
"""

from ml_collections import ConfigDict
from scales import run


def get_config(scale: str = "laptop") -> ConfigDict:
    """`scale` is "laptop", "host" or "pod"."""
    return run(scale)
