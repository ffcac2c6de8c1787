"""A model's shape as Hugging Face's config.json says it: read, and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cai_jax.models.config import ModelConfig, RopeScaling
from cai_jax.tokenizer import Tokenizer
from cai_jax.weights.names import WeightsError

ARCHITECTURES = {  # by model_type
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "mixtral": "MixtralForCausalLM",
}


def read_config(directory: Path) -> ModelConfig:
    """The shape of a model in Hugging Face layout, from its config.json alone.

    Raises:
      WeightsError: the file is damaged, or of another architecture.
      OSError: it cannot be read.
    """
    file = Path(directory) / "config.json"
    return config_of(read_json(file), file)


def config_of(raw: dict, file: Path) -> ModelConfig:
    """The shape that a config.json describes, with Hugging Face's defaults for what it leaves out.

    Raises:
      WeightsError: of another architecture, with a setting that is not supported, or damaged.
    """
    architectures = raw.get("architectures") or []
    architecture = ARCHITECTURES.get(raw.get("model_type"))
    if architecture is None or architectures not in ([], [architecture]):
        name = ", ".join(architectures) or raw.get("model_type")
        supported = ", ".join(ARCHITECTURES.values())
        raise WeightsError(f"{file} is of {name}, and only {supported} are supported")
    # transformers 5 keeps the rotary settings under rope_parameters, earlier ones beside the rest.
    rope = raw.get("rope_parameters") or {}
    scaling = rope or raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise WeightsError(
            f"{file} has rope_scaling = {kind!r}, and only 'default' and 'llama3' are supported"
        )
    plain = {
        "attention_bias": (raw.get("attention_bias", False), False),
        "mlp_bias": (raw.get("mlp_bias", False), False),
        "use_sliding_window": (raw.get("use_sliding_window", False), False),
        "hidden_act": (raw.get("hidden_act", "silu"), "silu"),
    }
    mixed = raw["model_type"] == "mixtral"
    if mixed:
        plain["sliding_window"] = raw.get("sliding_window"), None
    for key, (value, supported) in plain.items():
        if value != supported:
            raise WeightsError(f"{file} has {key} = {value!r}, and only {supported!r} is supported")

    def get(key: str, default: Any = None, of: dict = raw) -> Any:
        value = of.get(key)
        value = default if value is None else value
        if value is None:
            raise WeightsError(f"{file} lacks {key}; get the file again")
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise WeightsError(f"{file} has {key} = {value!r}, not a positive number")
        return value

    embed, heads = get("hidden_size"), get("num_attention_heads")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    stretched = [get(key, of=scaling) for key in keys] if kind == "llama3" else None
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
            qkv_bias=raw["model_type"] == "qwen2",
            rope_scaling=stretched and RopeScaling(*stretched),
            experts=get("num_local_experts", 8) if mixed else 0,
            experts_per_token=get("num_experts_per_tok", 2) if mixed else 0,
        )
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{file} describes no model: {error}") from error


def json_of(config: ModelConfig, tokenizer: Tokenizer) -> dict:
    """What config.json says of a model."""
    kind = "mixtral" if config.experts else "qwen2" if config.qkv_bias else "llama"
    experts = {
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "sliding_window": None,
    }
    scaling = config.rope_scaling
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.context,
        },
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
        **(experts if config.experts else {}),
    }


def read_json(file: Path) -> dict:
    """The object in one of a directory's files.

    Raises:
      WeightsError: there is no such file, or it is damaged.
    """
    if not file.exists():
        raise WeightsError(f"{file.parent} has no {file.name}; give a directory that has")
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise WeightsError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} does not hold a JSON object; get the file again")
    return content
