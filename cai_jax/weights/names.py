"""Names and shapes of a model's tensors: ours, Hugging Face's and llama.cpp's, in one table."""

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
        dim, E experts), without the layers axis; a leading E is of tensors that files have apart.
      inputs: how many leading axes are inputs. Files keep matrices as [outputs, inputs], each
        side flattened; 0 means the file has the tensor as it is, a bias flattened.
      hugging_face, gguf: its name in files; {} is the layer's number, a second one the expert's.
        Empty where such files are not read.
    """

    path: str
    axes: str
    inputs: int
    hugging_face: str
    gguf: str

    @property
    def apart(self) -> int:
        """How many leading axes are of tensors that files have apart: one of experts, or none."""
        return int(self.axes.startswith("E"))


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
        "layers/q/bias",
        "HC",
        0,
        "model.layers.{}.self_attn.q_proj.bias",
        "blk.{}.attn_q.bias",
    ),
    Row(
        "layers/k/kernel",
        "DKC",
        1,
        "model.layers.{}.self_attn.k_proj.weight",
        "blk.{}.attn_k.weight",
    ),
    Row(
        "layers/k/bias",
        "KC",
        0,
        "model.layers.{}.self_attn.k_proj.bias",
        "blk.{}.attn_k.bias",
    ),
    Row(
        "layers/v/kernel",
        "DKC",
        1,
        "model.layers.{}.self_attn.v_proj.weight",
        "blk.{}.attn_v.weight",
    ),
    Row(
        "layers/v/bias",
        "KC",
        0,
        "model.layers.{}.self_attn.v_proj.bias",
        "blk.{}.attn_v.bias",
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
    Row(
        "layers/router/kernel",
        "DE",
        1,
        "model.layers.{}.block_sparse_moe.gate.weight",
        "",
    ),
    Row(
        "layers/experts_gate/kernel",
        "EDF",
        1,
        "model.layers.{}.block_sparse_moe.experts.{}.w1.weight",
        "",
    ),
    Row(
        "layers/experts_up/kernel",
        "EDF",
        1,
        "model.layers.{}.block_sparse_moe.experts.{}.w3.weight",
        "",
    ),
    Row(
        "layers/experts_down/kernel",
        "EFD",
        1,
        "model.layers.{}.block_sparse_moe.experts.{}.w2.weight",
        "",
    ),
    Row("final_norm/scale", "D", 0, "model.norm.weight", "output_norm.weight"),
    Row("lm_head/kernel", "DV", 1, "lm_head.weight", "output.weight"),
)


def rows(config: ModelConfig) -> Iterator[Row]:
    """The rows of the table that a model of this configuration has."""
    for row in TABLE:
        if row.path == "lm_head/kernel" and config.tied_embeddings:
            continue
        if row.path.endswith("/bias") and not config.qkv_bias:
            continue
        of_mlp, of_experts = "F" in row.axes, "E" in row.axes
        if (of_mlp or of_experts) and of_experts != bool(config.experts):
            continue
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
        "E": config.experts,
    }
    return tuple(sizes[axis] for axis in row.axes)


def file_shape(row: Row, config: ModelConfig) -> tuple[int, ...]:
    """Shape of one layer's tensor in files, slowest axis first."""
    shape = our_shape(row, config)[row.apart :]
    if row.path.endswith("/bias"):
        return (math.prod(shape),)
    if row.inputs == 0:
        return shape
    return (math.prod(shape[row.inputs :]), math.prod(shape[: row.inputs]))


def file_names(row: Row, config: ModelConfig, dialect: Dialect) -> list[str]:
    """The tensor's names in files: one for each layer, and in it for each expert, or one."""
    name = getattr(row, dialect)
    layers = range(config.layers) if "{}" in name else (0,)
    experts = range(config.experts) if row.apart else (0,)
    return [name.format(i, expert) for i in layers for expert in experts]


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
            f"{path} has the tensor {extra[0]}{more}, which such a model has no place for; "
            "get the model file again"
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
        whole = our_shape(row, config)
        shape = whole[row.apart :]
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
        node[leaf] = array.reshape(config.layers, *whole) if stacked else array[0]
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
        count = config.layers if row.path.startswith("layers/") else 1
        stacked = array if row.path.startswith("layers/") else array[None]
        whole = our_shape(row, config)
        if stacked.shape != (count, *whole):
            raise WeightsError(
                f"the params have {row.path} in shape {list(array.shape)}, which is not "
                "what the configuration asks for"
            )
        shape = file_shape(row, config)
        stacked = stacked.reshape(len(names), *whole[row.apart :])
        for name, tensor in zip(names, stacked, strict=True):
            tensor = tensor.reshape(shape[::-1]).T if row.inputs else tensor.reshape(shape)
            yield name, np.ascontiguousarray(tensor)
