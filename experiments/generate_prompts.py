"""New red-team and helpful prompts: a pretrained model goes on with lists of others.

Command:  cai-jax generate-prompts --config=experiments/generate_prompts.py --workdir=runs/prompts
          then cai-jax run ... --config.prompts.red_team=runs/prompts/red_team/prompts.jsonl
          --config.prompts.helpful=runs/prompts/helpful/prompts.jsonl
Hardware: 2 CPU cores, no accelerator.
Time:     not measured.
Expect:   of each kind the samples, the prompts that were kept, and counts of what was dropped and
          why. The paper kept 140,335 of a much larger model's. The default model was trained
          further to be an assistant; a pretrained one, as in the paper, strays less from a list.
"""

from common import get_config as common
from ml_collections import ConfigDict


def get_config(size: str = "full") -> ConfigDict:
    """`size` is "full" or "smoke"."""
    if size not in ("full", "smoke"):
        raise ValueError(
            f"generate_prompts.py:{size} is unknown; use generate_prompts.py, with :smoke or not."
        )
    base = common()
    config = ConfigDict({name: base[name] for name in ("seed", "model", "dtype", "engine", "mesh")})
    config.engine.slots = 24
    # Files of prompts to show, and of held-out ones that no new prompt may repeat; empty takes
    # those that ship with the project. Of a dialogue the first human turn counts.
    config.examples = ConfigDict(
        {"red_team": "", "helpful": "", "held_out_red_team": "", "held_out_helpful": ""}
    )
    config.generate = ConfigDict(
        {
            "red_team": 512,
            "helpful": 512,
            "shown": 10,
            "prompt_tokens": 64,
            "temperature": 1.0,
            "top_p": 1.0,
            "shard_size": 128,
        }
    )
    # What is kept; changing these asks the model nothing again.
    config.filters = ConfigDict(
        {"least_words": 3, "most_words": 60, "letters": 0.7, "ngram": 5, "similarity": 0.6}
    )
    if size == "smoke":
        config.engine.slots = 8
        config.engine.few_sizes = True
        config.generate.red_team = 8
        config.generate.helpful = 8
        config.generate.shown = 4
        config.generate.prompt_tokens = 32
        config.generate.shard_size = 8
    return config
