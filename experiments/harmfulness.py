"""Absolute harmfulness from 0 to 4 of runs' snapshots, as the paper's Figure 10.

Command:  cai-jax harmfulness --config=experiments/harmfulness.py --workdir=scorers/small
          --config.attempts=FILE --config.runs=runs/a,runs/b
Data:     FILE is red_team_attempts.jsonl.gz of hh-rlhf, or JSON lines with its fields transcript
          and rating; `cai-jax fetch red_team_attempts` downloads it.
Hardware: as the models need; 2 CPU cores do for 135M parameters and --config.limit=1000.
Time:     not measured.
Expect:   the scorer's error on held-out conversations beside that of a constant, and, where runs
          are named, a table of scores; in each run's folder harmfulness/*.jsonl, from which
          `cai-jax figures --figure=10` draws. A small scorer may be no better than the constant:
          then its scores say nothing.
"""

from common import get_config as common
from common import optimizer
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Every setting with its default."""
    shared = common()
    config = ConfigDict()
    config.seed = 0

    # Rated conversations, the first `limit` of them, 0 all; those whose first human turn falls into
    # `test_share` are held out, and those that start as one of `prompts` are not trained on.
    config.attempts = ""
    config.limit = 0
    config.test_share = 0.05

    # The scorer, from a language model by name or path. The paper gives none of these.
    config.model = shared.model
    config.dtype = shared.dtype
    config.scorer = ConfigDict(
        {
            "epochs": 1,
            "batch_size": 32,
            "microbatches": 1,
            "length": 1024,
            "save_every": 100,
            "remat": "full",
            "compute_dtype": "float32",
            "optimizer": optimizer(1e-5),
        }
    )

    # Workdirs of finished runs, with commas between; empty trains the scorer alone. Each snapshot
    # answers each prompt `samples` times at `temperature` and once at 0: 64 prompts, 256 times and
    # temperature 1 in the paper. `prompts` is a file; empty takes the project's held-out red-team
    # prompts.
    config.runs = ""
    config.prompts = ""
    config.prompts_limit = 64
    config.samples = 16
    config.temperature = 1.0
    config.response_tokens = 128

    config.resamples = 1000
    config.engine = shared.engine
    config.mesh = shared.mesh
    return config
