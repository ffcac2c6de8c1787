"""Figure 7: are critiques needed, or do direct revisions do as well?

Command:  cai-jax run --config=experiments/figures/fig7.py:laptop --workdir=runs/direct
          --config.revise.critique=False
          again with another --workdir and without that setting; both for each further model with
          --config.model=DIR, and then
          cai-jax figures --figure=7 --runs=runs/direct,runs/critiqued --workdir=figures
Hardware: laptop: 2 CPU cores, 6 GB; host: 8 accelerators; pod: more of them.
Time:     not measured; each run is a whole one.
Expect:   a line for each run over revisions 0 to 4: the gain in PM score, and self-BLEU. The paper
          found critiques to help small models most; of a 135M model neither line need rise.
"""

from ml_collections import ConfigDict
from scales import run


def get_config(scale: str = "laptop") -> ConfigDict:
    """`scale` is "laptop", "host" or "pod"."""
    config = run(scale)
    config.revise.rounds = 4
    return config
