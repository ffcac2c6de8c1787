"""The three scales of figN.py: `laptop`, one `host` of accelerators, a `pod`; by verb of cai-jax.

A laptop's runs have the quickstart's sizes. `host` and `pod` have not been run: they take their
model from --config.model=DIR, one of a family of 0.5B to 8B parameters.
"""

from common import get_config as common
from evaluations import get_config as evaluations
from harmfulness import get_config as harmfulness
from ml_collections import ConfigDict
from quickstart import get_config as quickstart

SCALES = ("laptop", "host", "pod")
SLOTS = {"laptop": 24, "host": 128, "pod": 1024}


def run(scale: str) -> ConfigDict:
    """A whole run; more than the project's own prompts come with --config.prompts.*=FILE."""
    _check(scale)
    if scale == "laptop":
        return quickstart()
    config = common()
    config.dtype = "bfloat16"
    config.engine.slots = SLOTS[scale]
    config.engine.max_length = 2048
    config.compare.both_orders = True
    if scale == "pod":
        config.finetune.batch_size = 1024  # the paper's
        config.preference_model.batch_size = 512
        config.ppo.batch_size = 512
        config.ppo.updates = 2000  # about 1M sequences; the paper's go to 2.2-3.1M
        config.evaluate.batch_size = 512
    return config


def evaluation(scale: str, names: str, modes: str) -> ConfigDict:
    """One model on published evaluations; `laptop` asks 50 questions of each."""
    _check(scale)
    config = evaluations()
    config.evaluations, config.modes = names, modes
    config.engine.slots = SLOTS[scale]
    if scale == "laptop":
        config.limit = 50
        config.choices.chain_tokens = 64
    else:
        config.dtype = "bfloat16"
    return config


def scorer(scale: str) -> ConfigDict:
    """Absolute harmfulness; `pod` takes the paper's 256 responses to each of 64 prompts."""
    _check(scale)
    config = harmfulness()
    config.engine.slots = SLOTS[scale]
    if scale == "laptop":
        config.limit = 1000
        config.samples = 4
        config.response_tokens = 32
        config.engine.max_length = 512
        config.scorer.batch_size = 4
        config.scorer.length = 512
        config.scorer.optimizer.moment_dtype = "bfloat16"
    else:
        config.dtype = "bfloat16"
        config.samples = 64 if scale == "host" else 256
        config.scorer.batch_size = 64 if scale == "host" else 256
    return config


def _check(scale: str) -> None:
    if scale not in SCALES:
        raise ValueError(f"the scale '{scale}' is unknown; give one of {', '.join(SCALES)}.")
