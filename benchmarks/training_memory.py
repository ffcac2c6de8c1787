"""What one PPO iteration cannot do without, in bytes: everything float32, AdamW.

It holds policy, value model, their moments, the reference and the preference model throughout. On
top of these come the cache while it samples; the gradients of one of the two models and what its
backward pass starts from while it learns. Of activations the least is each layer's input, one
layer's insides and a chunk of logits with its gradient: the rest can be computed again.
"""

from __future__ import annotations

from cai_jax.models.config import ModelConfig
from cai_jax.models.scoring import CHUNK

FLOAT = 4


def minimum(
    config: ModelConfig, parameters: int, rows: int, minibatch: int, prompt: int, response: int
) -> dict[str, int]:
    """Bytes by what they are for; "least" is the sum that is held at once.

    Args:
      parameters: of the language model.
      rows: responses of an iteration.
      minibatch: responses of an optimiser step.
      prompt, response: tokens.
    """
    tied = config.tied_embeddings
    scorer = parameters - (0 if tied else config.embed * config.vocab_size) + config.embed + 1
    tokens = minibatch * (prompt + response)
    layer = tokens * (2 * config.embed + 3 * config.mlp + 2 * config.heads * config.head_dim)
    layer += minibatch * config.heads * (prompt + response) ** 2
    logits = 2 * minibatch * min(response, CHUNK) * config.vocab_size
    found = {
        "policy": parameters,
        "value model": scorer,
        "optimiser": 2 * (parameters + scorer),
        "reference": parameters,
        "preference model": scorer,
        "gradients": max(parameters, scorer),
        "cache": 2 * rows * (prompt + response) * config.layers * config.kv_heads * config.head_dim,
        "activations": config.layers * tokens * config.embed + max(layer, logits),
    }
    found = {name: FLOAT * numbers for name, numbers in found.items()}
    held = sum(found.values()) - found["cache"] - found["gradients"] - found["activations"]
    return {**found, "least": held + max(found["cache"], found["gradients"] + found["activations"])}
