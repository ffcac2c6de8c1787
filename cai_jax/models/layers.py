"""The pieces of a block: norms, rotary positions, attention, MLP."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from qwix import QArray

from cai_jax.mesh import constrain
from cai_jax.models.attention import self_attention
from cai_jax.models.config import ModelConfig, RopeScaling
from cai_jax.models.experts import Kernel, mixture
from cai_jax.models.lora import SUFFIX
from cai_jax.models.ring import ring_attention
from cai_jax.models.splash import splash_attention

Angles = tuple[jax.Array, jax.Array]  # cosines and sines

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
}


class Norm(nn.Module):
    """RMSNorm (arXiv 1910.07467) or LayerNorm (1607.06450) of a config, computed in float32.

    Attributes:
      config: which of them.
      dtype: of what it gives.
      axes: how many of the last axes are normalised together.
    """

    config: ModelConfig
    dtype: str
    axes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        config, over = self.config, tuple(range(-self.axes, 0))
        at_start = nn.initializers.zeros if config.unit_offset else nn.initializers.ones
        scale = self.param("scale", at_start, x.shape[-self.axes :]).astype(jnp.float32)
        x = x.astype(jnp.float32)
        if config.norm == "layer":
            x = x - jnp.mean(x, over, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), over, keepdims=True) + config.norm_eps)
        x = x * (1 + scale if config.unit_offset else scale)
        if config.norm == "layer":
            x = x + self.param("bias", nn.initializers.zeros, scale.shape).astype(jnp.float32)
        return x.astype(self.dtype)


def rotary_angles(positions: jax.Array, config: ModelConfig) -> tuple[Angles, ...]:
    """What layers rotate by at int32[B, T] positions (arXiv 2104.09864).

    Returns:
      Cosines and sines float32[B, T, 1, R/2], of the R dimensions of a head that are rotated, for
      each of the config's `ropes`; of one without rotary positions those of angles of 0.
    """
    size = config.rotary_dim or config.head_dim
    halves = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    found = []
    for rope in config.ropes:
        frequencies = jnp.zeros_like(halves) if rope is None else rope.theta**-halves
        if rope is not None and rope.scaling is not None:
            frequencies = _scaled(frequencies, rope.scaling)
        angles = positions[..., None, None].astype(jnp.float32) * frequencies
        found.append((jnp.cos(angles), jnp.sin(angles)))
    return tuple(found)


def _scaled(frequencies: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Llama 3.1's rotary frequencies, the long waves stretched and the short ones as they were; or
    all of them stretched."""
    if scaling.context is None:
        return frequencies / scaling.factor
    turns = scaling.context * frequencies / (2 * math.pi)  # in the context of pretraining
    kept = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the first R of [B, T, heads, C]; dimension i pairs with i + R/2, as in Hugging Face's
    layout."""
    size = 2 * cos.shape[-1]
    if size < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :size], cos, sin), x[..., size:]], -1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.astype(x.dtype)


def query_scale(config: ModelConfig) -> float:
    """What queries are multiplied by, beside the C^-1/2 that all attention multiplies them by."""
    if config.query_pre_attn_scalar is None:
        return 1.0
    return (config.head_dim / config.query_pre_attn_scalar) ** 0.5


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
    """Attention and MLP, each added to the residual stream.

    `models.cached` has the same function for decoding, in the layout that is fast there.
    """

    config: ModelConfig
    dtype: str
    mesh: jax.sharding.AbstractMesh | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        angles: Angles,
        segment_ids: jax.Array,
        own: dict[str, jax.Array],
    ) -> tuple[jax.Array, None]:
        """One layer.

        Args:
          x: [B, T, D], the residual stream.
          angles: float32[B, T, 1, R/2] twice; where ropes differ float32[A, B, T, 1, R/2].
          segment_ids: int32[B, T].
          own: where layers differ, this one's "rope", int32[] of the A, and "window", int32[].
        """
        config = self.config
        if "rope" in own:
            angles = tuple(a[own["rope"]] for a in angles)
        h = x if config.norm_placement == "post" else self._norm("attention_norm")(x)
        attended = self._attention(h, angles, segment_ids, own.get("window", config.windows[0]))
        if config.norm_placement != "pre":
            attended = self._norm("attention_post_norm")(attended)
        before, x = x, x + attended
        h = before if config.parallel_residual else x
        h = h if config.norm_placement == "post" else self._norm("mlp_norm")(h)
        out = self._mixture(h) if config.experts else self._mlp(h)
        if config.norm_placement != "pre":
            out = self._norm("mlp_post_norm")(out)
        return constrain(x + out, self.mesh, "batch", "tokens"), None

    @property
    def _alone(self) -> bool:
        return self.mesh is None and jax.default_backend() == "cpu"

    def _norm(self, name: str, axes: int = 1) -> Norm:
        return Norm(self.config, self.dtype, axes, name=name)

    def _dense(self, features: int | tuple[int, int], name: str, bias: bool, axis=-1):
        dense = nn.DenseGeneral(
            features, axis=axis, use_bias=bias, dtype=self.dtype, name=name,
            dot_general=matrix_product if self._alone else None,
        )  # fmt: skip
        held = self.get_variable("params", name)
        if held is not None and isinstance(held["kernel"], QArray):
            dense = functools.partial(self._dense_int8, held, 1 if axis == -1 else len(axis))
        adapter = self.get_variable("params", f"{name}{SUFFIX}")
        return dense if adapter is None else lambda x: dense(x) + self._adapter(adapter, x)

    def _dense_int8(self, held: dict[str, QArray], axes: int, x: jax.Array) -> jax.Array:
        """A product of x's last axes with a kernel in 8 bits (models.int8), and its bias."""
        kernel = held["kernel"]
        scale = kernel.scale.reshape(kernel.shape[axes:]).astype(self.dtype)
        out = jnp.tensordot(x, kernel.qvalue.astype(self.dtype), axes) * scale
        return out + held["bias"].astype(self.dtype) if "bias" in held else out

    def _adapter(self, adapter: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        """What a kernel's adapter (models.lora) adds to its product with x."""
        a, b = (adapter[name].astype(self.dtype) for name in "ab")
        return jnp.tensordot(jnp.tensordot(x, a, a.ndim - 1), b, 1)

    def _attention(self, h, angles, segment_ids, window) -> jax.Array:
        """[B, T, D] of [B, T, D]."""
        config, mesh = self.config, self.mesh

        def rotated(name: str, heads: int) -> jax.Array:
            x = self._dense((heads, config.head_dim), name, config.qkv_bias)(h)
            if config.qk_norm:
                x = self._norm(f"{name}_norm", {"head": 1, "projection": 2}[config.qk_norm])(x)
            return rotate(x, *angles)

        q, k = rotated("q", config.heads), rotated("k", config.kv_heads)
        v = self._dense((config.kv_heads, config.head_dim), "v", config.qkv_bias)(h)
        if query_scale(config) != 1:
            q = q * query_scale(config)
        limits = {"window": window, "softcap": config.attention_softcap}
        if mesh is not None and mesh.shape["sequence"] > 1:
            attended = ring_attention(q, k, v, segment_ids, mesh, **limits)
        elif self._alone:
            attended = self_attention(q, k, v, segment_ids, by_rows=True, **limits)
        else:  # known when it is lowered, which may be for another machine
            whole = functools.partial(self_attention, by_rows=False, **limits)
            splash = functools.partial(
                splash_attention, mesh=mesh, windows=config.windows, **limits
            )
            attended = jax.lax.platform_dependent(q, k, v, segment_ids, tpu=splash, default=whole)
        return self._dense(config.embed, "o", config.o_bias, (-2, -1))(attended)

    def _mlp(self, h) -> jax.Array:
        config, act = self.config, ACTIVATIONS[self.config.activation]
        if config.gated:
            gate = act(self._dense(config.mlp, "gate", config.mlp_bias)(h))
            hidden = gate * self._dense(config.mlp, "up", config.mlp_bias)(h)
        else:
            hidden = act(self._dense(config.mlp, "up", config.mlp_bias)(h))
        return self._dense(config.embed, "down", config.mlp_bias)(hidden)

    def _mixture(self, h) -> jax.Array:
        config = self.config
        wide = (config.experts, config.embed, config.mlp)
        narrow = (config.experts, config.mlp, config.embed)
        router = Kernel((config.embed, config.experts), name="router")()
        kernels = [
            Kernel(shape, name=f"experts_{name}")()
            for name, shape in {"gate": wide, "up": wide, "down": narrow}.items()
        ]
        return mixture(
            h, router, *kernels, per_token=config.experts_per_token,
            normalised=config.norm_topk_prob, mesh=self.mesh, names=("batch", "tokens"),
        )  # fmt: skip
