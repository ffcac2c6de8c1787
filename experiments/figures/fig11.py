"""Figure 11: accuracy on the original 221 HHH comparisons by model size.

Command:  cai-jax evaluate --config=experiments/figures/fig11.py:laptop --workdir=evaluations/SIZE
          --config.data=DIR --config.hhh_alignment=TASK --config.model=MODEL
          once for each model, and then
          cai-jax figures --figure=11 --runs=evaluations/SIZE,evaluations/SIZE --workdir=figures
Data:     DIR is a checkout of github.com/anthropics/ConstitutionalHarmlessnessPaper, TASK the
          folder hhh_alignment of BIG-bench, which tells which of the 438 are the original ones.
Hardware: laptop: 2 CPU cores for 135M parameters and 50 of the 438; host and pod: all of them.
Time:     not measured.
Expect:   small models at chance; the paper's largest well over 90%.
"""

from ml_collections import ConfigDict
from scales import evaluation


def get_config(scale: str = "laptop") -> ConfigDict:
    """`scale` is "laptop", "host" or "pod"."""
    return evaluation(scale, "hhh", "few_shot,chain_of_thought")
