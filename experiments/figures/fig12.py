"""Figure 12: telling harmful conversations and naming the kind of harm, by model size.

Command:  cai-jax evaluate --config=experiments/figures/fig12.py:laptop --workdir=evaluations/SIZE
          --config.data=DIR --config.model=MODEL
          once for each model, and then
          cai-jax figures --figure=12 --runs=evaluations/SIZE,evaluations/SIZE --workdir=figures
Data:     DIR is a checkout of github.com/anthropics/ConstitutionalHarmlessnessPaper.
Hardware: laptop: 2 CPU cores for 135M parameters and 50 questions of each kind; host and pod: all.
Time:     not measured.
Expect:   small models near chance, one in two and one in nine; the paper's improve with size, and
          few-shot and chain of thought are far better than zero-shot.
"""

from ml_collections import ConfigDict
from scales import evaluation


def get_config(scale: str = "laptop") -> ConfigDict:
    """`scale` is "laptop", "host" or "pod"."""
    names = "harmful_vs_ethical,harm_classes"
    return evaluation(scale, names, "zero_shot,few_shot,chain_of_thought")
