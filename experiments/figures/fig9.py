"""Figure 9: calibration of a feedback model's labels on the HHH comparisons.

Command:  cai-jax evaluate --config=experiments/figures/fig9.py:laptop --workdir=evaluations/labels
          --config.data=DIR --config.model=MODEL
          cai-jax figures --figure=9 --runs=evaluations/labels --workdir=figures
Data:     DIR is a checkout of github.com/anthropics/ConstitutionalHarmlessnessPaper.
Hardware: laptop: 2 CPU cores for 135M parameters and 50 comparisons; host and pod: all 438.
Time:     not measured.
Expect:   labels of a small model gather near 0.5 and are right half the time; the paper's 52B ones
          follow the diagonal.
"""

from ml_collections import ConfigDict
from scales import evaluation


def get_config(scale: str = "laptop") -> ConfigDict:
    """`scale` is "laptop", "host" or "pod"."""
    return evaluation(scale, "hhh", "few_shot,chain_of_thought")
