"""cai_jax: Constitutional AI in JAX."""

from __future__ import annotations

from typing import Any

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    """`cai_jax.load_model`, imported when first asked for: importing the package starts no JAX."""
    if name == "load_model":
        from cai_jax.weights.load import load_model

        return load_model
    raise AttributeError(f"module cai_jax has no attribute {name!r}")
