"""A model's shape as Hugging Face's config.json says it: read, and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cai_jax.models.config import ModelConfig, RopeScaling
from cai_jax.tokenizer import Tokenizer
from cai_jax.weights.architectures import ACTIVATIONS, ARCHITECTURES, NULLABLE, PLAIN
from cai_jax.weights.names import WeightsError

_LAYERS = {False: "full_attention", True: "sliding_attention"}  # whether it is local
_LLAMA_3 = {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "context": "original_max_position_embeddings",
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
    if architecture is None or architectures not in ([], [architecture.name]):
        name = ", ".join(architectures) or raw.get("model_type")
        supported = ", ".join(known.name for known in ARCHITECTURES.values())
        raise WeightsError(f"{file} is of {name}, and only {supported} are supported")
    given = {key: raw[key] for key in architecture.settings if key in raw}
    given = {key: value for key, value in given.items() if value is not None or key in NULLABLE}
    settings = architecture.settings | given
    if "use_sliding_window" not in settings and raw.get("use_sliding_window"):
        raise WeightsError(f"{file} has use_sliding_window, which {architecture.name} ignores")
    for key, supported in PLAIN.items():
        if settings.get(key, supported) != supported:
            raise WeightsError(
                f"{file} has {key} = {settings[key]!r}, and only {supported!r} is supported"
            )

    def get(key: str, default: Any = None, of: dict = settings) -> Any:
        value = of.get(key)
        value = default if value is None else value
        if value is None:
            raise WeightsError(f"{file} lacks {key}; get the file again")
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise WeightsError(f"{file} has {key} = {value!r}, not a positive number")
        return value

    def optional(key: str) -> Any:
        return None if settings.get(key) is None else get(key)

    def one_of(*keys: str) -> str:
        return next(key for key in keys if key in settings)

    embed, layers, heads = (
        get(key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    head_dim = get("head_dim", embed // heads)
    bias = bool(settings.get("attention_bias", False))
    scalar, mixed = settings.get("query_pre_attn_scalar"), "num_experts_per_tok" in settings
    fields = {
        "vocab_size": get("vocab_size"),
        "embed": embed,
        "layers": layers,
        "heads": heads,
        "kv_heads": get("num_key_value_heads", heads),
        "head_dim": head_dim,
        "mlp": get(one_of("intermediate_size", "moe_intermediate_size")),
        "norm_eps": float(get(one_of("rms_norm_eps", "layer_norm_eps"))),
        "tied_embeddings": bool(settings["tie_word_embeddings"]),
        "context": get("max_position_embeddings"),
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": bool(settings.get("mlp_bias", False)),
        "experts": (settings.get("num_experts") or get("num_local_experts")) if mixed else 0,
        "experts_per_token": get("num_experts_per_tok") if mixed else 0,
        "norm_topk_prob": bool(settings.get("norm_topk_prob", True)),
        "activation": _activation(raw["model_type"], settings, file),
        "parallel_residual": bool(settings.get("use_parallel_residual", False)),
        "query_pre_attn_scalar": None if scalar in (None, head_dim) else scalar,
        "attention_softcap": optional("attn_logit_softcapping"),
        "logits_softcap": optional("final_logit_softcapping"),
        "nope_layers": _nope_layers(settings, layers, file),
        "model_type": raw["model_type"],
    }
    try:
        fields |= _rope(raw, settings, head_dim, get, file)
        window = optional("sliding_window")
        if window is not None and settings.get("use_sliding_window", True):
            fields |= _local_layers(window, settings, layers, fields["nope_layers"], file)
        return ModelConfig(**fields | architecture.fixed)
    except WeightsError:
        raise
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{file} describes no model: {error}") from error


def _activation(kind: str, settings: dict, file: Path) -> str:
    key = "hidden_activation" if "hidden_activation" in settings else "hidden_act"
    name = settings[key]
    if name not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise WeightsError(f"{file} has {key} = {name!r}, and only {known} are supported")
    if kind == "gemma" and name == "gelu":  # files say so and mean the approximation
        name = "gelu_pytorch_tanh"
    return ACTIVATIONS[name]


def _rope(raw: dict, settings: dict, head_dim: int, get, file: Path) -> dict[str, Any]:
    """Fields of rotary positions."""
    # transformers 5 keeps them under rope_parameters, earlier ones beside the rest.
    rope = raw.get("rope_parameters") or {}
    local = {}
    if "full_attention" in rope and "rope_local_base_freq" in settings:
        rope, local = rope["full_attention"], rope.get("sliding_attention") or {}
    scaling = rope or raw.get("rope_scaling") or {}
    if nested := [key for key, value in scaling.items() if isinstance(value, dict)]:
        raise WeightsError(f"{file} has rope_parameters for {nested[0]}, which is not supported")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    for found, known in (
        (kind, ("default", "linear", "llama3")),
        (local.get("rope_type", "default"), ("default",)),
    ):
        if found not in known:
            of = "rope_scaling" if len(known) > 1 else "the rope_type of sliding_attention"
            known = " and ".join(map(repr, known))
            raise WeightsError(f"{file} has {of} = {found!r}, and only {known} are supported")
    stretched = {}
    if kind != "default":
        keys = _LLAMA_3 if kind == "llama3" else {"factor": "factor"}
        stretched = {field: get(key, of=scaling) for field, key in keys.items()}
    base = "rotary_emb_base" if "rotary_emb_base" in settings else "rope_theta"
    of_locals = local.get("rope_theta") or settings.get("rope_local_base_freq")
    part = next((key for key in ("partial_rotary_factor", "rotary_pct") if key in settings), None)
    share = part and (rope.get("partial_rotary_factor") or get(part))
    return {
        "rope_theta": float(rope.get("rope_theta") or get(base)),
        "rope_scaling": RopeScaling(**stretched) if stretched else None,
        "local_rope_theta": of_locals and float(of_locals),
        "rotary_dim": None if share in (None, 1) else int(head_dim * share),
    }


def _nope_layers(settings: dict, layers: int, file: Path) -> tuple[int, ...]:
    if "no_rope_layers" not in settings:
        return ()
    rotated = settings["no_rope_layers"]
    if rotated is None:
        rotated = [(n + 1) % settings["no_rope_layer_interval"] for n in range(layers)]
    if len(rotated) < layers:
        raise WeightsError(f"{file} has no_rope_layers = {rotated}, fewer than {layers} layers")
    return tuple(n for n in range(layers) if not rotated[n])


def _local_layers(
    window: int, settings: dict, layers: int, nope: tuple[int, ...], file: Path
) -> dict[str, Any]:
    """Fields of windows."""
    numbers, types = range(layers), settings.get("layer_types")
    if types is not None:
        if len(types) != layers or not set(types) <= set(_LAYERS.values()):
            raise WeightsError(
                f"{file} has layer_types = {types}, and only {layers} of "
                f"{' and '.join(map(repr, _LAYERS.values()))} are supported"
            )
        local = [n for n in numbers if types[n] == _LAYERS[True]]
    elif "sliding_window_pattern" in settings:
        local = [n for n in numbers if (n + 1) % settings["sliding_window_pattern"]]
    elif "max_window_layers" in settings:
        local = [n for n in numbers if n >= settings["max_window_layers"]]
    else:
        local = nope if "no_rope_layers" in settings else numbers
    return {"window": window, "local_layers": tuple(local)} if local else {}


def json_of(config: ModelConfig, tokenizer: Tokenizer) -> dict:
    """What config.json says of a model: of the architecture it was read from, or of one it fits.

    Raises:
      WeightsError: it fits none.
    """
    # Phi-3's tensors are joined in files, so that it is written only as what it was read from.
    others = [kind for kind in ARCHITECTURES if kind != "phi3"]
    for kind in [config.model_type] if config.model_type else others:
        content = _settings_of(config, kind)
        try:
            if config_of(content, Path("config.json")) == config:
                break
        except WeightsError:
            continue
    else:
        name = f"a {config.model_type}" if config.model_type else "any architecture that we write"
        raise WeightsError(f"the model's shape is not that of {name}; no config.json describes it")
    return content | {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(tokenizer.end_ids),
        "pad_token_id": None,
        "torch_dtype": "float32",
    }


def _settings_of(config: ModelConfig, kind: str) -> dict:
    """A config.json of a model_type, which says of the config what can be said there."""
    scaling = config.rope_scaling
    if scaling is not None:
        keys = _LLAMA_3 if scaling.context else {"factor": "factor"}
        scaling = {
            "rope_type": "llama3" if scaling.context else "linear",
            **{key: getattr(scaling, field) for field, key in keys.items()},
        }
    share = (config.rotary_dim or config.head_dim) / config.head_dim
    names = {field: name for name, field in reversed(ACTIVATIONS.items())}
    values = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp,
        "moe_intermediate_size": config.mlp,
        "rope_theta": config.rope_theta,
        "rotary_emb_base": config.rope_theta,
        "rope_local_base_freq": config.local_rope_theta,
        "rope_scaling": scaling,
        "partial_rotary_factor": share,
        "rotary_pct": share,
        "rms_norm_eps": config.norm_eps,
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": config.context,
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_act": names[config.activation],
        "hidden_activation": names[config.activation],
        "num_local_experts": config.experts,
        "num_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "norm_topk_prob": config.norm_topk_prob,
        "use_parallel_residual": config.parallel_residual,
        "query_pre_attn_scalar": config.query_pre_attn_scalar or config.head_dim,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logits_softcap,
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "layer_types": [_LAYERS[window is not None] for window in config.windows],
        "no_rope_layers": [int(n not in config.nope_layers) for n in range(config.layers)],
        **PLAIN,
    }
    architecture = ARCHITECTURES[kind]
    said = {key: values[key] for key in architecture.settings if key in values}
    return {"architectures": [architecture.name], "model_type": kind} | said


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
