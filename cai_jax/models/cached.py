"""The transformer over new tokens that also attend to what stands in a cache.

Tokens of many rows come in one flat list, so that products with weights, which are most of the
work, meet no padding; only attention sees rows. Weights come layer by layer, for a scan over a
stack copies each layer's out of it before multiplying by them, at every token. And they come as
[outputs, inputs], to be multiplied by [inputs, tokens]: XLA packs the right side of a product
anew each time, and that is then the small one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.mesh import fitted, mesh_of, traced_mesh_of
from cai_jax.models import kv_cache
from cai_jax.models.attention import Part, cached_attention
from cai_jax.models.config import ModelConfig
from cai_jax.models.experts import mixture
from cai_jax.models.kv_cache import KVCache
from cai_jax.models.layers import rotary_angles
from cai_jax.models.slot_attention import by_kernel, decode_attention
from cai_jax.models.transformer import Params

Kept = TypeVar("Kept")

# Names of the first axes of decoding's weights, for their split over a mesh.
_SPLIT = {
    "embed": ("vocab",),
    "head": ("vocab",),
    "q": ("heads",),
    "k": ("kv_heads",),
    "v": ("kv_heads",),
    "q_bias": ("heads",),
    "k_bias": ("kv_heads",),
    "v_bias": ("kv_heads",),
    "o": (None, "heads"),
    "gate": ("mlp",),
    "up": ("mlp",),
    "down": (None, "mlp"),
    "experts_gate": (None, None, "mlp"),
    "experts_up": (None, None, "mlp"),
    "experts_down": (None, "mlp"),
}


@flax.struct.dataclass
class Prefix:
    """What all rows read first. Attributes: cache of one slot; length int32[]."""

    cache: KVCache
    length: jax.Array

    def layer(self, number: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A layer's keys [K, 1, C, P] and values [K, 1, P, C], and the length."""
        return self.cache.k[number], self.cache.v[number], self.length


def unstacked(params: Params, dtype: jnp.dtype) -> Params:
    """The layout that decoding reads, all but norms in the dtype of its products, a tree of:

    embed [V, D], final_norm [D], head [V, D] (the same array as embed where they are tied), and
    layers, a tuple of L dicts: attention_norm and mlp_norm [D], q [H, C, D], k and v [K, C, D],
    o [D, H, C], gate and up [F, D], down [D, F]; where there are biases, q_bias [H, C], k_bias and
    v_bias [K, C]; with experts, in place of the last three, router [D, E], experts_gate and
    experts_up [E, D, F] and experts_down [E, F, D].

    On a mesh they are split over the tensor axis only, and every group of devices along data and
    fsdp holds all of them: each step reads every weight, and would else first gather it.
    """
    mesh = mesh_of(params)
    apart = _apart if mesh is None else laying_out(params, mesh, dtype)
    tree = apart(params, dtype=dtype)
    return tree if "lm_head" in params else tree | {"head": tree["embed"]}


def decode_shardings(unstacked_params: Params, mesh: jax.sharding.Mesh) -> Params:
    """Shardings for the tree that `unstacked` gives (arrays or ShapeDtypeStruct)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: fitted(mesh, x.shape, *_SPLIT.get(path[-1].key, ())), unstacked_params
    )


def laying_out(params: Params, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> jax.stages.Wrapped:
    """The program of `unstacked` on a mesh, (params, dtype=dtype); only shapes of params count."""
    shapes = jax.eval_shape(functools.partial(_apart, dtype=dtype), params)
    layout = decode_shardings(shapes, mesh)
    return jax.jit(_apart, static_argnames=("dtype",), out_shardings=layout)


def abstract_unstacked(params: Params, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> Params:
    """ShapeDtypeStructs of what `unstacked` gives on a mesh, to compile for without weights."""
    shapes = jax.eval_shape(functools.partial(_apart, dtype=dtype), params)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        decode_shardings(shapes, mesh),
    )


def _apart(params: Params, dtype: jnp.dtype) -> Params:
    layers = range(len(params["layers"]["attention_norm"]["scale"]))
    embedding = params["embed"]["embedding"].astype(dtype)
    return {
        "embed": embedding,
        "head": params["lm_head"]["kernel"].astype(dtype).T if "lm_head" in params else embedding,
        "final_norm": params["final_norm"]["scale"],
        "layers": tuple(_layer(params["layers"], np.int32(n), dtype=dtype) for n in layers),
    }


@functools.partial(jax.jit, static_argnames=("dtype",))
def _layer(stack: Params, n: jax.Array, *, dtype: jnp.dtype) -> Params:
    inputs = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}  # axes of the input
    found = {}
    for name, tensors in stack.items():
        for kind, stacked in tensors.items():
            x = stacked[n]
            if kind == "scale":
                found[name] = x
            elif kind == "bias":
                found[f"{name}_bias"] = x.astype(dtype)
            else:
                axes = inputs.get(name, 0)
                found[name] = jnp.moveaxis(x.astype(dtype), range(axes), range(-axes, 0))
    return found


def forward(
    config: ModelConfig,
    dtype: jnp.dtype,
    params: Params,
    ids: jax.Array,
    positions: jax.Array,
    attend: Callable[[int, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Kept]],
) -> tuple[jax.Array, list[Kept]]:
    """Runs the stack: the same function as `transformer.Transformer`, over features by tokens.

    Args:
      params: in the layout of `unstacked`.
      ids: int32[N].
      positions: int32[N], each token's place in its text.
      attend: called with a layer's number, q [N, K, G, C] and k and v [N, K, C]; returns what the
        queries got [N, K, G, C] and something to keep.

    Returns:
      hidden [D, N] after the last norm, and what each layer's `attend` wants kept.
    """
    x, angles = embedded(config, dtype, params["embed"], ids, positions)
    kept = []
    for number, layer in enumerate(params["layers"]):
        x, keep = block(config, dtype, layer, x, angles, functools.partial(attend, number))
        kept.append(keep)
    return _norm(x, params["final_norm"], config.norm_eps, dtype), kept


def embedded(
    config: ModelConfig, dtype: jnp.dtype, embed: jax.Array, ids: jax.Array, positions: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The residual stream [D, N] before the first layer, and cosines and sines [C/2, N]."""
    cos, sin = rotary_angles(positions, config)
    return jnp.take(embed, ids, axis=0).astype(dtype).T, (cos[:, 0].T, sin[:, 0].T)


