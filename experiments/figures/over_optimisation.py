"""Over-optimisation of the preference model, the robustness study of the companion paper.

Command:  cai-jax run --config=experiments/figures/over_optimisation.py:laptop
          --workdir=runs/over-optimisation
          cai-jax figures --figure=over-optimisation --runs=runs/over-optimisation
          --workdir=figures
Hardware: laptop: 2 CPU cores, and a preference model (0.5 GB) more in memory than the quickstart;
          host: 8 accelerators; pod: more of them.
Time:     not measured.
Expect:   two lines that part as KL grows, the train PM's above. At laptop scale each half has some
          30 comparisons and an update 16 responses, so read the bars; the paper saw the two agree
          up to about 150,000 samples, and larger preference models hold longer.
"""

from ml_collections import ConfigDict
from scales import run


def get_config(scale: str = "laptop") -> ConfigDict:
    """`scale` is "laptop", "host" or "pod"."""
    config = run(scale)
    config.preference_model.halves = True
    # The companion paper's settings of this study, 2204.05862.
    config.ppo.response_tokens = 32
    config.ppo.epochs = 2
    config.ppo.kl_coefficient = 0.001
    if scale == "laptop":
        config.ppo.updates = 30
        config.ppo.save_every = 5
        return config
    batch = config.ppo.batch_size
    config.ppo.updates = 200_000 // batch
    steps = config.ppo.epochs * config.ppo.minibatches
    for optimizer in (config.ppo.optimizer, config.ppo.value_optimizer):
        optimizer.warmup_steps = 25_000 // batch * steps
    return config
