"""Names of a model's tensors in files, Hugging Face's and llama.cpp's, and the way there and back.

A file keeps a tensor of ours for each layer and expert by itself; some keep several joined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from cai_jax.models.config import ModelConfig
from cai_jax.weights.tensors import Tensor, tensors

Dialect = Literal["hugging_face", "gguf"]
Names = dict[str, str | tuple[str, ...]]  # name in files -> path of ours, or of several


class WeightsError(ValueError):
    """A model file that cannot be used; the message says which, why and what to do."""


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """One tensor of a file.

    Attributes:
      name: there.
      parts: of ours, that it holds, one or several joined.
      index: which layer and which expert of them it is, as far as they have such axes.
      by_head: whether heads come first and parts within them; else the parts come one by one.
    """

    name: str
    parts: tuple[Tensor, ...]
    index: tuple[int, ...]
    by_head: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Slowest axis first."""
        _, *rest = self.parts[0].file_shape
        return sum(part.file_shape[0] for part in self.parts), *rest

    def apart(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """The parts, in our shapes."""
        if self.by_head:
            heads = self.parts[0].outputs[0]
            array = array.reshape(heads, len(self.parts), -1, *array.shape[1:]).swapaxes(0, 1)
            pieces = array.reshape(len(self.parts), -1, *array.shape[3:])
        else:
            ends = np.cumsum([part.file_shape[0] for part in self.parts])
            pieces = np.split(array, ends[:-1])
        for part, piece in zip(self.parts, pieces, strict=True):
            yield (piece.T if part.inputs else piece).reshape(part.shape)

    def joined(self, arrays: list[np.ndarray]) -> np.ndarray:
        """The way back."""
        pieces = []
        for part, array in zip(self.parts, arrays, strict=True):
            shape = part.file_shape
            pieces.append(array.reshape(shape[::-1]).T if part.inputs else array.reshape(shape))
        if self.by_head:
            heads = self.parts[0].outputs[0]
            pieces = [piece.reshape(heads, -1, *piece.shape[1:]) for piece in pieces]
            return np.ascontiguousarray(np.stack(pieces, 1).reshape(self.shape))
        return np.ascontiguousarray(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))


def file_tensors(config: ModelConfig, dialect: Dialect) -> list[FileTensor]:
    """Every tensor that a file of a model has.

    Raises:
      WeightsError: such a model has no names in that dialect.
    """
    table = _hugging_face(config) if dialect == "hugging_face" else _gguf(config)
    present, found = tensors(config), []
    for name, paths in table.items():
        paths = (paths,) if isinstance(paths, str) else paths
        if any(path not in present for path in paths):
            continue
        parts = tuple(present.pop(path) for path in paths)
        layers = [(n,) for n in range(config.layers)] if parts[0].layered else [()]
        experts = [(n,) for n in range(parts[0].experts)] or [()]
        by_head = "query_key_value" in name
        found += [
            FileTensor(name.format(*index), parts, index, by_head)
            for index in (layer + expert for layer in layers for expert in experts)
        ]
    if present:
        raise WeightsError(f"no file in the {dialect} layout has a place for {min(present)}")
    return found


