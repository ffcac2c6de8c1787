"""The pieces of a Llama block: RMSNorm, rotary positions, attention, gated MLP."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cai_jax.models.attention import self_attention
from cai_jax.models.config import ModelConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale, computed in float32 (arXiv 1910.07467)."""

    eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.eps)
        return (x * scale.astype(jnp.float32)).astype(self.dtype)


def rotary_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines float32[B, T, 1, C/2] for int32[B, T] positions (arXiv 2104.09864)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates [B, T, heads, C]; dimension i pairs with i + C/2, as in Hugging Face's layout."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.astype(x.dtype)


class Block(nn.Module):
    """Pre-norm attention and gated MLP, each added to the residual stream.

    In two halves with attention between them, for what queries attend to differs between training
    and decoding.
    """

    config: ModelConfig
    dtype: jnp.dtype

    def setup(self):
        config = self.config
        dense = lambda features, axis=-1: nn.DenseGeneral(  # noqa: E731
            features, axis=axis, use_bias=False, dtype=self.dtype
        )
        self.attention_norm = RMSNorm(config.norm_eps, self.dtype)
        self.q = dense((config.heads, config.head_dim))
        self.k = dense((config.kv_heads, config.head_dim))
        self.v = dense((config.kv_heads, config.head_dim))
        self.o = dense(config.embed, (-2, -1))
        self.mlp_norm = RMSNorm(config.norm_eps, self.dtype)
        self.gate = dense(config.mlp)
        self.up = dense(config.mlp)
        self.down = dense(config.embed)

    def project(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, T, D] and angles float32[B, T, 1, C/2] -> q [B, T, H, C], k and v [B, T, K, C]."""
        h = self.attention_norm(x)
        return rotate(self.q(h), cos, sin), rotate(self.k(h), cos, sin), self.v(h)

    def combine(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The residual stream after attention [B, T, H, C] and the MLP, [B, T, D]."""
        x = x + self.o(attended)
        h = self.mlp_norm(x)
        return x + self.down(nn.silu(self.gate(h)) * self.up(h))

    def __call__(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, None]:
        """One layer over whole sequences [B, T, D]; mask bool[B, T, T], query by key."""
        attended = self_attention(*self.project(x, cos, sin), mask)
        return self.combine(x, attended), None