def block(
    config: ModelConfig,
    dtype: jnp.dtype,
    layer: Params,
    x: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    attend: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Kept]],
) -> tuple[jax.Array, Kept]:
    """One layer of `forward`: the residual stream after it, and what `attend` wants kept."""
    attended, keep = attend(*project(config, dtype, layer, x, *angles))
    return _combine(config, dtype, layer, x, attended), keep


def final_logits(config: ModelConfig, dtype: jnp.dtype, params: Params, x: jax.Array) -> jax.Array:
    """float32[N, V] from the residual stream [D, N] after the last layer."""
    return logits(params, _norm(x, params["final_norm"], config.norm_eps, dtype))


def logits(params: Params, hidden: jax.Array) -> jax.Array:
    """[D, N] -> float32[N, V]."""
    head = params["head"].astype(hidden.dtype)
    # Transposed first, and kept so: XLA's product for CPU with both sides transposed takes twice
    # as long, and of one whose result is transposed it has none of bfloat16 to float32.
    hidden = jax.lax.optimization_barrier(hidden.T)
    return jnp.einsum("nd,vd->nv", hidden, head, preferred_element_type=jnp.float32)


# Jitted, so that tracing goes through one layer and not through all of them.
@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def project(config, dtype, layer, x, cos, sin):
    """The residual stream [D, N] -> q [N, K, G, C], k and v [N, K, C]."""
    h = _norm(x, layer["attention_norm"], config.norm_eps, dtype)
    q, k, v = (_product(layer[name], h).reshape(-1, config.head_dim, len(h.T)) for name in "qkv")
    if config.qkv_bias:
        q, k, v = (
            x + layer[f"{name}_bias"].astype(x.dtype)[:, :, None]
            for name, x in zip("qkv", (q, k, v), strict=True)
        )
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    q = q.reshape(config.kv_heads, -1, *q.shape[1:])
    return jnp.moveaxis(q, -1, 0), jnp.moveaxis(k, -1, 0), jnp.moveaxis(v, -1, 0)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _combine(config, dtype, layer, x, attended):
    """The residual stream after attention [N, K, G, C] and the MLP, [D, N]."""
    x = x + _product(layer["o"], attended.reshape(len(attended), -1).T)
    h = _norm(x, layer["mlp_norm"], config.norm_eps, dtype)
    if config.experts:
        kernels = (layer[f"experts_{name}"] for name in ("gate", "up", "down"))
        mixed = mixture(
            h.T, layer["router"], *kernels,
            per_token=config.experts_per_token, mesh=traced_mesh_of(layer), names=("slots",),
        )  # fmt: skip
        return x + mixed.T
    gated = jax.nn.silu(_product(layer["gate"], h)) * _product(layer["up"], h)
    return x + _product(layer["down"], gated)


def _product(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Weights of any axes by x [D, N], as [outputs, N]; D is what the weights' last axes hold."""
    return weights.astype(x.dtype).reshape(-1, len(x)) @ x


def _norm(x: jax.Array, scale: jax.Array, eps: float, dtype: jnp.dtype) -> jax.Array:
    """`layers.RMSNorm` over the first axis of [D, N]."""
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), 0) + eps)
    return (x * scale.astype(jnp.float32)[:, None]).astype(dtype)


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """`layers.rotate` of [heads, C, N] by [C/2, N]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], 1)
    return rotated.astype(x.dtype)


def shared_part(shared: tuple[jax.Array, jax.Array, jax.Array] | None) -> tuple[Part, ...]:
    """What all rows read first, of `Prefix.layer`, as parts to attend to."""
    if shared is None:
        return ()
    k, v, length = shared
    return (Part(k[:, 0], v[:, 0], (jnp.arange(v.shape[2]) < length)[None, None]),)


def attend_and_write(
    own: KVCache,
    prefix: Prefix | None,
    layer: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    at: jax.Array,
    places: jax.Array,
    mesh: jax.sharding.Mesh | None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One new token in each of R rows attends to what its row holds and to itself; it is kept.

    Args:
      q: [R, K, G, C].
      k, v: [R, K, C].
      at: int32[R], how much each row holds.
      places: int32[R], `at`, or out of range in a row that keeps nothing.

    Returns:
      [R, K, G, C], and the layer's keys and values with the new ones.
    """
    rows, number = jnp.arange(len(at)), jnp.arange(own.length)
    shared = prefix and prefix.layer(layer)
    held = kv_cache.write((own.k[layer], own.v[layer]), (k, v), rows, places)
    if by_kernel(mesh):
        seen = jnp.where(places == at, at + 1, 0)  # nothing in a row that keeps nothing
        return decode_attention(q, held, shared, seen, mesh), held
    own_part = Part(*held, (number <= at[:, None])[:, None])
    out = cached_attention(q.swapaxes(0, 1)[:, :, None], (*shared_part(shared), own_part))
    return out[:, :, 0].swapaxes(0, 1), held
