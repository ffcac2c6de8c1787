"""What training costs by the model's shape, and what share of the devices' peak a step reaches."""

from __future__ import annotations

from typing import Any

import jax

from cai_jax.models.lora import SUFFIX

PyTree = Any

# Dense bfloat16 FLOP/s of one JAX device as its maker publishes them, by jax.Device.device_kind.
_PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 PCIe": 756e12,
}


def flops_per_token(
    weights: int,
    layers: int,
    heads: int,
    head_dim: int,
    length: int,
    windows: tuple[int | None, ...] = (),
) -> int:
    """FLOPs that one training step needs for each token.

        6 N + 12 L H Q T

    The convention of PaLM (Chowdhery et al. 2204.02311, appendix B), for model-FLOPs utilisation:
    a multiply and an add are two; forward one part, backward two; attention is counted over the
    whole row, without the half that a causal mask would save; what rematerialisation computes
    again, norms, softmax and the optimiser are not counted.

    Args:
      weights: N, those that every token is multiplied with; see `shape_of`.
      layers, heads, head_dim: L, H and Q.
      length: T, tokens of a row.
      windows: of a config's layers, which see so many tokens of it at most; None or none: all.
    """
    seen = sum(min(length, window or length) for window in windows or (None,) * layers)
    return 6 * weights + 12 * seen * heads * head_dim


def shape_of(params: PyTree, experts_per_token: int = 0) -> tuple[int, int, int, int]:
    """(N, L, H, Q) of a language model's or a preference model's params, arrays or their shapes.

    N counts kernels, and the embedding where it is the output matrix too: to look a row up costs
    nothing. Norms and biases are left out, and of experts all but those that a token goes through.
    Beside adapters (`lora.joined`) the weights are frozen and count two thirds: of their backward
    part only the half that goes on to the layer before is computed.
    """
    weights = adapters = 0
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        *_, parent, name = (jax.tree_util.keystr((entry,), simple=True) for entry in path)
        if parent == "kernel":  # in 8 bits: its integers, and its scales
            if name == "scale":
                continue
            parent, name = jax.tree_util.keystr(path[-3:-2], simple=True), "kernel"
        if parent.endswith(SUFFIX):
            adapters += x.size
        elif name == "kernel":
            mixed = parent.startswith("experts_")  # [L, E, inputs, outputs]
            weights += x.size * experts_per_token // x.shape[1] if mixed else x.size
    if "lm_head" not in params and "scalar_head" not in params:
        weights += params["embed"]["embedding"].size
    if adapters:
        weights = weights * 2 // 3 + adapters
    layers, _, heads, head_dim = params["layers"]["q"]["kernel"].shape
    return weights, layers, heads, head_dim


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device of a kind; None where it is unknown, as on CPU."""
    return _PEAK.get(device_kind)


def rates(
    shape: tuple[int, int, int, int],
    tokens: int,
    length: int,
    seconds: float,
    peak: float | None,
    windows: tuple[int | None, ...] = (),
) -> dict[str, float]:
    """The perf/ metrics of a training step.

    Args:
      shape: (N, L, H, Q), from `shape_of`.
      tokens: of all rows of the batch; padding is not one.
      length: T of a row, padding included.
      seconds: that the step took.
      peak: FLOP/s of all devices together, or None.
      windows: as in `flops_per_token`.

    Returns:
      perf/tokens_per_second, and perf/model_flops_utilisation (0 to 1) where the peak is known.
    """
    found = {"perf/tokens_per_second": tokens / seconds}
    if peak is not None:
        needed = tokens * flops_per_token(*shape, length, windows)
        found["perf/model_flops_utilisation"] = needed / (seconds * peak)
    return found
