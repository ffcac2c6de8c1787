"""The weights as decoding reads them: layer by layer, and outputs before inputs.

A scan over a stack of layers would copy each layer's weights out of it before multiplying by them,
at every token. And XLA packs the right side of a product anew each time, which is then the small
one.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.mesh import fitted, mesh_of
from cai_jax.models import lora
from cai_jax.models.int8 import whole
from cai_jax.models.transformer import Params

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
    "gate_bias": ("mlp",),
    "up_bias": ("mlp",),
    "down": (None, "mlp"),
    "experts_gate": (None, None, "mlp"),
    "experts_up": (None, None, "mlp"),
    "experts_down": (None, "mlp"),
}


def unstacked(params: Params, dtype: jnp.dtype) -> Params:
    """The layout that decoding reads, all but norms in the dtype of its products, a tree of:

    embed [V, D], final_norm [D], head [V, D] (the same array as embed where they are tied), and
    layers, a tuple of L dicts: attention_norm and mlp_norm [D], q [H, C, D], k and v [K, C, D],
    o [D, H, C], gate and up [F, D], down [D, F]; with experts, in place of the last three,
    router [D, E], experts_gate and experts_up [E, D, F] and experts_down [E, F, D]. Other norms
    have the names of the params, and biases their product's or norm's: q_bias [H, C]. Adapters
    (models.lora) are in their kernels, and kernels in 8 bits (models.int8) stay in them.

    On a mesh they are split over the tensor axis only, and every group of devices along data and
    fsdp holds all of them: each step reads every weight, and would else first gather it.
    """
    mesh = mesh_of(params)
    layer, others = (_layer, _others) if mesh is None else laying_out(params, mesh, dtype)
    stack, rest = split(params)
    tree = others(rest, dtype=dtype)
    # A layer at a time, so that no more of what is split comes together at once.
    layers = tuple(layer(stack, np.int32(n), dtype=dtype) for n in range(_count(stack)))
    return {"head": tree["embed"], **tree, "layers": layers}


def split(params: Params) -> tuple[Params, Params]:
    """The stack of layers, and the rest."""
    return params["layers"], {k: v for k, v in params.items() if k != "layers"}


def decode_shardings(unstacked_params: Params, mesh: jax.sharding.Mesh) -> Params:
    """Shardings for the tree that `unstacked` gives (arrays or ShapeDtypeStruct)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: fitted(mesh, x.shape, *_SPLIT.get(_name(path), ())), unstacked_params
    )


def _name(path) -> str:
    """The last of a path's keys; a kernel in 8 bits has attributes after it."""
    return [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1]


def laying_out(
    params: Params, mesh: jax.sharding.Mesh, dtype: jnp.dtype
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """The programs of `unstacked` on a mesh; only shapes of params count.

    Returns:
      That of a layer, (stack, number, dtype=dtype), and that of the rest, (rest, dtype=dtype), of
      what `split` gives.
    """
    shapes = jax.eval_shape(functools.partial(_apart, dtype=dtype), params)
    layers, rest = split(decode_shardings(shapes, mesh))
    jitted = functools.partial(jax.jit, static_argnames=("dtype",))
    return jitted(_one_layer, out_shardings=layers[0]), jitted(_others, out_shardings=rest)


def abstract_unstacked(params: Params, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> Params:
    """ShapeDtypeStructs of what `unstacked` gives on a mesh, to compile for without weights."""
    shapes = jax.eval_shape(functools.partial(_apart, dtype=dtype), params)
    tree = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        decode_shardings(shapes, mesh),
    )
    return {"head": tree["embed"], **tree}


def _norms(name: str, tensors: Params) -> Params:
    """A norm's scale under its name, and its bias, if it has one."""
    return {name if kind == "scale" else f"{name}_{kind}": x for kind, x in tensors.items()}


def _count(stack: Params) -> int:
    return stack["q"]["kernel"].shape[0]


def _apart(params: Params, dtype: jnp.dtype) -> Params:
    stack, rest = split(params)
    layers = range(_count(stack))
    tree = _others(rest, dtype)
    return tree | {"layers": tuple(_one_layer(stack, np.int32(n), dtype) for n in layers)}


def _others(rest: Params, dtype: jnp.dtype) -> Params:
    tree = {"embed": rest["embed"]["embedding"].astype(dtype)}
    if "lm_head" in rest:
        tree["head"] = rest["lm_head"]["kernel"].astype(dtype).T
    return tree | _norms("final_norm", rest["final_norm"])


def _one_layer(stack: Params, n: jax.Array, dtype: jnp.dtype) -> Params:
    found = {}
    for name, tensors in stack.items():
        if name.endswith("norm"):
            found |= _norms(name, {kind: stacked[n] for kind, stacked in tensors.items()})
        if name.endswith(("norm", lora.SUFFIX)):
            continue
        for kind, stacked in tensors.items():
            x = jax.tree.map(lambda part: part[n], stacked)  # one, or two in 8 bits
            if kind == "bias":
                found[f"{name}_bias"] = x.astype(dtype)
            else:
                if (adapter := stack.get(f"{name}{lora.SUFFIX}")) is not None:
                    x = lora.kernel_with(whole(x), adapter["a"][n], adapter["b"][n])
                axes = lora.INPUTS.get(name, 0)
                turned = lambda x: jnp.moveaxis(x, range(axes), range(-axes, 0))  # noqa: B023, E731
                found[name] = jax.tree.map(turned, x.astype(dtype))
    return found


_layer = jax.jit(_one_layer, static_argnames=("dtype",))
