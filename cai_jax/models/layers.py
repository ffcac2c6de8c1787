"""The pieces of a Llama block: RMSNorm, rotary positions, attention, gated MLP."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from cai_jax.mesh import constrain
from cai_jax.models.attention import self_attention
from cai_jax.models.config import ModelConfig, RopeScaling
from cai_jax.models.experts import Kernel, mixture
from cai_jax.models.ring import ring_attention
from cai_jax.models.splash import splash_attention


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale, computed in float32 (arXiv 1910.07467)."""

    eps: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.eps)
        return (x * scale.astype(jnp.float32)).astype(self.dtype)


def rotary_angles(positions: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines float32[B, T, 1, C/2] for int32[B, T] positions (arXiv 2104.09864)."""
    halves = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = config.rope_theta**-halves
    if config.rope_scaling is not None:
        frequencies = _scaled(frequencies, config.rope_scaling)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def _scaled(frequencies: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Llama 3.1's rotary frequencies: the long waves stretched, the short ones as they were."""
    turns = scaling.context * frequencies / (2 * math.pi)  # in the context of pretraining
    kept = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates [B, T, heads, C]; dimension i pairs with i + C/2, as in Hugging Face's layout."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.astype(x.dtype)


def matrix_product(x: jax.Array, kernel: jax.Array, dimension_numbers, **options) -> jax.Array:
    """`lax.dot_general` of x's last axes with the kernel's first, as a product of two matrices.

    XLA's gradient for CPU copies x, transposed, where it has several leading axes. On a mesh these
    are split differently and stay apart.
    """
    axes = len(dimension_numbers[0][0])
    inner = math.prod(kernel.shape[:axes])
    x, kernel_matrix = x.reshape(*x.shape[:-axes], inner), kernel.reshape(inner, -1)
    rows = x.reshape(-1, inner)
    out = jax.lax.dot_general(rows, kernel_matrix, (((1,), (0,)), ((), ())), **options)
    return out.reshape(*x.shape[:-1], *kernel.shape[axes:])


class Block(nn.Module):
    """Pre-norm attention and gated MLP, each added to the residual stream.

    `models.cached` has the same function for decoding, in the layout that is fast there.
    """

    config: ModelConfig
    dtype: str
    mesh: jax.sharding.AbstractMesh | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array, segment_ids: jax.Array
    ) -> tuple[jax.Array, None]:
        """One layer.

        Args:
          x: [B, T, D], the residual stream.
          cos, sin: float32[B, T, 1, C/2], from `rotary_angles`.
          segment_ids: int32[B, T].
        """
        config, mesh = self.config, self.mesh
        alone = mesh is None and jax.default_backend() == "cpu"

        def dense(features: int | tuple[int, int], name: str, axis: int | tuple = -1):
            return nn.DenseGeneral(
                features, axis=axis, use_bias=config.qkv_bias and name in ("q", "k", "v"),
                dtype=self.dtype, name=name,
                dot_general=matrix_product if alone else None,
            )  # fmt: skip

        h = RMSNorm(config.norm_eps, self.dtype, name="attention_norm")(x)
        q = rotate(dense((config.heads, config.head_dim), "q")(h), cos, sin)
        k = rotate(dense((config.kv_heads, config.head_dim), "k")(h), cos, sin)
        v = dense((config.kv_heads, config.head_dim), "v")(h)
        if mesh is not None and mesh.shape["sequence"] > 1:
            attended = ring_attention(q, k, v, segment_ids, mesh)
        elif alone:
            attended = self_attention(q, k, v, segment_ids, by_rows=True)
        else:  # known when it is lowered, which may be for another machine
            attended = jax.lax.platform_dependent(
                q, k, v, segment_ids,
                tpu=functools.partial(splash_attention, mesh=mesh),
                default=functools.partial(self_attention, by_rows=False),
            )  # fmt: skip
        x = x + dense(config.embed, "o", (-2, -1))(attended)
        h = RMSNorm(config.norm_eps, self.dtype, name="mlp_norm")(x)
        if config.experts:
            wide = (config.experts, config.embed, config.mlp)
            narrow = (config.experts, config.mlp, config.embed)
            router = Kernel((config.embed, config.experts), name="router")()
            kernels = [
                Kernel(shape, name=f"experts_{name}")()
                for name, shape in {"gate": wide, "up": wide, "down": narrow}.items()
            ]
            out = mixture(
                h, router, *kernels,
                per_token=config.experts_per_token, mesh=mesh, names=("batch", "tokens"),
            )  # fmt: skip
        else:
            gated = nn.silu(dense(config.mlp, "gate")(h)) * dense(config.mlp, "up")(h)
            out = dense(config.embed, "down")(gated)
        return constrain(x + out, mesh, "batch", "tokens"), None
