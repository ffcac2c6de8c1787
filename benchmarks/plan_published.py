"""A decode step's predicted time beside published rates of serving Llama models on TPUs.

python -m benchmarks.plan_published

Needs `pip install -e '.[plan]'`, and no TPU: our step is compiled for the published chips, slots
and mean context, in bfloat16, and takes what its busiest resource takes at its published rate. What
others published was measured, with the reading of prompts in between; so ours is a lower bound of
such a step, and the two together say how far a server stays from it.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from cai_jax.mesh import MESH_AXES, make_mesh
from cai_jax.models.config import ModelConfig
from cai_jax.plan.decoding import Shapes, decoding_programs
from cai_jax.plan.program import compile_program
from cai_jax.plan.shapes import LLAMA_3_8B, LLAMA_3_70B
from cai_jax.plan.topology import topology, without_a_tpu

LLAMA_2_7B = ModelConfig(
    vocab_size=32000, embed=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp=11008,
    rope_theta=10000.0, norm_eps=1e-5, tied_embeddings=False, context=4096,
)  # fmt: skip
RECIPE = "AI-Hypercomputer/tpu-recipes, inference/trillium/vLLM/Llama3.x (2025-12-03)"


@dataclasses.dataclass(frozen=True)
class Published:
    """A measurement by others.

    Attributes:
      who: the server and the model.
      source: where it stands, and of when.
      topology: its chips, all of which share each layer.
      slots: texts in progress at a time.
      context: tokens that stand in a slot, in the mean: the prompt and half of the answer.
      rate: tokens a second that it wrote, on all chips.
    """

    who: str
    source: str
    config: ModelConfig
    topology: str
    slots: int
    context: int
    rate: float


PUBLISHED = (
    Published("vLLM, Llama 3.3 70B", RECIPE, LLAMA_3_70B, "v6e-8", 64, 1500, 2494.80),
    Published("vLLM, Llama 3.3 70B", RECIPE, LLAMA_3_70B, "v6e-8", 128, 1500, 3544.46),
    Published(
        "JetStream, Llama 2 7B", "AI-Hypercomputer/JetStream, pull request 196 (2025-02-19)",
        LLAMA_2_7B, "v5e-8", 320, 368, 4811.16,
    ),
    Published(  # its lengths are not given but for 2,048 at the most
        "JetStream, Llama 3 8B", "google/jetstream-pytorch, benchmarks/summary.md (2024-04-24)",
        LLAMA_3_8B, "v5e-8", 128, 1024, 8249.0,
    ),
)  # fmt: skip


def predicted(row: Published) -> tuple[float, str, bool]:
    """Seconds of a step, what bounds it, and whether weights and cache fit."""
    found = topology(row.topology)
    mesh = make_mesh(dict.fromkeys(MESH_AXES, 1) | {"tensor": -1}, found.devices)
    length = -(-row.context // 128) * 128
    shapes = Shapes(row.config, mesh, row.slots, length, jnp.dtype("bfloat16"))
    step = compile_program(next(decoding_programs(shapes)), mesh)
    bounds = step.bounds(found.chip, len(found.devices))
    slowest = max(bounds, key=bounds.get)
    return bounds[slowest], slowest, step.held + step.temporary <= found.chip.hbm


def main() -> None:
    without_a_tpu()
    print(
        "| who | chips | slots | context | ms a step, published | ours at the least | bound by |",
        end="",
    )
    print(" tokens/s a chip, published | ours at the most |\n|---|---|---|---|---|---|---|---|---|")
    for row in PUBLISHED:
        seconds, slowest, fits = predicted(row)
        chips = len(topology(row.topology).devices)
        ours = f"{seconds * 1e3:.1f} | {slowest}" if fits else "- | does not fit"
        most = f"{row.slots / seconds / chips:.0f}" if fits else "-"
        print(
            f"| {row.who} | {row.topology} | {row.slots} | {row.context} "
            f"| {row.slots / row.rate * 1e3:.1f} | {ours} | {row.rate / chips:.0f} | {most} |",
            flush=True,
        )
    for source in dict.fromkeys(row.source for row in PUBLISHED):
        print(source)


if __name__ == "__main__":
    main()
