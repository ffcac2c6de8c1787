"""An 8B model compiled for TPUs, without a TPU: its decode step's bytes, and memory to read.

python -m benchmarks.tpu_decode v5e:4x4 v6e:4x4 --tensor 8 --slots 128

Needs `pip install -e '.[plan]'`. Bytes are those of one device: of its params and its part of the
cache, which a step cannot do without, and of everything that the compiled loop's body touches.
"""

from __future__ import annotations

import argparse
import dataclasses

import jax.numpy as jnp

from benchmarks import tpu
from cai_jax.plan.decoding import Shapes, burst, readers
from cai_jax.plan.hlo_traffic import Traffic, host_transfers, loop_traffic
from cai_jax.plan.program import local_bytes
from cai_jax.plan.shapes import LLAMA_3_8B


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled decode step, in bytes on one device.

    Attributes:
      params: of the weights that are multiplied by; the embedding, of which rows are looked up,
        is left out.
      cache: of its part of the keys and values.
      traffic: what the loop's body reads and writes.
      arguments, temporary: memory that the whole burst needs.
    """

    params: int
    cache: int
    traffic: Traffic
    arguments: int
    temporary: int

    @property
    def ratio(self) -> float:
        """Bytes that a step moves, to those it cannot do without."""
        return self.traffic.bytes / (self.params + self.cache)


def compile_step(shapes: Shapes) -> Step:
    """Compiles `bursts.decode` for all slots and their whole length."""
    compiled = burst(shapes).compile()
    memory = compiled.memory_analysis()
    return Step(
        params=local_bytes({k: v for k, v in shapes.params.items() if k != "embed"}),
        cache=local_bytes(shapes.cache),
        traffic=loop_traffic(compiled.as_text()),
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
    )


def compile_reading(shapes: Shapes) -> dict[str, tuple[int, int, tuple[str, ...]]]:
    """Compiles what reads, `plan.decoding.readers`.

    Returns:
      For each, bytes on one device of its arguments and of its temporaries, and its transfers to
      the host.
    """
    found = {}
    for name, program in readers(shapes).items():
        compiled = program.compile()
        memory = compiled.memory_analysis()
        sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        found[name] = (*sizes, host_transfers(compiled.as_text()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topologies", nargs="+", help='such as "v5e:4x4"')
    parser.add_argument("--tensor", type=int, default=8, help="devices that share a layer")
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--context", type=int, default=1024)
    args = parser.parse_args()
    print("per device, MB             params   cache    step   ratio    temp  arguments  host")
    for name in args.topologies:
        mesh = tpu.mesh_for(name, data=-1, tensor=args.tensor)
        shapes = Shapes(LLAMA_3_8B, mesh, args.slots, args.context, jnp.dtype("bfloat16"))
        step = compile_step(shapes)
        columns = (step.params, step.cache, step.traffic.bytes)
        sizes = "".join(f"{x / 1e6:8.0f}" for x in columns)
        memory = f"{step.temporary / 1e6:8.0f}{step.arguments / 1e6:11.0f}"
        host = ", ".join(step.traffic.host) or "none"
        print(f"{name + ', decode step':24}{sizes}{step.ratio:8.3f}{memory}  {host}", flush=True)
        programs = compile_reading(shapes)
        for program, (arguments, temporary, transfers) in programs.items():
            memory = f"{temporary / 1e6:8.0f}{arguments / 1e6:11.0f}"
            host = ", ".join(transfers) or "none"
            print(f"{name + ', ' + program:24}{'':32}{memory}  {host}", flush=True)


if __name__ == "__main__":
    main()
