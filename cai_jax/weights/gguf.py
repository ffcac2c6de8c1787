"""GGUF files (llama.cpp) to params, tokenizer and chat template."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from cai_jax.models.config import ModelConfig, RopeScaling
from cai_jax.tokenizer import Tokenizer
from cai_jax.weights import names, vocabularies
from cai_jax.weights.names import WeightsError
from cai_jax.weights.stored import Stored

ARCHITECTURES = ("llama", "qwen2")
# By what rotary frequencies are divided; llama.cpp's files have this in place of a scaling's name.
_ROPE = "rope_freqs.weight"
_PUBLISHED = tuple(RopeScaling(factor, low=1.0, high=4.0, context=8192) for factor in (8.0, 32.0))


def read_gguf(path: Path) -> tuple[ModelConfig, dict, Tokenizer, str | None]:
    """Reads a GGUF file whole, into memory of the host: see `open_gguf`.

    Returns:
      (configuration, params as numpy float32, tokenizer, chat template or None).
    """
    return open_gguf(path).whole()


def open_gguf(path: Path) -> Stored:
    """Opens a GGUF file of an architecture in ARCHITECTURES, quantised or not.

    Everything is checked before a tensor is touched: metadata, names, shapes, length of the file.

    Raises:
      WeightsError: the file is cut short or is no GGUF file, its architecture, vocabulary or
        quantisation is unknown, or its tensors are not those of its configuration.
      OSError: the file cannot be read.
    """
    path = Path(path)
    stat = path.stat()
    config, tensors, tokenizer, template = _opened(path, stat.st_mtime_ns, stat.st_size)
    # Qwen2's rows stand as Hugging Face has them.
    turned = () if config.qkv_bias else ("attn_q.weight", "attn_k.weight")

    def read(name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        data, kind, shape = tensors[name]
        array = gguf.quants.dequantize(data[index[:1]], kind).reshape(-1, *shape[1:])
        if name.split(".", 2)[-1] in turned:
            array = rotary_rows(array, len(array) // config.head_dim)
        return array[(slice(None), *index[1:])]

    return Stored(config, "gguf", read, tokenizer, template, (path,))


@functools.lru_cache(maxsize=1)
def _opened(path: Path, *version: int) -> tuple[ModelConfig, dict[str, tuple], Tokenizer, str]:
    """What a file holds: (data, type, shape) of each tensor, its data still on disk.

    A run reads its model several times; the vocabulary, which takes longest, only once.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise WeightsError(f"{path} is not a GGUF file; give a .gguf file or a directory")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    # A file cut short shows itself as whatever the reader trips over first.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise WeightsError(f"{path} is cut short or damaged; get the file again") from error
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: tuple(int(n) for n in t.shape[::-1]) for name, t in tensors.items()}
    config = _config(metadata, shapes, path)
    if _ROPE in shapes:
        factors = np.array(tensors[_ROPE].data, np.float32)
        config = dataclasses.replace(config, rope_scaling=_rope_scaling(factors, config, path))
        del tensors[_ROPE], shapes[_ROPE]
    names.check(shapes, config, "gguf", path)
    for name, tensor in tensors.items():
        if not _readable(tensor.tensor_type):
            raise WeightsError(
                f"{path} keeps the tensor {name} as {tensor.tensor_type.name}, which cannot be "
                "read here; use a file in another quantisation, such as Q8_0"
            )
    tokenizer = vocabularies.from_gguf(metadata, path)
    if tokenizer.vocab_size > config.vocab_size:
        raise WeightsError(
            f"{path} has {tokenizer.vocab_size} tokens but embeddings for {config.vocab_size}; "
            "get the file again"
        )
    stored = {name: (t.data, t.tensor_type, shapes[name]) for name, t in tensors.items()}
    return config, stored, tokenizer, metadata.get("tokenizer.chat_template")


def _config(metadata: dict[str, Any], shapes: dict, path: Path) -> ModelConfig:
    kind = metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise WeightsError(
            f"{path} has the architecture {kind!r}, and only {' and '.join(ARCHITECTURES)} are "
            "supported; use a model of these"
        )

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{kind}.{key}", default)
        if value is None:
            raise WeightsError(f"{path} lacks the metadata {kind}.{key}; get the file again")
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise WeightsError(f"{path} has {kind}.{key} = {value!r}, not a positive number")
        return value

    if metadata.get("split.count", 1) > 1:
        raise WeightsError(
            f"{path} is one of {metadata['split.count']} parts of a model; put them together with "
            "`llama-gguf-split --merge`"
        )
    for key, plain in (("expert_count", 0), ("rope.scaling.type", "none")):
        if metadata.get(f"{kind}.{key}", plain) != plain:
            raise WeightsError(
                f"{path} has {kind}.{key} = {metadata[f'{kind}.{key}']!r}, which is not supported; "
                "use a model without it"
            )
    embed, heads = get("embedding_length"), get("attention.head_count")
    head_dim = get("attention.key_length", embed // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if get(key, head_dim) != head_dim:
            raise WeightsError(
                f"{path} has {kind}.{key} = {get(key)}, not its head size {head_dim}"
            )
    if "token_embd.weight" not in shapes:
        raise WeightsError(f"{path} lacks the tensor token_embd.weight; get the model file again")
    return ModelConfig(
        vocab_size=get("vocab_size", shapes["token_embd.weight"][0]),
        embed=embed,
        layers=get("block_count"),
        heads=heads,
        kv_heads=get("attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp=get("feed_forward_length"),
        rope_theta=float(get("rope.freq_base", 10000.0)),
        norm_eps=float(get("attention.layer_norm_rms_epsilon")),
        tied_embeddings="output.weight" not in shapes,
        context=get("context_length"),
        qkv_bias=kind == "qwen2",
    )


def _rope_scaling(factors: np.ndarray, config: ModelConfig, path: Path) -> RopeScaling:
    """The scaling whose factors a file has, of those that published models have.

    Raises:
      WeightsError: it is none of them.
    """
    halves = np.arange(0, config.head_dim, 2) / config.head_dim
    waves = 2 * np.pi * config.rope_theta**halves  # in tokens
    for scaling in _PUBLISHED:
        turns = scaling.context / waves
        kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
        expected = 1 / (kept + (1 - kept) / scaling.factor)
        if factors.shape == expected.shape and np.allclose(factors, expected, rtol=1e-4, atol=0):
            return scaling
    raise WeightsError(
        f"{path} has the tensor {_ROPE}, whose factors are neither Llama 3.1's nor 3.2's; use the "
        "model's Hugging Face directory"
    )


def _readable(kind: gguf.GGMLQuantizationType) -> bool:
    """Whether the gguf package can dequantise this type, found out on one block of zeros."""
    if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        return True
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (NotImplementedError, ValueError):
        return False
    return True


def rotary_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's row order of q and k.

    llama.cpp rotates neighbouring pairs of a head, Hugging Face its first against its second
    half, so converters interleave the two halves of each head's rows; this takes them apart.

    Args:
      rows: float32[heads * C, D].
    """
    total, embed = rows.shape
    pairs = rows.reshape(heads, total // heads // 2, 2, embed)
    return pairs.swapaxes(1, 2).reshape(total, embed)
