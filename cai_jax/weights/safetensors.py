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
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_config(directory: Path) -> ModelConfig:
    """The shape of a model in Hugging Face layout, from its config.json alone.

    Raises:
      WeightsError: the file is damaged, or of no plain Llama.
      OSError: it cannot be read.
    """
    file = Path(directory) / "config.json"
    return _config(_read_json(file), file)


def read_directory(directory: Path) -> tuple[ModelConfig, dict, Tokenizer, str | None]:
    """Reads a Llama model: config.json, model.safetensors or its shards, tokenizer files.

    Everything is checked before a tensor is read: configuration, names, shapes, dtypes.

    Returns:
      (configuration, params as numpy float32, tokenizer, chat template or None).

    Raises:
      WeightsError: a file is missing, damaged or a pickle; the model is no plain Llama; or its
        tensors are not those of its configuration.
      OSError: a file cannot be read.
    """
    directory = Path(directory)
    raw = _read_json(directory / "config.json")
    config = _config(raw, directory / "config.json")
    where = _tensor_files(directory)
    shapes, read = _open(where)
    shapes = {n: s for n, s in shapes.items() if not n.endswith("rotary_emb.inv_freq")}
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
    _write_json(directory / "config.json", _to_json(config, tokenizer))
    # The weights come last and move into place whole: a directory that has them is complete.
    scratch = directory / "model.safetensors.partial"
    save_file(tensors, scratch, metadata={"format": "pt"})
    scratch.replace(directory / "model.safetensors")


def _tensor_files(directory: Path) -> list[Path]:
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if index.exists():
        weight_map = _read_json(index).get("weight_map")
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


def _config(raw: dict, file: Path) -> ModelConfig:
    """Hugging Face's LlamaConfig, with its defaults where config.json leaves a key out."""
    architectures = raw.get("architectures") or []
    if raw.get("model_type") != "llama" or architectures not in ([], ["LlamaForCausalLM"]):
        name = ", ".join(architectures) or raw.get("model_type")
        raise WeightsError(f"{file} is of {name}, and only LlamaForCausalLM is supported")
    # transformers 5 keeps the rotary settings under rope_parameters, earlier ones beside the rest.
    rope = raw.get("rope_parameters") or {}
    scaling = rope or raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    plain = {
        "rope_scaling": (kind, "default"),
        "attention_bias": (raw.get("attention_bias", False), False),
        "mlp_bias": (raw.get("mlp_bias", False), False),
        "hidden_act": (raw.get("hidden_act", "silu"), "silu"),
    }
    for key, (value, supported) in plain.items():
        if value != supported:
            raise WeightsError(f"{file} has {key} = {value!r}, and only {supported!r} is supported")

    def get(key: str, default: Any = None) -> Any:
        value = raw.get(key)
        value = default if value is None else value
        if value is None:
            raise WeightsError(f"{file} lacks {key}; get the file again")
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise WeightsError(f"{file} has {key} = {value!r}, not a positive number")
        return value

    embed, heads = get("hidden_size"), get("num_attention_heads")
    try:
        return ModelConfig(
            vocab_size=get("vocab_size"),
            embed=embed,
            layers=get("num_hidden_layers"),
            heads=heads,
            kv_heads=get("num_key_value_heads", heads),
            head_dim=get("head_dim", embed // heads),
            mlp=get("intermediate_size"),
            rope_theta=float(rope.get("rope_theta") or get("rope_theta", 10000.0)),
            norm_eps=float(get("rms_norm_eps", 1e-6)),
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            context=get("max_position_embeddings", 2048),
        )
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{file} describes no model: {error}") from error


def _to_json(config: ModelConfig, tokenizer: Tokenizer) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": config.context,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(tokenizer.end_ids),
        "pad_token_id": None,
        "torch_dtype": "float32",
    }


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
    template = _read_json(config).get("chat_template") if config.exists() else None
    if isinstance(template, list):  # named templates; the one called default is for chat
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template


def _eos_ids(raw: dict, directory: Path) -> tuple[int, ...]:
    file = directory / "generation_config.json"
    ids: list[int] = []
    for settings in (raw, _read_json(file) if file.exists() else {}):
        value = settings.get("eos_token_id")
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(ids))


def _read_json(file: Path) -> dict:
    if not file.exists():
        raise WeightsError(f"{file.parent} has no {file.name}; give a directory that has")
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise WeightsError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} does not hold a JSON object; get the file again")
    return content


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
