"""A preference model of people's comparisons alone: a judge that no run was trained against.

Command:  cai-jax human-preferences --config=experiments/human_preferences.py --workdir=pms/human
          --config.pairs=FILE,FILE --config.held_out=FILE
          then cai-jax evaluate --config=experiments/snapshots.py --workdir=compared/small
          --config.runs=runs/a,runs/b --config.preference_model=pms/human
Data:     files of {"chosen", "rejected"} dialogues, as hh-rlhf has them, gzipped or not;
          `cai-jax fetch hh_rlhf/harmless-base` downloads some.
Hardware: laptop: 2 CPU cores; full: an accelerator.
Time:     7,220 pairs of 256 tokens and 1,200 held-out ones took 84 minutes on 2 cores beside other
          work, 5.6 GB (docs/results.md); otherwise not measured.
Expect:   accuracy on each held-out file beside that of "the longer one is better", by length, and
          its calibration; `cai-jax figures --figure=calibration` draws it. Where an interval holds
          50%, the model's judgements on such prompts say nothing. People differ too: the companion
          paper's workers and authors agreed on about 63% of pairs.
"""

from common import get_config as common
from ml_collections import ConfigDict


def get_config(size: str = "laptop") -> ConfigDict:
    """`size` is "laptop" or "full"."""
    if size not in ("laptop", "full"):
        raise ValueError(
            f"human_preferences.py:{size} is unknown; use human_preferences.py:laptop or :full."
        )
    shared = common()
    config = ConfigDict()
    config.seed = 0

    # Files with commas between, and how many pairs of each, the first so many; 0 takes all. No pair
    # is trained on whose first human turn begins a pair of a held-out file.
    config.pairs = ""
    config.limit = 0
    config.held_out = ""
    config.held_out_limit = 0

    # The language model to start from, by name or path, and the training: the settings of a run's
    # preference model. Its weights of sources and held_out change nothing here, where all pairs are
    # people's and files are held out; members and halves stay what they are.
    config.model = shared.model
    config.dtype = shared.dtype
    config.preference_model = shared.preference_model
    config.mesh = shared.mesh
    if size == "laptop":
        config.preference_model.batch_size = 8
        config.preference_model.length = 512
        config.preference_model.remat = "dots"
        config.preference_model.optimizer.learning_rate = 3e-5
        config.preference_model.optimizer.moment_dtype = "bfloat16"
    return config
