"""Names and shapes of a model's tensors in files: Hugging Face's and llama.cpp's, and the way there
and back.

A file keeps a tensor of ours for each layer and expert by itself. Some keep several joined: a name
with a slash is of one of them, behind the name of all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from cai_jax.models.config import ModelConfig
from cai_jax.weights.tensors import BY_HEAD, GGUF_NAMES, axes_of, hugging_face_names

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
        side flattened; 0 means the file has the tensor flattened, but for the embedding.
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


def rows(config: ModelConfig) -> Iterator[Row]:
    """The tensors that a model of this configuration has."""
    names = hugging_face_names(config)
    for path, axes in axes_of(config).items():
        experts, _, axes = axes.rpartition(":")
        inputs, _, outputs = axes.rpartition(">")
        gguf = GGUF_NAMES.get(path, "")
        yield Row(path, experts + inputs + outputs, len(inputs), names.get(path, ""), gguf)


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
    if row.inputs == 0:
        return shape if row.axes == "VD" else (math.prod(shape),)
    return (math.prod(shape[row.inputs :]), math.prod(shape[: row.inputs]))


def file_names(row: Row, config: ModelConfig, dialect: Dialect) -> list[str]:
    """The tensor's names in files: one for each layer, and in it for each expert, or one.

    Raises:
      WeightsError: such a model has none in that dialect.
    """
    if dialect == "gguf":
        _check_gguf(config)
    name = getattr(row, dialect)
    if not name:
        raise WeightsError(f"no file in the {dialect} layout has a place for {row.path}")
    layers = range(config.layers) if "{}" in name else (0,)
    experts = range(config.experts) if row.apart else (0,)
    return [name.format(i, expert) for i in layers for expert in experts]


def _check_gguf(config: ModelConfig) -> None:
    """That a model is what Llama's and Qwen2's files can say."""
    for field in dataclasses.fields(config):
        plain = field.default is dataclasses.MISSING or field.name in ("qkv_bias", "rope_scaling")
        value = getattr(config, field.name)
        if not plain and field.compare and value != field.default:
            raise WeightsError(
                f"GGUF files are of Llama and Qwen2 here, and the model has {field.name} = "
                f"{value!r}; use its Hugging Face directory"
            )


def _files(config: ModelConfig, dialect: Dialect) -> dict[str, dict[str, Row]]:
    """By every tensor of a model's files, by name what it is joined of: mostly itself."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows(config):
        for name in file_names(row, config, dialect):
            found.setdefault(name.partition("/")[0], {})[name] = row
    return found


def file_shapes(config: ModelConfig, dialect: Dialect) -> dict[str, tuple[int, ...]]:
    """By name, the shapes of all tensors in a model's files."""
    shapes = {}
    for name, parts in _files(config, dialect).items():
        first, *others = (file_shape(row, config) for row in parts.values())
        shapes[name] = (first[0] + sum(shape[0] for shape in others), *first[1:])
    return shapes


def part_reader(
    config: ModelConfig, dialect: Dialect, read: Callable[..., np.ndarray]
) -> Callable[..., np.ndarray]:
    """`read` for the names of `file_names`: of joined tensors it gives one.

    Args:
      read: read(name, index) is the part `index` of a file's tensor, read(name) the whole. An index
        has a slice for each axis, those of rows that belong to heads whole heads.

    Returns:
      read(name, index), or read(name), for these names.
    """
    joined = {
        name: (whole, number, [file_shape(row, config)[0] for row in parts.values()])
        for whole, parts in _files(config, dialect).items()
        for number, name in enumerate(parts)
        if len(parts) > 1
    }

    def read_part(name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        if name not in joined:
            return read(name, index) if index else read(name)
        whole, number, sizes = joined[name]
        begin, end, _ = index[0].indices(sizes[number]) if index else (0, sizes[number], 1)
        if BY_HEAD not in whole:
            before = sum(sizes[:number])
            wanted = slice(before + begin, before + end)
            return read(whole, (wanted, *index[1:])) if index else read(whole)[wanted]
        wanted = slice(begin * len(sizes), end * len(sizes))
        array = read(whole, (wanted, *index[1:])) if index else read(whole)
        array = array.reshape(-1, len(sizes), config.head_dim, *array.shape[1:])
        return array[:, number].reshape(end - begin, *array.shape[3:])

    return read_part


def _joined(name: str, parts: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """A file's tensor of its parts."""
    if BY_HEAD in name:
        apart = [part.reshape(-1, config.head_dim, *part.shape[1:]) for part in parts]
        return np.stack(apart, 1).reshape(-1, *parts[0].shape[1:])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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
    expected = file_shapes(config, dialect)
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
    read_part = part_reader(config, dialect, read)
    for row in rows(config):
        whole = our_shape(row, config)
        shape = whole[row.apart :]
        names = file_names(row, config, dialect)
        array = np.empty((len(names), *shape), np.float32)
        for i, name in enumerate(names):
            tensor = read_part(name)
            array[i] = (tensor.T if row.inputs else tensor).reshape(shape)
        node = params
        *parents, leaf = row.path.split("/")
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = array.reshape(config.layers, *whole) if _stacked(row) else array[0]
    return params


def _stacked(row: Row) -> bool:
    return row.path.startswith("layers/")


def disassemble(
    params: dict, config: ModelConfig, dialect: Dialect
) -> Iterator[tuple[str, np.ndarray]]:
    """The way back: (name, tensor in the file's shape) for every tensor of `params`.

    Raises:
      WeightsError: `params` lacks a tensor or has it in another shape.
    """
    found = {}
    for row in rows(config):
        node = params
        for key in row.path.split("/"):
            if key not in node:
                raise WeightsError(f"the params lack {row.path}")
            node = node[key]
        names = file_names(row, config, dialect)
        array = np.asarray(node)
        stacked = array if _stacked(row) else array[None]
        whole = our_shape(row, config)
        if stacked.shape != (config.layers if _stacked(row) else 1, *whole):
            raise WeightsError(
                f"the params have {row.path} in shape {list(array.shape)}, which is not "
                "what the configuration asks for"
            )
        stacked = stacked.reshape(len(names), *whole[row.apart :])
        shape = file_shape(row, config)
        for name, tensor in zip(names, stacked, strict=True):
            found[name] = tensor.reshape(shape[::-1]).T if row.inputs else tensor.reshape(shape)
    for name, parts in _files(config, dialect).items():
        yield name, _joined(name, [found[part] for part in parts], config)
