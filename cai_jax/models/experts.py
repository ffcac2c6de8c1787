"""A layer's experts: each token goes through the few that its router chooses (arXiv 2401.04088).

No token is dropped and none is padded: the tokens of a device are sorted by expert, and each
expert's product is with as many of them as chose it. No loss balances the experts: what is trained
here was balanced when it was pretrained.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from cai_jax.mesh import AxisNames, fitted
from cai_jax.models.int8 import whole


class Kernel(nn.Module):
    """A matrix, or one for each of E experts. Attributes: shape ([E,] inputs, outputs)."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> jax.Array:
        """As a param of its own."""
        experts = range(len(self.shape) - 2)
        each = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=tuple(experts))
        return whole(self.param("kernel", each, self.shape))


def mixture(
    x: jax.Array,
    router: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    per_token: int,
    normalised: bool = True,
    mesh: jax.sharding.AbstractMesh | None,
    names: AxisNames,
) -> jax.Array:
    """What each token gets of its experts' gated MLPs, weighted by the router.

    On a mesh each device sorts its own tokens; `tensor` splits every expert's hidden layer, and
    what its devices got is added up.

    Args:
      x: [..., D].
      router: [D, E].
      gate, up: [E, D, F].
      down: [E, F, D].
      per_token: experts of a token.
      normalised: whether their weights are divided by their sum.
      names: of x's first axes, for its split over the mesh.

    Returns:
      [..., D].
    """
    mix = functools.partial(_mixture, per_token=per_token, normalised=normalised)
    if mesh is None:
        return mix(x, router, gate, up, down)
    rows = fitted(mesh, x.shape, *names).spec
    wide = fitted(mesh, gate.shape, None, None, "mlp").spec
    narrow = fitted(mesh, down.shape, None, "mlp").spec

    def one(*args: jax.Array) -> jax.Array:
        out = mix(*args)
        return jax.lax.psum(out, "tensor") if "tensor" in wide else out

    specs = (rows, jax.sharding.PartitionSpec(), wide, wide, narrow)
    return jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=rows)(x, router, gate, up, down)


def _mixture(x, router, gate, up, down, *, per_token: int, normalised: bool) -> jax.Array:
    """One device's tokens, and its part of every expert's hidden layer."""
    tokens = x.reshape(-1, x.shape[-1])
    scores = jax.nn.softmax((tokens @ router.astype(x.dtype)).astype(jnp.float32))
    weights, chosen = jax.lax.top_k(scores, per_token)
    if normalised:
        weights = weights / weights.sum(-1, keepdims=True)
    weights = weights.astype(x.dtype)
    order = jnp.argsort(chosen.reshape(-1))  # of (token, expert), by expert
    sizes = jnp.bincount(chosen.reshape(-1), length=router.shape[1])
    gate, up, down = (w.astype(x.dtype) for w in (gate, up, down))
    sent = tokens[order // per_token]
    hidden = jax.nn.silu(jax.lax.ragged_dot(sent, gate, sizes))
    hidden *= jax.lax.ragged_dot(sent, up, sizes)
    got = jax.lax.ragged_dot(hidden, down, sizes) * weights.reshape(-1)[order, None]
    return jnp.zeros_like(tokens).at[order // per_token].add(got).reshape(x.shape)
