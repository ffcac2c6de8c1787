"""The tensors of a model's params: which there are, their axes, and their names in files."""

from __future__ import annotations

from cai_jax.models.config import ModelConfig

# Path in our params -> name in files; {} is the layer's number, a second one the expert's. A name
# with a slash is of one of several tensors that files keep joined, under the name before it.
Names = dict[str, str]

BY_HEAD = "query_key_value"  # of what is joined head by head; else all of one follows the other


def axes_of(config: ModelConfig) -> dict[str, str]:
    """By path the axes of a model's tensors, without that of layers, a letter each.

    V vocab, D embed, F mlp, H heads, K kv heads, C head dim, E experts; of kernels inputs >
    outputs, and E: before those of which each expert has one.
    """
    layer = {"q/kernel": "D>HC", "k/kernel": "D>KC", "v/kernel": "D>KC", "o/kernel": "HC>D"}
    if config.qkv_bias:
        layer |= {"q/bias": "HC", "k/bias": "KC", "v/bias": "KC"}
    if config.o_bias:
        layer["o/bias"] = "D"
    if config.qk_norm == "projection":
        layer |= {"q_norm/scale": "HC", "k_norm/scale": "KC"}
    if config.qk_norm == "head":
        layer |= {"q_norm/scale": "C", "k_norm/scale": "C"}
    if config.experts:
        layer["router/kernel"] = "D>E"
        layer |= {"experts_gate/kernel": "E:D>F", "experts_up/kernel": "E:D>F"}
        layer["experts_down/kernel"] = "E:F>D"
    else:
        inner = ("gate", "up") if config.gated else ("up",)
        layer |= {f"{name}/kernel": "D>F" for name in inner} | {"down/kernel": "F>D"}
        if config.mlp_bias:
            layer |= {f"{name}/bias": "F" for name in inner} | {"down/bias": "D"}
    norms = ["final_norm"]
    if config.norm_placement != "post":
        norms += ["layers/attention_norm", "layers/mlp_norm"]
    if config.norm_placement != "pre":
        norms += ["layers/attention_post_norm", "layers/mlp_post_norm"]
    return {
        "embed/embedding": "VD",
        **{f"layers/{path}": axes for path, axes in layer.items()},
        **{f"{norm}/scale": "D" for norm in norms},
        **({f"{norm}/bias": "D" for norm in norms} if config.norm == "layer" else {}),
        **({} if config.tied_embeddings else {"lm_head/kernel": "D>V"}),
    }


