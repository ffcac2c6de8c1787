"""What the trained models say of given texts: log-probabilities, values, preference scores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.batch import pad_tokens
from cai_jax.conversation import Conversation
from cai_jax.encoding import example
from cai_jax.logprobs import chunked_token_logprobs
from cai_jax.mesh import constrain, shard_batch, traced_mesh_of
from cai_jax.models import heads
from cai_jax.models.config import ModelConfig
from cai_jax.models.transformer import Params, hidden_states, unembedding
from cai_jax.prompts import Format
from cai_jax.tokenizer import Tokenizer

CHUNK = 64  # positions whose logits are in memory at a time
WIDTH = 32  # texts are padded to multiples of this, so that few shapes are compiled


def score(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    remat: str = "none",
    dtype: str = "float32",
) -> jax.Array:
    """Preference scores float32[B], read at each row's last real token.

    Args:
      params: a trunk with a scalar head.
      tokens: int32[B, T], padded on either side.
      mask: bool[B, T], True on real tokens.
      remat: what a backward pass recomputes, a key of models.transformer.REMAT.
      dtype: of activations and matrix products.
    """
    hidden = hidden_states(
        config, params, tokens, places(mask), mask.astype(jnp.int32), dtype=dtype, remat=remat
    )
    return heads.scalar(params, heads.last_token(hidden, mask))


def reply_logprobs(
    config: ModelConfig,
    params: Params,
    prompt: jax.Array,
    prompt_mask: jax.Array,
    reply: jax.Array,
    mask: jax.Array,
    temperature: float,
    remat: str = "none",
    dtype: str = "float32",
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of replies, in nats, and entropies of the distributions they came from.

    Args:
      prompt: int32[B, P], padded on the left, so that a reply's tokens stand at P, P + 1, ...
      prompt_mask: bool[B, P].
      reply: int32[B, R], padded on the right.
      mask: bool[B, R].
      temperature: at which the replies were sampled.
      remat, dtype: as above.

    Returns:
      float32[B, R] twice; what stands where `mask` is False is meaningless.
    """
    hidden = _before_reply(config, params, prompt, prompt_mask, reply, mask, remat, dtype)
    return _chunked(config, params, hidden, reply, temperature)


def reply_values(
    config: ModelConfig,
    params: Params,
    prompt: jax.Array,
    prompt_mask: jax.Array,
    reply: jax.Array,
    mask: jax.Array,
    remat: str = "none",
    dtype: str = "float32",
) -> jax.Array:
    """The value function before each reply token, float32[B, R]; arguments as above."""
    hidden = _before_reply(config, params, prompt, prompt_mask, reply, mask, remat, dtype)
    return heads.scalar(params, hidden)


def reply_logprobs_and_values(
    config: ModelConfig,
    params: Params,
    prompt: jax.Array,
    prompt_mask: jax.Array,
    reply: jax.Array,
    mask: jax.Array,
    temperature: float,
    remat: str = "none",
    dtype: str = "float32",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`reply_logprobs` and `reply_values` of one trunk with both heads, in one pass."""
    hidden = _before_reply(config, params, prompt, prompt_mask, reply, mask, remat, dtype)
    said = _chunked(config, params, hidden, reply, temperature)
    return *said, heads.scalar(params, hidden)


def _chunked(config, params, hidden, reply, temperature) -> tuple[jax.Array, jax.Array]:
    head, softcap = unembedding(params), config.logits_softcap
    return chunked_token_logprobs(hidden, head, reply, temperature, CHUNK, softcap)


def _before_reply(config, params, prompt, prompt_mask, reply, mask, remat, dtype) -> jax.Array:
    """Hidden states [B, R, D] from which each reply token is predicted."""
    tokens = jnp.concatenate([prompt, reply], 1)
    real = jnp.concatenate([prompt_mask, mask], 1)
    hidden = hidden_states(
        config, params, tokens, places(real), real.astype(jnp.int32), dtype=dtype, remat=remat
    )
    return hidden[:, prompt.shape[1] - 1 : -1]


def places(mask: jax.Array) -> jax.Array:
    """Positions int32[B, T] that count real tokens only, so padding on any side shifts nothing."""
    return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), 1) - 1, 0)


def jitted(function: Callable, *static: str) -> Callable:
    """A function (config, params, ...) jitted; on a mesh its results come whole to every device."""

    @functools.wraps(function)
    def asked(config, params, *rest, **options):
        found = function(config, params, *rest, **options)
        return jax.tree.map(lambda x: constrain(x, traced_mesh_of(params)), found)

    return jax.jit(asked, static_argnames=("config", "remat", "dtype", *static))


jit_score = jitted(score)
jit_reply_logprobs = jitted(reply_logprobs, "temperature")
jit_reply_values = jitted(reply_values)


def score_texts(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    form: Format,
    texts: Sequence[tuple[Conversation, str]],
    *,
    batch_size: int,
    length: int,
    closed: Sequence[bool] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
    """Preference scores float32[N] of replies to conversations.

    A text longer than `length` keeps its end.

    Args:
      closed: whether each text is closed by the end token, where the score is then read, or the
        score is read at its last token; None closes all, also where sampling was cut off.
    """
    closed = [True] * len(texts) if closed is None else closed
    rows = [
        example(tokenizer, form, *text, end)[0][-length:]
        for text, end in zip(texts, closed, strict=True)
    ]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    scores = np.zeros(len(rows), np.float32)
    for start in range(0, len(rows), batch_size):
        part = order[start : start + batch_size]
        width = min(-(-len(rows[part[-1]]) // WIDTH) * WIDTH, length)
        padded = [rows[i] for i in part + part[:1] * (batch_size - len(part))]
        batch = shard_batch(pad_tokens(padded, width), mesh)
        scores[part] = np.asarray(jit_score(config, params, *batch))[: len(part)]
    return scores
