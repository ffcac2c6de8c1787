"""Figure 2: harmlessness Elo against helpfulness Elo, RL-CAI with and without chain of thought.

Command:  cai-jax run --config=experiments/figures/fig2.py:laptop --workdir=runs/rl-cai
          cai-jax run --config=experiments/figures/fig2.py:laptop --workdir=runs/rl-cai-cot
          --config.compare.mode=chain_of_thought --config.compare.clamp='(0.4, 0.6)'
          cai-jax evaluate --config=experiments/snapshots.py --workdir=compared/fig2
          --config.runs=runs/rl-cai,runs/rl-cai-cot --config.judge=MODEL
          cai-jax figures --figure=2 --runs=compared/fig2 --workdir=figures
Hardware: laptop: 2 CPU cores, 6 GB; host: 8 accelerators; pod: more of them. MODEL is the judge, by
          name or path; smollm2-135m-instruct on a laptop.
Time:     not measured; the quickstart's 8 to 27 minutes for each run on a laptop.
Expect:   two lines through SL-CAI at (0, 0). At laptop scale all intervals overlap, and the judge
          is near chance; the paper's Pareto improvement needs its scale.
"""

from ml_collections import ConfigDict
from scales import run


def get_config(scale: str = "laptop") -> ConfigDict:
    """`scale` is "laptop", "host" or "pod"."""
    return run(scale)
