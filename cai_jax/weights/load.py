"""A model ready to use: shape, params, tokenizer and prompt format, from a name or a path."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from cai_jax.chat_template import ChatFormat, with_turn_end
from cai_jax.conversation import PaperFormat
from cai_jax.models import transformer
from cai_jax.models.config import ModelConfig
from cai_jax.tokenizer import Tokenizer
from cai_jax.weights.fetch import SOURCES, fetch
from cai_jax.weights.gguf import open_gguf
from cai_jax.weights.llama2c import open_llama2c
from cai_jax.weights.names import WeightsError
from cai_jax.weights.safetensors import PICKLES, open_directory
from cai_jax.weights.saved import PARAMS, Saved, open_checkpoint
from cai_jax.weights.stored import Stored

SHIPPED = Path(__file__).parents[1] / "sandbox" / "models"  # with the package


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
      path_or_name: a name that `cai-jax fetch` knows or that the package ships, a .gguf file, a
        directory in Hugging Face layout, or a checkpoint that `cai-jax import-weights` wrote.
      dtype: of the params.
      mesh: shards the params over it by their logical axes, each process reading what its own
        devices hold; None keeps them on one device.
      report: called with a line before a download.

    Raises:
      WeightsError: no such model, or a file that cannot be used.
      ValueError: a dimension that the mesh does not divide.
    """
    opened = open_model(path_or_name, report)
    return opened_as(opened, opened.params(dtype, mesh), str(path_or_name))


def open_model(
    path_or_name: str | Path, report: Callable[[str], None] | None = None
) -> Stored | Saved:
    """Finds and checks a model without reading its tensors.

    Args:
      path_or_name, report: as `load_model` takes them.

    Raises:
      WeightsError: no such model, or a file that cannot be used.
    """
    path = Path(path_or_name)
    if not path.exists() and str(path_or_name) in _shipped():
        path = SHIPPED / path
    if path.is_dir():
        return open_checkpoint(path) if (path / PARAMS).is_dir() else open_directory(path)
    if path.suffix == ".gguf" and path.exists():
        return open_gguf(path)
    if path.suffix == ".bin" and path.exists():
        return open_llama2c(path)
    if str(path_or_name) in SOURCES:
        return open_gguf(fetch(str(path_or_name), report))
    if path.suffix in PICKLES and path.exists():
        raise WeightsError(
            f"{path} is a pickle, which could run any code; convert it to safetensors"
        )
    if path.suffix == ".safetensors" and path.exists():
        raise WeightsError(f"{path} is a model's tensors alone; give the directory that it is in")
    known = sorted((*SOURCES, *_shipped()))
    raise WeightsError(
        f"no model at '{path_or_name}': give a directory in Hugging Face layout, a .gguf file, a "
        f"checkpoint of `cai-jax import-weights`, or one of {', '.join(known)}."
    )


def _shipped() -> list[str]:
    return [folder.name for folder in SHIPPED.glob("*")]


def opened_as(opened: Stored | Saved, params: transformer.Params, name: str) -> Model:
    """A model from its parts.

    Raises:
      WeightsError: its chat template cannot be used.
    """
    return Model(opened.config, params, *words_of(opened, name), name, opened.fingerprint)


def words_of(opened: Stored | Saved, name: str) -> tuple[Tokenizer, PaperFormat | ChatFormat]:
    """(tokenizer, format): the template's end of turn is among the tokenizer's end ids.

    Raises:
      WeightsError: the chat template cannot be used.
    """
    if not opened.template:
        return opened.tokenizer, PaperFormat()
    try:
        form = ChatFormat.for_tokenizer(opened.template, opened.tokenizer)
    except ValueError as error:
        raise WeightsError(f"{name}: {error}") from error
    return with_turn_end(opened.tokenizer, form), form
