"""Names and shapes of a Llama's tensors: ours, Hugging Face's and llama.cpp's, in one table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from cai_jax.models.config import ModelConfig

Dialect = Literal["hugging_face", "gguf"]


class WeightsError(ValueError):
    """A model file that cannot be used; the message says which, why and what to do."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of the model.

    Attributes:
      path: where it stands in our params, keys joined by slashes.
      axes: its axes there, one letter each (V vocab, D embed, F mlp, H heads, K kv heads, C head
        dim), without the layers axis.
      inputs: how many leading axes are inputs. Files keep matrices as [outputs, inputs], each
        side flattened; 0 means the file has the tensor as it is.
      hugging_face, gguf: its name in files; {} is the layer number.
    """

    path: str
    axes: str
    inputs: int
    hugging_face: str
    gguf: str


TABLE = (
    Row("embed/embedding", "VD", 0, "model.embed_tokens.weight", "token_embd.weight"),
    Row(
        "layers/attention_norm/scale",
        "D",
        0,
        "model.layers.{}.input_layernorm.weight",
        "blk.{}.attn_norm.weight",
    ),
    Row(
        "layers/q/kernel",
        "DHC",
        1,
        "model.layers.{}.self_attn.q_proj.weight",
        "blk.{}.attn_q.weight",
    ),
    Row(
        "layers/k/kernel",
        "DKC",
        1,
        "model.layers.{}.self_attn.k_proj.weight",
        "blk.{}.attn_k.weight",
    ),
    Row(
        "layers/v/kernel",
        "DKC",
        1,
        "model.layers.{}.self_attn.v_proj.weight",
        "blk.{}.attn_v.weight",
    ),
    Row(
        "layers/o/kernel",
        "HCD",
        2,
        "model.layers.{}.self_attn.o_proj.weight",
        "blk.{}.attn_output.weight",
    ),
    Row(
        "layers/mlp_norm/scale",
        "D",
        0,
        "model.layers.{}.post_attention_layernorm.weight",
        "blk.{}.ffn_norm.weight",
    ),
    Row(
        "layers/gate/kernel",
        "DF",
        1,
        "model.layers.{}.mlp.gate_proj.weight",
        "blk.{}.ffn_gate.weight",
    ),
    Row("layers/up/kernel", "DF", 1, "model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
    Row(
        "layers/down/kernel",
        "FD",
        1,
        "model.layers.{}.mlp.down_proj.weight",
        "blk.{}.ffn_down.weight",
    ),
    Row("final_norm/scale", "D", 0, "model.norm.weight", "output_norm.weight"),
    Row("lm_head/kernel", "DV", 1, "lm_head.weight", "output.weight"),
)


def rows(config: ModelConfig) -> Iterator[Row]:
    """The rows of the table that a model of this configuration has."""
    for row in TABLE:
        if row.path != "lm_head/kernel" or not config.tied_embeddings:
            yield row


def our_shape(row: Row, config: ModelConfig) -> tuple[int, ...]:
    """Shape of one layer's tensor in our params."""
    sizes = {
        "V": config.vocab_size,
        "D": config.embed,
        "F": config.mlp,
        "H": config.heads,
        "K": config.kv_heads,
        "C": config.head_dim,
    }
    return tuple(sizes[axis] for axis in row.axes)


def file_shape(row: Row, config: ModelConfig) -> tuple[int, ...]:
    """Shape of one layer's tensor in files, slowest axis first."""
    shape = our_shape(row, config)
    if row.inputs == 0:
        return shape
    return (math.prod(shape[row.inputs :]), math.prod(shape[: row.inputs]))


def file_names(row: Row, config: ModelConfig, dialect: Dialect) -> list[str]:
    """The tensor's names in files: one for each layer, or one."""
    name = getattr(row, dialect)
    return [name.format(i) for i in range(config.layers)] if "{}" in name else [name]


def check(
    shapes: dict[str, tuple[int, ...]], config: ModelConfig, dialect: Dialect, path: Path
) -> None:
    """Compares the tensors a file declares with those its configuration asks for.

    Args:
      shapes: name to shape, slowest axis first, of every tensor in the file.
      path: named in messages.

    Raises:
      WeightsError: a tensor is missing, has another shape, or is unknown.
    """
    expected = {
        name: file_shape(row, config)
        for row in rows(config)
        for name in file_names(row, config, dialect)
    }
    for name, shape in expected.items():
        if name not in shapes:
            raise WeightsError(f"{path} lacks the tensor {name}; get the model file again")
        if tuple(shapes[name]) != shape:
            raise WeightsError(
                f"{path} has the tensor {name} in shape {list(shapes[name])} where its own "
                f"configuration asks for {list(shape)}; get the model file again"
            )
    extra = sorted(set(shapes) - set(expected))
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise WeightsError(
            f"{path} has the tensor {extra[0]}{more}, which a Llama model has no place for; "
            "use a plain Llama-architecture model"
        )


def assemble(config: ModelConfig, dialect: Dialect, read: Callable[[str], np.ndarray]) -> dict:
    """Builds our params from a checked file.

    Args:
      read: gives the tensor of a name, in the file's shape and Hugging Face's row order.

    Returns:
      Params, numpy float32, layers stacked on a leading axis.
    """
    params: dict = {}
    for row in rows(config):
        shape = our_shape(row, config)
        names = file_names(row, config, dialect)
        stacked = row.path.startswith("layers/")
        array = np.empty((len(names), *shape), np.float32)
        for i, name in enumerate(names):
            tensor = read(name)
            array[i] = (tensor.T if row.inputs else tensor).reshape(shape)
        node = params
        *parents, leaf = row.path.split("/")
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = array if stacked else array[0]
    return params


def disassemble(
    params: dict, config: ModelConfig, dialect: Dialect
) -> Iterator[tuple[str, np.ndarray]]:
    """The way back: (name, tensor in the file's shape) for every tensor of `params`.

    Raises:
      WeightsError: `params` lacks a tensor or has it in another shape.
    """
    for row in rows(config):
        node = params
        for key in row.path.split("/"):
            if key not in node:
                raise WeightsError(f"the params lack {row.path}")
            node = node[key]
        names = file_names(row, config, dialect)
        array = np.asarray(node)
        stacked = array if row.path.startswith("layers/") else array[None]
        if stacked.shape != (len(names), *our_shape(row, config)):
            raise WeightsError(
                f"the params have {row.path} in shape {list(array.shape)}, which is not "
                "what the configuration asks for"
            )
        shape = file_shape(row, config)
        for name, tensor in zip(names, stacked, strict=True):
            tensor = tensor.reshape(shape[::-1]).T if row.inputs else tensor
            yield name, np.ascontiguousarray(tensor)
