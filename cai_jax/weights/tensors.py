"""The tensors of a model's params: which there are, and their axes."""

from __future__ import annotations

import dataclasses
import math

from cai_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of our params, without the axes of layers and of experts.

    Attributes:
      path: where it stands, keys joined by slashes.
      inputs, outputs: sizes of a kernel's axes, in this order; of other tensors all are outputs.
      experts: how many of it a layer has, on an axis of their own; 0 where that is one, on none.
    """

    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    experts: int

    @property
    def layered(self) -> bool:
        """Whether every layer has one, on the first axis."""
        return self.path.startswith("layers/")

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.inputs, *self.outputs

    @property
    def file_shape(self) -> tuple[int, ...]:
        """In files a kernel is [outputs, inputs], each side flat, and what is none is flat but for
        the embedding."""
        if self.inputs:
            return math.prod(self.outputs), math.prod(self.inputs)
        return self.outputs if "embedding" in self.path else (math.prod(self.outputs),)

    def whole_shape(self, config: ModelConfig) -> tuple[int, ...]:
        """Of all layers and experts."""
        layers = (config.layers,) if self.layered else ()
        return *layers, *((self.experts,) if self.experts else ()), *self.shape


def tensors(config: ModelConfig) -> dict[str, Tensor]:
    """By path, the tensors that a model of this configuration has."""
    sizes = {
        "V": config.vocab_size,
        "D": config.embed,
        "F": config.mlp,
        "H": config.heads,
        "K": config.kv_heads,
        "C": config.head_dim,
        "E": config.experts,
    }
    found = {}
    for path, axes in _axes(config).items():
        experts, _, axes = axes.rpartition(":")
        inputs, _, outputs = axes.rpartition(">")
        inputs, outputs = (tuple(sizes[axis] for axis in side) for side in (inputs, outputs))
        found[path] = Tensor(path, inputs, outputs, sizes[experts] if experts else 0)
    return found


def _axes(config: ModelConfig) -> dict[str, str]:
    """Axes by path, a letter each: inputs > outputs of kernels, and E: before those of experts."""
    layer = {"q/kernel": "D>HC", "k/kernel": "D>KC", "v/kernel": "D>KC", "o/kernel": "HC>D"}
    if config.qkv_bias:
        layer |= {"q/bias": "HC", "k/bias": "KC", "v/bias": "KC"}
    if config.o_bias:
        layer["o/bias"] = "D"
    if config.qk_norm == "projection":
        layer |= {"q_norm/scale": "HC", "k_norm/scale": "KC"}
    if config.qk_norm == "head":
        layer |= {"q_norm/scale": "C", "k_norm/scale": "C"}
    if config.experts:
        layer["router/kernel"] = "D>E"
        layer |= {"experts_gate/kernel": "E:D>F", "experts_up/kernel": "E:D>F"}
        layer["experts_down/kernel"] = "E:F>D"
    else:
        layer |= {"up/kernel": "D>F", "down/kernel": "F>D"}
        if config.gated:
            layer["gate/kernel"] = "D>F"
        if config.mlp_bias:
            biases = {"up/bias": "F", "down/bias": "D", "gate/bias": "F"}
            layer |= {k: v for k, v in biases.items() if config.gated or k != "gate/bias"}
    norms = ["final_norm"]
    if config.norm_placement != "post":
        norms += ["layers/attention_norm", "layers/mlp_norm"]
    if config.norm_placement != "pre":
        norms += ["layers/attention_post_norm", "layers/mlp_post_norm"]
    return {
        "embed/embedding": "VD",
        **{f"layers/{path}": axes for path, axes in layer.items()},
        **{f"{norm}/scale": "D" for norm in norms},
        **({f"{norm}/bias": "D" for norm in norms} if config.norm == "layer" else {}),
        **({} if config.tied_embeddings else {"lm_head/kernel": "D>V"}),
    }
