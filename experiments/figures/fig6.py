"""Figure 6: do more critique principles make better, or more diverse, revisions?

Command:  cai-jax run --config=experiments/figures/fig6.py:laptop --workdir=runs/one-principle
          --config.revise.principles=1
          again with another --workdir and 2, 4, 8 and 16 principles, and then
          cai-jax figures --figure=6 --runs=runs/one-principle,runs/two --workdir=figures
Hardware: laptop: 2 CPU cores, 6 GB; host: 8 accelerators; pod: more of them.
Time:     not measured; each run is a whole one.
Expect:   three panels over the number of principles: PM score of the last revision, self-BLEU and
          distinct-2. The paper saw no significant effect on scores, and expected more diversity
          without measuring it. All runs must revise the same prompts; each is scored by its own
          preference model.
"""

from ml_collections import ConfigDict
from scales import run


def get_config(scale: str = "laptop") -> ConfigDict:
    """`scale` is "laptop", "host" or "pod"."""
    return run(scale)
