"""Directories in Hugging Face layout to params, tokenizer and chat template, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save_file

from cai_jax.models.config import ModelConfig
from cai_jax.tokenizer import Tokenizer
from cai_jax.weights import names
from cai_jax.weights.hugging_face import config_of, json_of, read_json
from cai_jax.weights.names import WeightsError
from cai_jax.weights.stored import Stored
from cai_jax.weights.words import read_words, write_json, write_words

SHARD_BYTES = 5_000_000_000  # of a file; above it a model is written in several
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16", "F64")
# What old files keep beside the weights; attention's are GPT-NeoX's causal mask.
_BUFFERS = ("rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_directory(directory: Path) -> tuple[ModelConfig, dict, Tokenizer, str | None]:
    """Reads a model whole, into memory of the host: see `open_directory`.

    Returns:
      (configuration, params as numpy float32, tokenizer, chat template or None).
    """
    return open_directory(directory).whole()


def open_directory(directory: Path) -> Stored:
    """Opens a model: config.json, model.safetensors or its shards, tokenizer files.

    Everything is checked before a tensor is read: configuration, names, shapes, dtypes.

    Raises:
      WeightsError: a file is missing, damaged or a pickle; it is of another architecture; or
        its tensors are not those of its configuration.
      OSError: a file cannot be read.
    """
    directory = Path(directory)
    raw = read_json(directory / "config.json")
    config = config_of(raw, directory / "config.json")
    if quantized := raw.get("quantization_config"):
        method = quantized.get("quant_method", "?") if isinstance(quantized, dict) else quantized
        raise WeightsError(
            f"{directory / 'config.json'} has quantization_config ({method}), whose tensors cannot "
            "be read here; use the model in float32, float16 or bfloat16, or a .gguf file"
        )
    where = _tensor_files(directory)
    shapes, read = _open(where)
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if config.tied_embeddings and head in shapes and shapes.get(embedding) == shapes[head]:
        # Some files keep the tied matrix twice.
        if not _same(read, head, embedding, shapes[head][0]):
            raise WeightsError(
                f"{directory} says that {head} is tied to {embedding}, but the two differ; set "
                "tie_word_embeddings to false in config.json"
            )
        del shapes[head]
    names.check(shapes, config, "hugging_face", directory)
    words = read_words(directory, raw, config.vocab_size)
    return Stored(config, "hugging_face", read, *words, tuple(where))


def write_directory(
    directory: Path,
    config: ModelConfig,
    params: dict,
    tokenizer: Tokenizer,
    template: str | None,
    source: Path | None = None,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a model that `read_directory` and transformers read; in float32, bit for bit.

    Args:
      params: as the model has them; heads other than lm_head are left out.
      source: a directory in the same layout; its tokenizer files are copied as they are. Without
        it they are made from `tokenizer` and `template`.
      dtype: that the tensors are written in, "float32" or "bfloat16".
      shard_bytes: of a file; a larger model is written in several, with an index.

    Raises:
      WeightsError: `params` are not those of `config`.
      OSError: the directory cannot be written.
    """
    tensors = names.disassemble(params, config, "hugging_face")
    description = json_of(config, tokenizer)
    write_model(directory, tensors, description, tokenizer, template, source, dtype, shard_bytes)


def write_model(
    directory: Path,
    tensors: Iterator[tuple[str, np.ndarray]],
    description: dict,
    tokenizer: Tokenizer,
    template: str | None,
    source: Path | None,
    dtype: str,
    shard_bytes: int,
) -> None:
    """Writes tensors, config.json and tokenizer files; one file's tensors at a time in memory.

    The weights come last and move into place whole: a directory that has them is complete.

    Args:
      tensors: names and values, read one after another.
      description: of config.json, but for the dtype.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for old in (*directory.glob("model*.safetensors*"), *directory.glob("*.partial")):
        old.unlink()
    write_words(directory, tokenizer, template, source)
    write_json(directory / "config.json", description | {"torch_dtype": dtype})
    part: dict[str, np.ndarray] = {}
    parts: list[list[str]] = []

    def put() -> None:
        parts.append(list(part))
        save_file(part, directory / f"{len(parts)}.partial", metadata={"format": "pt"})
        part.clear()

    total = 0
    for name, tensor in tensors:
        tensor = np.ascontiguousarray(tensor.astype(dtype, copy=False))  # as safetensors takes it
        if part and sum(x.nbytes for x in part.values()) + tensor.nbytes > shard_bytes:
            put()
        part[name] = tensor
        total += tensor.nbytes
    put()
    if len(parts) == 1:
        (directory / "1.partial").replace(directory / WHOLE)
        return
    where = {}
    for number, members in enumerate(parts, start=1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        (directory / f"{number}.partial").replace(directory / file)
        where |= dict.fromkeys(members, file)
    write_json(
        directory / "index.partial", {"metadata": {"total_size": total}, "weight_map": where}
    )
    (directory / "index.partial").replace(directory / INDEX)


def _tensor_files(directory: Path) -> list[Path]:
    whole, index = directory / WHOLE, directory / INDEX
    if whole.exists():
        return [whole]
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise WeightsError(f"{index} has no weight_map; get the file again")
        files = sorted({str(name) for name in weight_map.values()})
        for name in files:
            if Path(name).name != name:
                raise WeightsError(f"{index} names {name!r}, which is not beside it")
            if not (directory / name).exists():
                raise WeightsError(f"{directory} lacks {name}, which its index names; get it too")
        return [directory / name for name in files]
    pickles = sorted(f.name for f in directory.iterdir() if f.suffix in PICKLES)
    if pickles:
        raise WeightsError(
            f"{directory} has its weights only as a pickle ({pickles[0]}), which could run any "
            "code; convert it to safetensors"
        )
    raise WeightsError(f"{directory} has no model.safetensors; give a directory that has")


def _open(files: list[Path]):
    """(shapes by name, a function that reads a part of a tensor by name, as it is stored)."""
    shapes: dict[str, tuple[int, ...]] = {}
    where: dict[str, Path] = {}
    for file in files:
        try:
            handle = safetensors.safe_open(file, framework="numpy")
        except safetensors.SafetensorError as error:
            raise WeightsError(
                f"{file} is cut short or no safetensors file; get it again"
            ) from error
        for name in handle.keys():  # noqa: SIM118  (the handle is no mapping)
            if name.endswith(_BUFFERS):
                continue
            part = handle.get_slice(name)
            if name in shapes:
                raise WeightsError(f"{file} has the tensor {name} a second time")
            if part.get_dtype() not in _DTYPES:
                raise WeightsError(
                    f"{file} keeps the tensor {name} as {part.get_dtype()}, which cannot be read "
                    "here; use weights in float32, float16 or bfloat16"
                )
            shapes[name], where[name] = tuple(part.get_shape()), file

    def read(name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        # Opened for each tensor: what an open file has read stays in the process's memory.
        with safetensors.safe_open(where[name], framework="numpy") as handle:
            return handle.get_slice(name)[index] if index else handle.get_tensor(name)

    return shapes, read


def _same(read: Callable[..., np.ndarray], a: str, b: str, rows: int, step: int = 4096) -> bool:
    """Whether two matrices are equal, some rows of them in memory at a time."""
    starts = range(0, rows, step)
    parts = ((slice(start, min(start + step, rows)), slice(None)) for start in starts)
    return all(np.array_equal(read(a, part), read(b, part)) for part in parts)
