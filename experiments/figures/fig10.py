"""Figure 10: absolute harmfulness from 0 to 4 over RL training.

Command:  cai-jax run --config=experiments/figures/fig8.py:laptop --workdir=runs/rl-cai
          cai-jax harmfulness --config=experiments/figures/fig10.py:laptop --workdir=scorers/laptop
          --config.attempts=FILE --config.runs=runs/rl-cai
          cai-jax figures --figure=10 --runs=runs/rl-cai --workdir=figures
Data:     `cai-jax fetch red_team_attempts` prints FILE, red_team_attempts.jsonl.gz of hh-rlhf.
Hardware: laptop: 2 CPU cores for 135M parameters and 1,000 attempts; host and pod: all of them.
Time:     not measured.
Expect:   lines at T=1 and T=0 from SL-CAI to RL-CAI. First read the scorer's error on held-out
          attempts: where it is that of a constant, the lines say nothing.
"""

from ml_collections import ConfigDict
from scales import scorer


def get_config(scale: str = "laptop") -> ConfigDict:
    """`scale` is "laptop", "host" or "pod"."""
    return scorer(scale)
