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

from cai_jax.mesh import DEFAULT_RULES, mesh_of, param_shardings
from cai_jax.models.transformer import Params

# Axes of a layer's kernel that are summed over in its product.
SUMMED = {
    "q": (0,), "k": (0,), "v": (0,), "o": (0, 1), "gate": (0,), "up": (0,), "down": (0,),
    "experts_gate": (1,), "experts_up": (1,), "experts_down": (1,),
}  # fmt: skip


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
