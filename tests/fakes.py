"""Test doubles: a tiny random model that answers like a pretrained one, over a vocabulary of bytes.

model = tiny_model()           # reads the paper's plain text
model = tiny_model(chat=True)  # reads ChatML
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.chat_template import ChatFormat, with_turn_end
from cai_jax.conversation import PaperFormat
from cai_jax.models import transformer
from cai_jax.models.config import ModelConfig, RopeScaling
from cai_jax.tokenizer import BytesTokenizer
from cai_jax.weights.load import Model

CONFIG = ModelConfig(
    vocab_size=259,
    embed=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=48,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied_embeddings=False,
    context=4096,
)

# Options of tiny_model. Local and full layers with ropes of their own, and one without.
GEMMA_LIKE = {
    "layers": 4, "activation": "gelu_tanh", "norm_placement": "both", "unit_offset": True,
    "qk_norm": "head", "scaled_embeddings": True, "query_pre_attn_scalar": 12.0,
    "attention_softcap": 4.0, "logits_softcap": 6.0, "window": 5, "local_layers": (0, 1, 3),
    "local_rope_theta": 100.0, "rope_scaling": RopeScaling(4.0), "nope_layers": (3,),
}  # fmt: skip
NEOX_LIKE = {
    "norm": "layer", "parallel_residual": True, "gated": False, "activation": "gelu",
    "qkv_bias": True, "o_bias": True, "mlp_bias": True, "rotary_dim": 4,
}  # fmt: skip

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ChatBytesTokenizer(BytesTokenizer):
    """Bytes with ChatML's control tokens; like most chat models' it adds no BOS."""

    def __init__(self):
        super().__init__()
        self.control_tokens |= {"<|im_start|>": 259, "<|im_end|>": 260}
        self._bytes += [b"", b""]
        self.vocab_size = 261
        self.bos_id = None


class PiecesTokenizer(BytesTokenizer):
    """Bytes and longer pieces, read greedily: tokens that straddle stop strings and characters.

    Args:
      pieces: the bytes of tokens 259, 260, ...
    """

    def __init__(self, pieces: tuple[bytes, ...]):
        super().__init__()
        self._bytes += pieces
        self.vocab_size += len(pieces)
        self._longest_first = sorted(pieces, key=len, reverse=True)

    def _text_ids(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            piece = next((p for p in self._longest_first if data.startswith(p)), data[:1])
            ids.append(self._bytes.index(piece))
            data = data[len(piece) :]
        return ids


def tiny_model(chat: bool = False, *, seed: int = 0, **changes) -> Model:
    """A random transformer of about 32,000 parameters, the same one for the same arguments.

    Args:
      chat: whether it reads ChatML (ChatFormat, vocabulary of 261) or the paper's plain text
        (PaperFormat, vocabulary of 259, with a BOS).
      seed: of the params.
      **changes: fields of its ModelConfig, such as `layers=4` or `tied_embeddings=True`.
    """
    if chat:
        tokenizer = ChatBytesTokenizer()
        form = ChatFormat.for_tokenizer(CHATML, tokenizer)
        tokenizer = with_turn_end(tokenizer, form)
    else:
        tokenizer, form = BytesTokenizer(), PaperFormat()
    config = dataclasses.replace(CONFIG, **{"vocab_size": tokenizer.vocab_size} | changes)
    params = jax.tree_util.tree_map_with_path(
        _random_leaf(np.random.default_rng(seed)),
        jax.eval_shape(functools.partial(transformer.init, config), jax.random.key(0)),
    )
    name = "tiny-chat" if chat else "tiny"
    return Model(config, params, tokenizer, form, name, f"{name}-{seed}")


def _random_leaf(rng: np.random.Generator):
    """Leaves of a scale at which all of the model matters; norms away from 1, which hides them."""

    def make(path, leaf) -> jax.Array:
        names = [entry.key for entry in path]
        x = rng.normal(size=leaf.shape)
        if names[-1] == "scale":
            return jnp.asarray(np.exp(0.3 * x), jnp.float32)
        if names[-1] == "embedding":
            return jnp.asarray(x, jnp.float32)
        inputs = leaf.shape[0] if names[0] != "layers" else leaf.shape[1]
        if names[-2:] == ["o", "kernel"]:
            inputs = leaf.shape[1] * leaf.shape[2]
        return jnp.asarray(x / np.sqrt(inputs), jnp.float32)

    return make


def seen_by(model: Model, at: int) -> list[int]:
    """Which of twelve tokens have a part in the hidden state of one, by its gradient."""

    def read(embedding):
        params = model.params | {"embed": {"embedding": embedding}}
        tokens = jnp.arange(12)[None]  # each token its own row of the embedding
        hidden = transformer.hidden_states(
            model.config, params, tokens, tokens, jnp.ones_like(tokens)
        )
        return jnp.square(hidden[0, at]).sum() + hidden[0, at, 0]

    gradient = jax.jit(jax.grad(read))(model.params["embed"]["embedding"])
    return (np.abs(np.asarray(gradient)).sum(-1) > 0).nonzero()[0].tolist()
