"""Kernels in 8 bits, for models that are not trained: integers with a scale for each output.

A kernel is a `qwix.QArray`, its integers and scales the largest magnitude of an output over 127.
Products are of activations with the integers, in the activations' dtype, times the scale: weights
take half of bfloat16's memory, and nothing else is rounded. Embeddings, the output matrix, routers,
norms and biases stay as they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import qwix
from qwix import QArray

from cai_jax.mesh import DEFAULT_RULES, mesh_of, param_shardings
from cai_jax.models.lora import INPUTS, Params

# Axes of a layer's kernel that are summed over in its product; the first of experts' is theirs.
SUMMED = {
    **{name: tuple(range(axes)) for name, axes in INPUTS.items()},
    **{f"experts_{name}": (1,) for name in ("gate", "up", "down")},
}


def quantized(params: Params) -> Params:
    """Params of any float dtype with the kernels of their layers as `QArray`s."""
    mesh = mesh_of(params)
    if mesh is None:
        return jax.jit(_quantized)(params)
    shapes = jax.eval_shape(_quantized, params)
    layout = param_shardings(shapes, mesh, DEFAULT_RULES)
    return jax.jit(_quantized, out_shardings=layout)(params)


def _quantized(params: Params) -> Params:
    layers = dict(params["layers"])
    for name in layers.keys() & SUMMED.keys():
        kernel = layers[name]["kernel"]
        summed = {1 + axis for axis in SUMMED[name]}  # behind the layers
        kept = [axis for axis in range(kernel.ndim) if axis not in summed]
        held = qwix.quantize(kernel.astype(jnp.float32), jnp.int8, channelwise_axes=kept)
        layers[name] = {**layers[name], "kernel": held}
    return {**params, "layers": layers}


def whole(kernel: jax.Array | QArray) -> jax.Array:
    """A kernel as an array, float32 if it is in 8 bits."""
    return qwix.dequantize(kernel) if isinstance(kernel, QArray) else kernel
