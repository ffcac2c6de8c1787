"""An 8B model's finetuning step compiled for TPUs, without a TPU: its memory and what it sends.

python -m benchmarks.tpu_training v5e:8x8 --length 4096
python -m benchmarks.tpu_training v5e:8x8 --length 32768 --sequence 4

Needs `pip install -e '.[plan]'`. The step is `stages.supervised`'s: compute in bfloat16, params,
gradients and AdamW's moments in float32, a row of text for every device (with --sequence, for
every group that shares one), all activations recomputed. Numbers are of one device; a collective
in the loop over layers counts once a layer.
"""

from __future__ import annotations

import argparse
import dataclasses

import jax
import jax.numpy as jnp

from benchmarks import tpu
from cai_jax.batch import TokenBatch
from cai_jax.mesh import batch_sharding, row_ways
from cai_jax.models import transformer
from cai_jax.models.config import ModelConfig
from cai_jax.plan.hlo_collectives import Collective, collectives
from cai_jax.plan.hlo_traffic import host_transfers
from cai_jax.plan.program import local_bytes, sharded
from cai_jax.plan.shapes import LLAMA_3_8B
from cai_jax.stages.supervised import make_loss
from cai_jax.training import optimizer, state

ADAMW = optimizer.OptimizerConfig(
    kind="adamw", learning_rate=1e-5, schedule="constant", warmup_steps=4, weight_decay=0.0,
    b1=0.9, b2=0.95, eps=1e-8, clip_norm=1.0, moment_dtype="float32",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step, in bytes on one device.

    Attributes:
      state: of its part of params and moments.
      arguments, temporary: memory that the step needs; the new state takes the old one's place.
      collectives: name -> (how often in a step, bytes that one device ends up with in a step).
      host: transfers to the host, by name.
    """

    state: int
    arguments: int
    temporary: int
    collectives: dict[str, tuple[int, int]]
    host: tuple[str, ...]


def compile_step(
    config: ModelConfig, mesh: jax.sharding.Mesh, length: int, remat: str = "full"
) -> Step:
    """Compiles a step on a row of `length` tokens for every part of the batch."""
    opt = optimizer.make(ADAMW, 1000)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: state.create(transformer.init(config, key), opt))
    start = sharded(shapes, mesh)
    layout = jax.tree.map(lambda x: x.sharding, start)
    shape = (row_ways(mesh), length)
    ids, mask = (
        jax.ShapeDtypeStruct(shape, kind, sharding=batch_sharding(mesh))
        for kind in (jnp.int32, jnp.bool_)
    )
    step = state.make_step(make_loss(config, remat, "bfloat16"), opt, state_shardings=layout)
    compiled = step.lower(start, TokenBatch(ids, ids, ids, mask)).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return Step(
        state=local_bytes(start),
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        collectives=_by_kind(collectives(text, mesh.shape)),
        host=host_transfers(text),
    )


def _by_kind(found: list[Collective]) -> dict[str, tuple[int, int]]:
    sums: dict[str, tuple[int, int]] = {}
    for one in found:
        often, size = sums.get(one.kind, (0, 0))
        sums[one.kind] = often + one.often, size + one.bytes
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topologies", nargs="+", help='such as "v5e:8x8"')
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--sequence", type=int, default=1, help="devices that share a row")
    parser.add_argument("--tensor", type=int, default=1, help="devices that share a layer")
    parser.add_argument("--slices", type=int, default=1, help="how many of each topology")
    args = parser.parse_args()
    for name in args.topologies:
        mesh = tpu.mesh_for(
            name, slice=args.slices, fsdp=-1, sequence=args.sequence, tensor=args.tensor
        )
        step = compile_step(LLAMA_3_8B, mesh, args.length)
        sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
        print(f"{name}, {sizes}: {row_ways(mesh)} rows of {args.length} tokens; per device, GB")
        print(f"  params and moments {step.state / 1e9:.2f}")
        print(f"  arguments {step.arguments / 1e9:.2f}, temporaries {step.temporary / 1e9:.2f}")
        for kind, (times, size) in step.collectives.items():
            print(f"  {kind:20}{times:6} a step{size / 1e9:10.2f}")
        print(f"  host transfers: {', '.join(step.host) or 'none'}", flush=True)


if __name__ == "__main__":
    main()
