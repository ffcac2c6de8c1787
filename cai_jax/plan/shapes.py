"""Shapes of models whose weights nobody has to have: what a plan needs of them."""

from __future__ import annotations

from pathlib import Path

from cai_jax.models.config import ModelConfig, RopeScaling
from cai_jax.settings import ConfigError
from cai_jax.weights.fetch import SOURCES
from cai_jax.weights.hugging_face import read_config
from cai_jax.weights.load import open_model

SCALING = RopeScaling(factor=8.0, low=1.0, high=4.0, context=8192)  # of Llama 3.1
LLAMA_3_8B = ModelConfig(
    vocab_size=128256, embed=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp=14336,
    rope_theta=500000.0, norm_eps=1e-5, tied_embeddings=False, context=131072,
    rope_scaling=SCALING,
)  # fmt: skip
LLAMA_3_70B = ModelConfig(
    vocab_size=128256, embed=8192, layers=80, heads=64, kv_heads=8, head_dim=128, mlp=28672,
    rope_theta=500000.0, norm_eps=1e-5, tied_embeddings=False, context=131072,
    rope_scaling=SCALING,
)  # fmt: skip
QWEN_2_7B = ModelConfig(
    vocab_size=152064, embed=3584, layers=28, heads=28, kv_heads=4, head_dim=128, mlp=18944,
    rope_theta=1e6, norm_eps=1e-6, tied_embeddings=False, context=32768, qkv_bias=True,
)  # fmt: skip
MIXTRAL_8X7B = ModelConfig(
    vocab_size=32000, embed=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp=14336,
    rope_theta=1e6, norm_eps=1e-5, tied_embeddings=False, context=32768, experts=8,
    experts_per_token=2,
)  # fmt: skip
# 64 layers of 8,192 come to 52B, with as many weights in a gated MLP as in one of 4 x 8,192.
PAPER_52B = ModelConfig(
    vocab_size=65536, embed=8192, layers=64, heads=64, kv_heads=64, head_dim=128, mlp=21888,
    rope_theta=10000.0, norm_eps=1e-5, tied_embeddings=True, context=8192,
)  # fmt: skip
SHAPES = {
    "llama-3.1-8b": LLAMA_3_8B,
    "llama-3.1-70b": LLAMA_3_70B,
    "qwen2.5-7b": QWEN_2_7B,
    "mixtral-8x7b": MIXTRAL_8X7B,
    "paper-52b": PAPER_52B,
}


def shape_of(model: str) -> ModelConfig:
    """The shape of a config's model: a name of SHAPES, or what `load_model` takes.

    No tensor is read, and of a folder only its config.json.

    Raises:
      ConfigError: no such model.
      WeightsError: a file that describes no model that can be used.
    """
    if model in SHAPES:
        return SHAPES[model]
    path = Path(model)
    if (path / "config.json").is_file():
        return read_config(path)
    if model in SOURCES or path.is_file():
        return open_model(model).config
    raise ConfigError(
        f"config.model is '{model}', whose shape is unknown; give a folder with a config.json, a "
        f".gguf file, or one of {', '.join((*SHAPES, *SOURCES))}."
    )
