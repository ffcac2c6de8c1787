"""Adapters as PEFT reads them: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from cai_jax.models.config import ModelConfig
from cai_jax.models.lora import INPUTS, SUFFIX
from cai_jax.models.transformer import Params
from cai_jax.weights.names import WeightsError
from cai_jax.weights.tensors import hugging_face_names

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def write_adapters(
    directory: Path, config: ModelConfig, stages: Sequence[Params], base: str
) -> None:
    """Writes adapters that stages one after the other have left as one, of all their ranks.

    Args:
      stages: `lora.adapters` of each, the first beside the kernels of `base`.
      base: what PEFT is to load first, a name or a path.

    Raises:
      WeightsError: such a model's files keep kernels joined, which adapters are not.
    """
    names, tensors, targets = hugging_face_names(config), {}, set()
    for name in stages[0]["layers"]:
        kernel = name.removesuffix(SUFFIX)
        file = names[f"layers/{kernel}/kernel"].removesuffix(".weight")
        if "/" in file:
            raise WeightsError(
                f"adapters of {kernel} have no place in PEFT's files, as such a model keeps it "
                "joined with others; export the whole model, without --adapters"
            )
        a = np.concatenate([stage["layers"][name]["a"] for stage in stages], -1)
        b = np.concatenate([stage["layers"][name]["b"] for stage in stages], 1)
        inputs, rank = math.prod(a.shape[1 : 1 + INPUTS[kernel]]), a.shape[-1]
        for layer in range(config.layers):
            to = f"base_model.model.{file.format(layer)}"
            a_of, b_of = a[layer].reshape(inputs, rank).T, b[layer].reshape(rank, -1).T
            tensors[f"{to}.lora_A.weight"] = np.ascontiguousarray(a_of)
            tensors[f"{to}.lora_B.weight"] = np.ascontiguousarray(b_of)
        targets.add(file.rpartition(".")[2])
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, directory / TENSORS)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,  # alpha / r is in lora_A
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
        "inference_mode": True,
    }
    (directory / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
