"""A model ready to use: shape, params, tokenizer and prompt format, from a name or a path."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from cai_jax.chat_template import ChatFormat, with_turn_end
from cai_jax.conversation import PaperFormat
from cai_jax.mesh import place
from cai_jax.models import transformer
from cai_jax.models.config import ModelConfig
from cai_jax.tokenizer import Tokenizer
from cai_jax.weights.fetch import SOURCES, fetch
from cai_jax.weights.gguf import read_gguf
from cai_jax.weights.names import WeightsError
from cai_jax.weights.safetensors import read_directory


@dataclasses.dataclass(frozen=True)
class Model:
    """A language model.

    Attributes:
      config: its shape.
      params: its weights.
      tokenizer: its tokenizer.
      format: how it reads a conversation: its chat template, or the paper's plain text.
      name: what it was loaded as.
      fingerprint: 16 hex digits of the sha256 of its weight files.
    """

    config: ModelConfig
    params: transformer.Params
    tokenizer: Tokenizer
    format: PaperFormat | ChatFormat
    name: str
    fingerprint: str

    def logits(self, tokens: jax.Array) -> jax.Array:
        """Next-token logits float32[B, T, V] of int32[B, T], each row one unpadded text."""
        return _logits(self.config, self.params, jnp.asarray(tokens, jnp.int32))


@functools.partial(jax.jit, static_argnames="config")
def _logits(config: ModelConfig, params: transformer.Params, tokens: jax.Array) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = transformer.hidden_states(config, params, tokens, positions, jnp.ones_like(tokens))
    return transformer.logits(params, hidden, config.logits_softcap)


def load_model(
    path_or_name: str | Path,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    report: Callable[[str], None] | None = None,
) -> Model:
    """Loads a model.

    Args:
      path_or_name: a name that `cai-jax fetch` knows, a .gguf file, or a directory in Hugging
        Face layout.
      dtype: of the params.
      mesh: shards the params over it by their logical axes; None keeps them on one device.
      report: called with a line before a download.

    Raises:
      WeightsError: no such model, or a file that cannot be used.
    """
    path = Path(path_or_name)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        config, params, tokenizer, template = read_directory(path)
    elif path.suffix == ".gguf" and path.exists():
        files = [path]
        config, params, tokenizer, template = read_gguf(path)
    elif str(path_or_name) in SOURCES:
        files = [fetch(str(path_or_name), report)]
        config, params, tokenizer, template = read_gguf(files[0])
    else:
        raise WeightsError(
            f"no model at '{path_or_name}': give a directory in Hugging Face layout, a .gguf file, "
            f"or one of {', '.join(sorted(SOURCES))}."
        )
    if template:
        try:
            form = ChatFormat.for_tokenizer(template, tokenizer)
        except ValueError as error:
            raise WeightsError(f"{path_or_name}: {error}") from error
        tokenizer = with_turn_end(tokenizer, form)
    else:
        form = PaperFormat()
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    if mesh is not None:
        params = place(params, mesh)
    return Model(config, params, tokenizer, form, str(path_or_name), _fingerprint(files))


def _fingerprint(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
