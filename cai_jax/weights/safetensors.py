"""Directories in Hugging Face layout to params, tokenizer and chat template, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from cai_jax.models.config import ModelConfig
from cai_jax.sentencepiece_tokenizer import SentencePieceTokenizer
from cai_jax.tokenizer import Tokenizer
from cai_jax.weights import names, vocabularies
from cai_jax.weights.hugging_face import config_of, json_of, read_json
from cai_jax.weights.names import WeightsError

# What a directory's tokenizer consists of; copied as it is when a model is written back.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
_DTYPES = ("F32", "F16", "BF16", "F64")
# What old files keep beside the weights; attention's are GPT-NeoX's causal mask.
_BUFFERS = ("rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_directory(directory: Path) -> tuple[ModelConfig, dict, Tokenizer, str | None]:
    """Reads a model: config.json, model.safetensors or its shards, tokenizer files.

    Everything is checked before a tensor is read: configuration, names, shapes, dtypes.

    Returns:
      (configuration, params as numpy float32, tokenizer, chat template or None).

    Raises:
      WeightsError: a file is missing, damaged or a pickle; it is of another architecture; or
        its tensors are not those of its configuration.
      OSError: a file cannot be read.
    """
    directory = Path(directory)
    raw = read_json(directory / "config.json")
    config = config_of(raw, directory / "config.json")
    where = _tensor_files(directory)
    shapes, read = _open(where)
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if config.tied_embeddings and head in shapes and shapes.get(embedding) == shapes[head]:
        # Some files keep the tied matrix twice.
        if not np.array_equal(read(head), read(embedding)):
            raise WeightsError(
                f"{directory} says that {head} is tied to {embedding}, but the two differ; set "
                "tie_word_embeddings to false in config.json"
            )
        del shapes[head]
    names.check(shapes, config, "hugging_face", directory)
    tokenizer = vocabularies.from_directory(directory, _eos_ids(raw, directory))
    if tokenizer.vocab_size > config.vocab_size:
        raise WeightsError(
            f"{directory} has {tokenizer.vocab_size} tokens but embeddings for "
            f"{config.vocab_size}; put the model's own tokenizer there"
        )
    params = names.assemble(config, "hugging_face", read)
    return config, params, tokenizer, _chat_template(directory)


def write_directory(
    directory: Path,
    config: ModelConfig,
    params: dict,
    tokenizer: Tokenizer,
    template: str | None,
    source: Path | None = None,
) -> None:
    """Writes a model that `read_directory` and transformers read, float32, bit for bit.

    Args:
      params: as the model has them; heads other than lm_head are left out.
      source: a directory in the same layout; its tokenizer files are copied as they are. Without
        it they are made from `tokenizer` and `template`.

    Raises:
      WeightsError: `params` are not those of `config`.
      OSError: the directory cannot be written.
    """
    directory = Path(directory)
    tensors = {
        name: tensor.astype(np.float32, copy=False)
        for name, tensor in names.disassemble(params, config, "hugging_face")
    }
    directory.mkdir(parents=True, exist_ok=True)
    if source is not None and Path(source).is_dir():
        for name in TOKENIZER_FILES:
            if (Path(source) / name).is_file() and Path(source).resolve() != directory.resolve():
                shutil.copyfile(Path(source) / name, directory / name)
    else:
        _write_tokenizer(directory, tokenizer, template)
    _write_json(directory / "config.json", json_of(config, tokenizer))
    # The weights come last and move into place whole: a directory that has them is complete.
    scratch = directory / "model.safetensors.partial"
    save_file(tensors, scratch, metadata={"format": "pt"})
    scratch.replace(directory / "model.safetensors")


def _tensor_files(directory: Path) -> list[Path]:
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
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
    pickles = sorted(f.name for f in directory.iterdir() if f.suffix in _PICKLES)
    if pickles:
        raise WeightsError(
            f"{directory} has its weights only as a pickle ({pickles[0]}), which could run any "
            "code; convert it to safetensors"
        )
    raise WeightsError(f"{directory} has no model.safetensors; give a directory that has")


def _open(files: list[Path]):
    """(shapes by name, a function that reads a tensor by name as float32)."""
    shapes: dict[str, tuple[int, ...]] = {}
    handles: dict[str, Any] = {}
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
            shapes[name], handles[name] = tuple(part.get_shape()), handle

    def read(name: str) -> np.ndarray:
        return handles[name].get_tensor(name).astype(np.float32)

    return shapes, read


def _write_tokenizer(directory: Path, tokenizer: Tokenizer, template: str | None) -> None:
    if isinstance(tokenizer, SentencePieceTokenizer):
        (directory / "tokenizer.model").write_bytes(tokenizer.to_model())
    else:
        (directory / "tokenizer.json").write_text(vocabularies.to_json(tokenizer), "utf-8")
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.bos_token or None,
            "eos_token": tokenizer.eos_token or None,
            "add_bos_token": tokenizer.bos_id is not None,
            "clean_up_tokenization_spaces": False,
        },
    )
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, "utf-8")


def _chat_template(directory: Path) -> str | None:
    file = directory / "chat_template.jinja"
    if file.exists():
        return file.read_text("utf-8")
    config = directory / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.exists() else None
    if isinstance(template, list):  # named templates; the one called default is for chat
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template


def _eos_ids(raw: dict, directory: Path) -> tuple[int, ...]:
    file = directory / "generation_config.json"
    ids: list[int] = []
    for settings in (raw, read_json(file) if file.exists() else {}):
        value = settings.get("eos_token_id")
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(ids))


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