_LLAMA: Names = {
    "embed/embedding": "model.embed_tokens.weight",
    "layers/attention_norm/scale": "model.layers.{}.input_layernorm.weight",
    "layers/q/kernel": "model.layers.{}.self_attn.q_proj.weight",
    "layers/q/bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers/k/kernel": "model.layers.{}.self_attn.k_proj.weight",
    "layers/k/bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers/v/kernel": "model.layers.{}.self_attn.v_proj.weight",
    "layers/v/bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers/q_norm/scale": "model.layers.{}.self_attn.q_norm.weight",
    "layers/k_norm/scale": "model.layers.{}.self_attn.k_norm.weight",
    "layers/o/kernel": "model.layers.{}.self_attn.o_proj.weight",
    "layers/o/bias": "model.layers.{}.self_attn.o_proj.bias",
    "layers/mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers/gate/kernel": "model.layers.{}.mlp.gate_proj.weight",
    "layers/gate/bias": "model.layers.{}.mlp.gate_proj.bias",
    "layers/up/kernel": "model.layers.{}.mlp.up_proj.weight",
    "layers/up/bias": "model.layers.{}.mlp.up_proj.bias",
    "layers/down/kernel": "model.layers.{}.mlp.down_proj.weight",
    "layers/down/bias": "model.layers.{}.mlp.down_proj.bias",
    "layers/router/kernel": "model.layers.{}.block_sparse_moe.gate.weight",
    "layers/experts_gate/kernel": "model.layers.{}.block_sparse_moe.experts.{}.w1.weight",
    "layers/experts_up/kernel": "model.layers.{}.block_sparse_moe.experts.{}.w3.weight",
    "layers/experts_down/kernel": "model.layers.{}.block_sparse_moe.experts.{}.w2.weight",
    "final_norm/scale": "model.norm.weight",
    "lm_head/kernel": "lm_head.weight",
}
_POST_NORMS: Names = {
    "layers/attention_post_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers/mlp_norm/scale": "model.layers.{}.pre_feedforward_layernorm.weight",
    "layers/mlp_post_norm/scale": "model.layers.{}.post_feedforward_layernorm.weight",
}
_QWEN_3_MOE: Names = {
    "layers/router/kernel": "model.layers.{}.mlp.gate.weight",
    "layers/experts_gate/kernel": "model.layers.{}.mlp.experts.{}.gate_proj.weight",
    "layers/experts_up/kernel": "model.layers.{}.mlp.experts.{}.up_proj.weight",
    "layers/experts_down/kernel": "model.layers.{}.mlp.experts.{}.down_proj.weight",
}
_PHI_3: Names = {
    **{f"layers/{x}/kernel": f"model.layers.{{}}.self_attn.qkv_proj.weight/{x}" for x in "qkv"},
    "layers/gate/kernel": "model.layers.{}.mlp.gate_up_proj.weight/gate",
    "layers/up/kernel": "model.layers.{}.mlp.gate_up_proj.weight/up",
}
_IN_NEOX = "gpt_neox.layers.{}."
_GPT_NEOX: Names = {
    "embed/embedding": "gpt_neox.embed_in.weight",
    "layers/attention_norm/scale": _IN_NEOX + "input_layernorm.weight",
    "layers/attention_norm/bias": _IN_NEOX + "input_layernorm.bias",
    **{f"layers/{x}/kernel": f"{_IN_NEOX}attention.{BY_HEAD}.weight/{x}" for x in "qkv"},
    **{f"layers/{x}/bias": f"{_IN_NEOX}attention.{BY_HEAD}.bias/{x}" for x in "qkv"},
    "layers/o/kernel": _IN_NEOX + "attention.dense.weight",
    "layers/o/bias": _IN_NEOX + "attention.dense.bias",
    "layers/mlp_norm/scale": _IN_NEOX + "post_attention_layernorm.weight",
    "layers/mlp_norm/bias": _IN_NEOX + "post_attention_layernorm.bias",
    "layers/up/kernel": _IN_NEOX + "mlp.dense_h_to_4h.weight",
    "layers/up/bias": _IN_NEOX + "mlp.dense_h_to_4h.bias",
    "layers/down/kernel": _IN_NEOX + "mlp.dense_4h_to_h.weight",
    "layers/down/bias": _IN_NEOX + "mlp.dense_4h_to_h.bias",
    "final_norm/scale": "gpt_neox.final_layer_norm.weight",
    "final_norm/bias": "gpt_neox.final_layer_norm.bias",
    "lm_head/kernel": "embed_out.weight",
}
GGUF_NAMES: Names = {
    "embed/embedding": "token_embd.weight",
    "layers/attention_norm/scale": "blk.{}.attn_norm.weight",
    **{f"layers/{x}/kernel": f"blk.{{}}.attn_{x}.weight" for x in "qkv"},
    **{f"layers/{x}/bias": f"blk.{{}}.attn_{x}.bias" for x in "qkv"},
    "layers/o/kernel": "blk.{}.attn_output.weight",
    "layers/mlp_norm/scale": "blk.{}.ffn_norm.weight",
    "layers/gate/kernel": "blk.{}.ffn_gate.weight",
    "layers/up/kernel": "blk.{}.ffn_up.weight",
    "layers/down/kernel": "blk.{}.ffn_down.weight",
    "final_norm/scale": "output_norm.weight",
    "lm_head/kernel": "output.weight",
}


def hugging_face_names(config: ModelConfig) -> Names:
    """Of all tensors that such a model has in Hugging Face's layout, and of others."""
    if config.norm == "layer":
        return _GPT_NEOX
    names = dict(_LLAMA)
    if config.norm_placement != "pre":
        names |= _POST_NORMS
    if config.experts and config.qk_norm:
        names |= _QWEN_3_MOE
    return names | _PHI_3 if config.model_type == "phi3" else names
