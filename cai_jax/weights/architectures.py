"""The architectures of Hugging Face's that can be read and written, by model_type.

Each is one transformer's shape with some fields fixed; what config.json says of the others is under
the keys that its class in transformers reads, with that class's defaults.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What all models of one model_type have in common.

    Attributes:
      name: of its class in transformers.
      fixed: fields of ModelConfig that config.json does not say.
      settings: the keys of config.json that count, with what holds where it leaves one out; None
        where it may not, or where head_dim and num_key_value_heads follow from the rest.
    """

    name: str
    fixed: dict[str, Any]
    settings: dict[str, Any]


_ALL = dict.fromkeys(
    ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
)
_LLAMA = {
    **_ALL,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
_QWEN = {
    **_LLAMA,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
}
_QWEN_BY_LAYER = {"max_window_layers": 28, "layer_types": None}
_GEMMA = {
    **_LLAMA,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_bidirectional_attention": False,
}
_GEMMA_2 = {
    **{key: value for key, value in _GEMMA.items() if key != "hidden_act"},
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
_OF_GEMMA = {"unit_offset": True, "scaled_embeddings": True}
_MIXTRAL = {
    **_LLAMA,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_position_embeddings": 131072,
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}

ARCHITECTURES = {
    "llama": Architecture(
        "LlamaForCausalLM", {}, {**_LLAMA, "attention_bias": False, "mlp_bias": False}
    ),
    "mistral": Architecture(
        "MistralForCausalLM",
        {},
        {**_LLAMA, "max_position_embeddings": 131072, "sliding_window": 4096},
    ),
    "mixtral": Architecture("MixtralForCausalLM", {}, _MIXTRAL),
    "qwen2": Architecture("Qwen2ForCausalLM", {"qkv_bias": True}, {**_QWEN, **_QWEN_BY_LAYER}),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        {"qk_norm": "head"},
        {**_QWEN, **_QWEN_BY_LAYER, "head_dim": 128, "attention_bias": False},
    ),
    "qwen3_moe": Architecture(
        "Qwen3MoeForCausalLM",
        {"qk_norm": "head"},
        {
            **{key: value for key, value in _QWEN.items() if key != "intermediate_size"},
            "attention_bias": False,
            "moe_intermediate_size": 768,
            "num_experts": None,  # or by the other name, which transformers 5 writes
            "num_local_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
    ),
    "gemma": Architecture("GemmaForCausalLM", _OF_GEMMA, _GEMMA),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        {**_OF_GEMMA, "norm_placement": "both"},
        {
            **_GEMMA_2,
            "sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3_text": Architecture(
        "Gemma3ForCausalLM",
        {**_OF_GEMMA, "norm_placement": "both", "qk_norm": "head"},
        {
            **_GEMMA_2,
            "sliding_window_pattern": 6,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
            "max_position_embeddings": 131072,
        },
    ),
    "gpt_neox": Architecture(
        "GPTNeoXForCausalLM",
        {"norm": "layer", "gated": False, "mlp_bias": True},
        {
            **_ALL,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "rotary_emb_base": 10000.0,
            "rotary_pct": 0.25,
            "rope_scaling": None,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "use_parallel_residual": True,
        },
    ),
    "olmo2": Architecture(
        "Olmo2ForCausalLM",
        {"norm_placement": "post", "qk_norm": "projection"},
        {**_LLAMA, "rms_norm_eps": 1e-5, "attention_bias": False},
    ),
    "smollm3": Architecture(
        "SmolLM3ForCausalLM",
        {},
        {
            **_LLAMA,
            "rope_theta": 2e6,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
            "use_sliding_window": False,
            "sliding_window": None,
            "layer_types": None,
        },
    ),
    "phi3": Architecture(
        "Phi3ForCausalLM",
        {},
        {
            **_LLAMA,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "partial_rotary_factor": 1.0,
            "sliding_window": None,
        },
    ),
}

# What null means in config.json: none of it, whatever the default.
NULLABLE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")

# Settings of which one value is supported.
PLAIN = {
    "use_bidirectional_attention": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}

ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
