"""Figure 5: preference-model score by number of revisions, a line for each generating model.

Command:  cai-jax run --config=experiments/figures/fig5.py:laptop --workdir=runs/revisions
          again with another --workdir and --config.model=DIR for each further model, and then
          cai-jax figures --figure=5 --runs=runs/revisions --workdir=figures
Hardware: laptop: 2 CPU cores, 6 GB; host: 8 accelerators; pod: more of them.
Time:     not measured.
Expect:   five points a line, the first at 0. The scores are those of the run's own preference
          model; of a 135M one they need not rise. For one preference model of all runs, draw from
          what experiments/snapshots.py leaves with --config.preference_model=DIR.
"""

from ml_collections import ConfigDict
from scales import run


def get_config(scale: str = "laptop") -> ConfigDict:
    """`scale` is "laptop", "host" or "pod"."""
    config = run(scale)
    config.revise.rounds = 4
    return config
