"""Every label mode on the same pairs: which way to ask a feedback model gives the best labels?

Command:  cai-jax label-ablation --config=experiments/label_ablation.py --workdir=runs/labels
          [--config.pairs=FILE.jsonl] of {"chosen", "rejected"} dialogues, as hh-rlhf has them;
          without it the 60 clear-cut pairs that ship with the project.
Hardware: 2 CPU cores, no accelerator.
Time:     label_ablation.py:smoke 5 minutes, nearly all of it compilation; 500 pairs in
          label_ablation.py:laptop, the modes that ask by one principle and take one chain, 47
          minutes on one core. Not timed: the whole, of which "all principles" are most
          questions. A restart asks nothing again.
Expect:   three tables and results.json. A 135M model is near chance in most modes (the paper's
          Figure 4): the tables say by how much, and where its labels follow the order or length.
"""

from common import get_config as common
from ml_collections import ConfigDict


def get_config(size: str = "full") -> ConfigDict:
    """`size` is "full", "laptop" or "smoke"."""
    if size not in ("full", "laptop", "smoke"):
        raise ValueError(
            f"label_ablation.py:{size} is unknown; use it plain, with :laptop or with :smoke."
        )
    base = common()
    shared = ("seed", "constitution", "dtype", "engine", "mesh", "compare")
    config = ConfigDict({name: base[name] for name in shared})
    config.feedback_model = base.model
    config.pairs = ""  # a file of {"chosen", "rejected"} dialogues; empty takes the shipped pairs
    config.limit = 0  # the first so many pairs; 0 takes all
    config.engine.slots = 24
    config.compare.chain_tokens = 64
    config.compare.shard_size = 64

    chains = {"mode": "chain_of_thought", "few_shots": 2}
    contrast = {"mode": "contrastive"}
    # One line a mode: its name in the table, and what it changes in config.compare. What the
    # others are compared with comes first: the paper's, without chain of thought.
    config.modes = (
        {"name": "one order, soft"},
        {"name": "one order, hard", "target": "hard"},
        {"name": "one order, clamped", "clamp": (0.4, 0.6)},
        {"name": "both orders", "both_orders": True},
        {"name": "whole constitution, both orders", "principles": "together", "both_orders": True},
        {"name": "all principles, both orders", "principles": "all", "both_orders": True},
        {"name": "zero-shot, both orders", "few_shots": 0, "both_orders": True},
        {"name": "plain text, both orders", "plain_text": True, "both_orders": True},
        {"name": "chain of thought, clamped", **chains, "clamp": (0.4, 0.6)},
        {"name": "chain of thought, soft", **chains},
        {"name": "several chains", **chains, "chains": 5},
        {"name": "several chains, both orders", **chains, "chains": 5, "both_orders": True},
        {"name": "rating", "mode": "rating"},
        {"name": "rating, whole constitution", "mode": "rating", "principles": "together"},
        {"name": "contrastive", **contrast},
        {"name": "contrastive, per token", **contrast, "per_token": True, "sharpness": 10.0},
        {"name": "contrastive, whole constitution", **contrast, "principles": "together"},
        {"name": "contrastive, all principles", **contrast, "principles": "all"},
    )
    if size == "laptop":
        config.limit = 200
        config.modes = tuple(
            mode for mode in config.modes if not {"principles", "chains"} & set(mode)
        )
    if size == "smoke":
        config.limit = 4
        config.engine.slots = 8
        config.compare.few_shots = 1
        config.compare.chain_tokens = 16
        most = {"few_shots": 1, "chains": 2}
        config.modes = tuple(
            {key: min(value, most.get(key, value)) for key, value in mode.items()}
            for mode in config.modes
            if mode.get("principles") != "all"
        )
    return config
