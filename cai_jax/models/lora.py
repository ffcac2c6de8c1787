"""Low-rank adapters of frozen kernels (Hu et al. 2106.09685).

A kernel W [inputs, outputs] with an adapter a [inputs, r], b [r, outputs] acts as

    W + (alpha / r) a b

b starts at zero, so an adapted model starts as its base, and the base is the model with the adapter
off: nothing of it is copied. An adapter lies in the tree of params beside its kernel, `q_lora`
beside `q`, alpha / r in its a, and whatever reads params reads it there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cai_jax import rng
from cai_jax.mesh import DEFAULT_RULES, mesh_of, param_shardings

Params = dict  # as in transformer, whose blocks are built on this
FOLDER = "adapters"  # of a stage, beside its params
SUFFIX = "_lora"
INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}  # axes of a kernel's input


@dataclasses.dataclass(frozen=True)
class Lora:
    """Attributes:
    rank: r; 0 for no adapters: all params are trained.
    alpha: the adapter's product is scaled by alpha / r.
    """

    rank: int
    alpha: float

    def __post_init__(self):
        if self.rank and self.alpha <= 0:
            raise ValueError(f"lora.alpha is {self.alpha}; adapters need one above 0 to act.")


NONE = Lora(0, 1.0)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A frozen model and what is trained in its place.

    Attributes:
      base: params of any float dtype, without a scalar head.
      trained: the adapters, float32 `a` [L, *inputs, r] and `b` [L, r, *outputs] under
        layers/q_lora and so on, and the scalar head of params that have one.
      scale: alpha / r.
    """

    base: Params
    trained: Params
    scale: float

    def joined(self, trained: Params) -> Params:
        """Params of the adapted model: the base's own arrays, and what is trained beside them."""
        return _joined(self.base, trained, self.scale)

    def loss(self, loss_fn: Callable[..., Any]) -> Callable[..., Any]:
        """loss(trained, batch, base) from loss(params, batch)."""
        return lambda trained, batch, base: loss_fn(_joined(base, trained, self.scale), batch)


def adapted(params: Params, settings: Lora, seed: int, stream: str) -> Params | Adapted:
    """Fresh adapters of every attention and MLP kernel, experts left out; with rank 0 the params.

    Args:
      params: of a language model, or one with a scalar head; they are not copied.
      stream: of the random numbers; two adapters of one model differ by it.
    """
    if not settings.rank:
        return params
    layers = {}
    for name in sorted(params["layers"].keys() & INPUTS.keys()):
        shape, axes = params["layers"][name]["kernel"].shape, 1 + INPUTS[name]
        bound = math.prod(shape[1:axes]) ** -0.5
        a = jax.random.uniform(
            rng.key(seed, "lora", stream, name), (*shape[:axes], settings.rank),
            jnp.float32, -bound, bound,
        )  # fmt: skip
        b = jnp.zeros((shape[0], settings.rank, *shape[axes:]), jnp.float32)
        layers[f"{name}{SUFFIX}"] = {"a": a, "b": b}
    base, trained = dict(params), {"layers": layers}
    if "scalar_head" in base:
        trained["scalar_head"] = base.pop("scalar_head")
    return Adapted(base, trained, settings.alpha / settings.rank)


def _joined(base: Params, trained: Params, scale: float) -> Params:
    adapters = {
        name: {"a": adapter["a"] * scale, "b": adapter["b"]}
        for name, adapter in trained["layers"].items()
    }
    return {**base, **trained, "layers": {**base["layers"], **adapters}}


def adapters(params: Params) -> Params:
    """The adapters alone of what `Adapted.joined` gives, the scale in their a."""
    return {"layers": {k: v for k, v in params["layers"].items() if k.endswith(SUFFIX)}}


def moved(params: Params, base: Params) -> Params:
    """The adapters of what `Adapted.joined` gives, beside the kernels of another base."""
    return {**base, "layers": {**base["layers"], **adapters(params)["layers"]}}


def merged(params: Params) -> Params:
    """What `Adapted.joined` gives as a float32 model of its own, without adapters."""
    mesh = mesh_of(params)
    if mesh is None:
        return jax.jit(_merged)(params)
    layout = param_shardings(jax.eval_shape(_merged, params), mesh, DEFAULT_RULES)
    return jax.jit(_merged, out_shardings=layout)(params)


def _merged(params: Params) -> Params:
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    layers = {k: v for k, v in params["layers"].items() if not k.endswith(SUFFIX)}
    for name in layers:
        if (adapter := params["layers"].get(f"{name}{SUFFIX}")) is not None:
            kernel = jax.vmap(kernel_with)(layers[name]["kernel"], adapter["a"], adapter["b"])
            layers[name] = {**layers[name], "kernel": kernel}
    return {**params, "layers": layers}


def kernel_with(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """A layer's kernel with its adapter in it, float32."""
    return kernel.astype(jnp.float32) + jnp.tensordot(a, b, 1)
