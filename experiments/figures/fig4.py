"""Figure 4: accuracy on the 438 HHH comparisons by model size, with and without chain of thought.

Command:  cai-jax evaluate --config=experiments/figures/fig4.py:laptop --workdir=evaluations/SIZE
          --config.data=DIR --config.model=MODEL
          once for each model, and then
          cai-jax figures --figure=4 --runs=evaluations/SIZE,evaluations/SIZE --workdir=figures
Data:     DIR is a checkout of github.com/anthropics/ConstitutionalHarmlessnessPaper. For its own
          few-shots: cai-jax constitution import --from=DIR/prompts --to=paper.yaml, and
          --config.constitution=paper.yaml. A run's preference model is added by
          --config.preference_model=runs/NAME.
Hardware: laptop: 2 CPU cores for 135M parameters and 50 comparisons; host and pod: all 438.
Time:     not measured.
Expect:   small models at chance, as in the paper, where only those above 10B gain.
"""

from ml_collections import ConfigDict
from scales import evaluation


def get_config(scale: str = "laptop") -> ConfigDict:
    """`scale` is "laptop", "host" or "pod"."""
    return evaluation(scale, "hhh", "few_shot,chain_of_thought")