_LLAMA: Names = {
    "model.embed_tokens.weight": "embed/embedding",
    "model.layers.{}.input_layernorm.weight": "layers/attention_norm/scale",
    "model.layers.{}.self_attn.q_proj.weight": "layers/q/kernel",
    "model.layers.{}.self_attn.q_proj.bias": "layers/q/bias",
    "model.layers.{}.self_attn.k_proj.weight": "layers/k/kernel",
    "model.layers.{}.self_attn.k_proj.bias": "layers/k/bias",
    "model.layers.{}.self_attn.v_proj.weight": "layers/v/kernel",
    "model.layers.{}.self_attn.v_proj.bias": "layers/v/bias",
    "model.layers.{}.self_attn.q_norm.weight": "layers/q_norm/scale",
    "model.layers.{}.self_attn.k_norm.weight": "layers/k_norm/scale",
    "model.layers.{}.self_attn.o_proj.weight": "layers/o/kernel",
    "model.layers.{}.self_attn.o_proj.bias": "layers/o/bias",
    "model.layers.{}.post_attention_layernorm.weight": "layers/mlp_norm/scale",
    "model.layers.{}.mlp.gate_proj.weight": "layers/gate/kernel",
    "model.layers.{}.mlp.gate_proj.bias": "layers/gate/bias",
    "model.layers.{}.mlp.up_proj.weight": "layers/up/kernel",
    "model.layers.{}.mlp.up_proj.bias": "layers/up/bias",
    "model.layers.{}.mlp.down_proj.weight": "layers/down/kernel",
    "model.layers.{}.mlp.down_proj.bias": "layers/down/bias",
    "model.norm.weight": "final_norm/scale",
    "lm_head.weight": "lm_head/kernel",
}
_POST_NORMS: Names = {
    "model.layers.{}.post_attention_layernorm.weight": "layers/attention_post_norm/scale",
    "model.layers.{}.pre_feedforward_layernorm.weight": "layers/mlp_norm/scale",
    "model.layers.{}.post_feedforward_layernorm.weight": "layers/mlp_post_norm/scale",
}
_MIXTRAL: Names = {
    "model.layers.{}.block_sparse_moe.gate.weight": "layers/router/kernel",
    "model.layers.{}.block_sparse_moe.experts.{}.w1.weight": "layers/experts_gate/kernel",
    "model.layers.{}.block_sparse_moe.experts.{}.w3.weight": "layers/experts_up/kernel",
    "model.layers.{}.block_sparse_moe.experts.{}.w2.weight": "layers/experts_down/kernel",
}
_QWEN_3_MOE: Names = {
    "model.layers.{}.mlp.gate.weight": "layers/router/kernel",
    "model.layers.{}.mlp.experts.{}.gate_proj.weight": "layers/experts_gate/kernel",
    "model.layers.{}.mlp.experts.{}.up_proj.weight": "layers/experts_up/kernel",
    "model.layers.{}.mlp.experts.{}.down_proj.weight": "layers/experts_down/kernel",
}
_PHI_3: Names = {
    "model.layers.{}.self_attn.qkv_proj.weight": tuple(f"layers/{x}/kernel" for x in "qkv"),
    "model.layers.{}.mlp.gate_up_proj.weight": ("layers/gate/kernel", "layers/up/kernel"),
}
_GPT_NEOX: Names = {
    "gpt_neox.embed_in.weight": "embed/embedding",
    "gpt_neox.layers.{}.input_layernorm.weight": "layers/attention_norm/scale",
    "gpt_neox.layers.{}.input_layernorm.bias": "layers/attention_norm/bias",
    "gpt_neox.layers.{}.attention.query_key_value.weight": _PHI_3[
        "model.layers.{}.self_attn.qkv_proj.weight"
    ],
    "gpt_neox.layers.{}.attention.query_key_value.bias": tuple(f"layers/{x}/bias" for x in "qkv"),
    "gpt_neox.layers.{}.attention.dense.weight": "layers/o/kernel",
    "gpt_neox.layers.{}.attention.dense.bias": "layers/o/bias",
    "gpt_neox.layers.{}.post_attention_layernorm.weight": "layers/mlp_norm/scale",
    "gpt_neox.layers.{}.post_attention_layernorm.bias": "layers/mlp_norm/bias",
    "gpt_neox.layers.{}.mlp.dense_h_to_4h.weight": "layers/up/kernel",
    "gpt_neox.layers.{}.mlp.dense_h_to_4h.bias": "layers/up/bias",
    "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight": "layers/down/kernel",
    "gpt_neox.layers.{}.mlp.dense_4h_to_h.bias": "layers/down/bias",
    "gpt_neox.final_layer_norm.weight": "final_norm/scale",
    "gpt_neox.final_layer_norm.bias": "final_norm/bias",
    "embed_out.weight": "lm_head/kernel",
}
_GGUF: Names = {
    "token_embd.weight": "embed/embedding",
    "blk.{}.attn_norm.weight": "layers/attention_norm/scale",
    "blk.{}.attn_q.weight": "layers/q/kernel",
    "blk.{}.attn_q.bias": "layers/q/bias",
    "blk.{}.attn_k.weight": "layers/k/kernel",
    "blk.{}.attn_k.bias": "layers/k/bias",
    "blk.{}.attn_v.weight": "layers/v/kernel",
    "blk.{}.attn_v.bias": "layers/v/bias",
    "blk.{}.attn_output.weight": "layers/o/kernel",
    "blk.{}.ffn_norm.weight": "layers/mlp_norm/scale",
    "blk.{}.ffn_gate.weight": "layers/gate/kernel",
    "blk.{}.ffn_up.weight": "layers/up/kernel",
    "blk.{}.ffn_down.weight": "layers/down/kernel",
    "output_norm.weight": "final_norm/scale",
    "output.weight": "lm_head/kernel",
}


def _hugging_face(config: ModelConfig) -> Names:
    if config.norm == "layer":
        return _GPT_NEOX
    post = _POST_NORMS if config.norm_placement != "pre" else {}
    experts = _QWEN_3_MOE if config.qk_norm else _MIXTRAL
    joined = _PHI_3 if config.model_type == "phi3" else {}
    return {**joined, **_LLAMA, **post, **experts}


def _gguf(config: ModelConfig) -> Names:
    """Of what Llama's and Qwen2's files say, which is less than a ModelConfig can."""
    for field in dataclasses.fields(config):
        plain = field.default is dataclasses.MISSING or field.name in ("qkv_bias", "rope_scaling")
        value = getattr(config, field.name)
        if not plain and field.compare and value != field.default:
            raise WeightsError(
                f"GGUF files are of Llama and Qwen2 here, and the model has {field.name} = "
                f"{value!r}; use its Hugging Face directory"
            )
    return _GGUF


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
    expected = {tensor.name: tensor.shape for tensor in file_tensors(config, dialect)}
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
    whole = {
        path: np.empty(tensor.whole_shape(config), np.float32)
        for path, tensor in tensors(config).items()
    }
    for tensor in file_tensors(config, dialect):
        pieces = tensor.apart(read(tensor.name))
        for part, piece in zip(tensor.parts, pieces, strict=True):
            whole[part.path][tensor.index] = piece
    params: dict = {}
    for path, array in whole.items():
        *parents, leaf = path.split("/")
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = array
    return params


def disassemble(
    params: dict, config: ModelConfig, dialect: Dialect
) -> Iterator[tuple[str, np.ndarray]]:
    """The way back: (name, tensor in the file's shape) for every tensor of `params`.

    Raises:
      WeightsError: `params` lacks a tensor or has it in another shape.
    """
    whole = {}
    for path, tensor in tensors(config).items():
        node = params
        for key in path.split("/"):
            if key not in node:
                raise WeightsError(f"the params lack {path}")
            node = node[key]
        whole[path] = np.asarray(node)
        if whole[path].shape != tensor.whole_shape(config):
            raise WeightsError(
                f"the params have {path} in shape {list(whole[path].shape)}, which is not "
                "what the configuration asks for"
            )
    for tensor in file_tensors(config, dialect):
        arrays = [whole[part.path][tensor.index] for part in tensor.parts]
        yield tensor.name, tensor.joined(arrays)
