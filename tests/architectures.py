"""Tiny random models of every architecture, made and saved by transformers, and read by us."""

from __future__ import annotations

import functools

import jax

from cai_jax.models import transformer
from cai_jax.weights import vocabularies

WINDOW = 8
LOCAL, FULL = "sliding_attention", "full_attention"
LINEAR = {"rope_type": "linear", "factor": 4.0}

# By name: the class of transformers without its ending, and what its config is given beside SIZES.
ARCHITECTURES = {
    "llama": ("Llama", {}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, stretched": ("Llama", {"rope_parameters": {"rope_theta": 50000.0, **LINEAR}}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "mixtral with a window": (
        "Mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    ),
    "qwen2 with windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
    ),
    "qwen3_moe, weights as they are": (
        "Qwen3Moe",
        {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "gemma": ("Gemma", {}),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": WINDOW, "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "sliding_window": WINDOW, "query_pre_attn_scalar": 24,
            "layer_types": [LOCAL, FULL, LOCAL],
            "rope_parameters": {
                FULL: {"rope_theta": 50000.0, **LINEAR},
                LOCAL: {"rope_theta": 500.0, "rope_type": "default"},
            },
        },
    ),
    "gpt_neox": (
        "GPTNeoX",
        {"layer_norm_eps": 1e-4, "rope_parameters": {"partial_rotary_factor": 0.5}},
    ),
    "gpt_neox, one after the other": (
        "GPTNeoX",
        {"use_parallel_residual": False, "rope_parameters": {"partial_rotary_factor": 1.0}},
    ),
    "olmo2": ("Olmo2", {}),
    "smollm2": ("Llama", {"tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "smollm3 with windows": (
        "SmolLM3",
        {
            "no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": WINDOW,
        },
    ),
    "phi3": ("Phi3", {"sliding_window": WINDOW, "pad_token_id": 258}),
    "phi3, rotated in part": (
        "Phi3",
        {"pad_token_id": 258, "rope_parameters": {"partial_rotary_factor": 0.5}},
    ),
}  # fmt: skip
# Which decode as another one does, in all that is decoding's own.
LIKE_ANOTHER = (
    "llama, stretched",
    "smollm2",
    "qwen3_moe, weights as they are",
    "gpt_neox, one after the other",
    "phi3, rotated in part",
)
SIZES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 80,
    "rms_norm_eps": 1e-4,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
}
WITHOUT = {  # of the sizes, what a class takes from others
    "GPTNeoX": ("num_key_value_heads", "head_dim", "rms_norm_eps"),
    "Olmo2": ("head_dim",),
    "Phi3": ("head_dim",),
}


@functools.partial(jax.jit, static_argnames="config")
def logits_of(config, params, tokens, positions, segment_ids):
    """float32[B, T, V] of a whole pass."""
    hidden = transformer.hidden_states(config, params, tokens, positions, segment_ids)
    return transformer.logits(params, hidden, config.logits_softcap)


def theirs(name: str, **changes):
    """A model of transformers, in float32, all of whose weights matter; attention is eager.

    `changes` are of its SIZES.
    """
    import torch
    import transformers

    kind, settings = ARCHITECTURES[name]
    of = "Gemma3Text" if kind == "Gemma3" else kind
    sizes = {k: v for k, v in (SIZES | changes).items() if k not in WITHOUT.get(kind, ())}
    config = getattr(transformers, f"{of}Config")(**sizes | settings)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter, weight in model.named_parameters():
        if parameter.endswith("bias"):
            torch.nn.init.normal_(weight, 0.0, 0.5)
        elif "norm" in parameter:
            torch.nn.init.normal_(weight, 0.0 if "Gemma" in kind else 1.0, 0.3)
    return model


def save(model, folder) -> None:
    """A directory of the model, with the files of a byte-level tokenizer."""
    model.save_pretrained(folder)
    write_tokenizer(folder)


def write_tokenizer(folder) -> None:
    """The tokenizer files of a byte-level vocabulary, through our own writer."""
    import tokenizers

    from cai_jax.tokenizer import HuggingFaceTokenizer, byte_level_table

    backend = tokenizers.Tokenizer(tokenizers.models.BPE(dict(byte_level_table()), []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    tokenizer = HuggingFaceTokenizer(backend, bos_token="<s>", eos_token="</s>", adds_bos=True)
    (folder / "tokenizer.json").write_text(vocabularies.to_json(tokenizer), "utf-8")
    (folder / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}', "utf-8"
    )
