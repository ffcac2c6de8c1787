"""An 8B model compiled for TPUs, without a TPU: its decode step's bytes, and memory to read.

python -m benchmarks.tpu_decode v5e:4x4 v6e:4x4 --tensor 8 --slots 128

Needs `pip install -e '.[plan]'`. Bytes are those of one device: of its params and its part of the
cache, which a step cannot do without, and of everything that the compiled loop's body touches.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks import tpu
from cai_jax.decoding import bursts, reading
from cai_jax.decoding.calls import FEEDS, NODES, SIZES
from cai_jax.decoding.sampling import Rule
from cai_jax.mesh import fitted
from cai_jax.models import kv_cache, transformer
from cai_jax.models.cached import abstract_unstacked
from cai_jax.models.config import ModelConfig
from cai_jax.plan.hlo_traffic import Traffic, host_transfers, loop_traffic
from cai_jax.plan.shapes import LLAMA_3_8B
from cai_jax.plan.training import local_bytes

STEPS = 64  # of a burst
PREFIX = 2048  # tokens that all slots read first


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


def compile_step(
    config: ModelConfig, mesh: Mesh, slots: int, length: int, dtype=jnp.bfloat16
) -> Step:
    """Compiles `bursts.decode` for all slots and their whole length."""
    array = functools.partial(_array, mesh)
    column = lambda kind: array((slots,), kind)  # noqa: E731
    params = _params(config, mesh, dtype)
    cache = jax.eval_shape(lambda: kv_cache.empty(config, slots, length, dtype, mesh))
    cache = jax.tree.map(lambda x: array(x.shape, x.dtype, *kv_cache.AXES), cache)
    draws = bursts.Draws(
        active=column(bool),
        fresh=column(bool),
        pending=column(jnp.int32),
        key=array((slots, 2), jnp.uint32),
        segment=column(jnp.int32),
        sampled=column(jnp.int32),
        least=column(jnp.int32),
        limit=column(jnp.int32),
        rule=Rule(column(jnp.float32), column(jnp.float32), column(jnp.int32)),
        stop_state=column(jnp.int32),
    )
    compiled = bursts.decode.lower(
        params,
        cache,
        array((slots, config.vocab_size), jnp.float32, *reading.LOGITS),
        None,
        column(jnp.int32),
        column(jnp.int32),
        draws,
        array((64, config.vocab_size), jnp.int16),
        array((2,), jnp.int32),
        array((), jnp.int32),
        config=config,
        dtype=dtype,
        mesh=mesh,
        limit=length,
        steps=STEPS,
    ).compile()
    memory = compiled.memory_analysis()
    return Step(
        params=local_bytes({k: v for k, v in params.items() if k != "embed"}),
        cache=local_bytes(cache),
        traffic=loop_traffic(compiled.as_text()),
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
    )


def compile_reading(
    config: ModelConfig, mesh: Mesh, slots: int, length: int, dtype=jnp.bfloat16
) -> dict[str, tuple[int, int, tuple[str, ...]]]:
    """Compiles what reads, behind a shared prefix: full calls of `reading.extend`, a layer before
    the last and the last with its logits, and a layer of `reading.score`.

    Returns:
      For each, bytes on one device of its arguments and of its temporaries, and its transfers to
      the host.
    """
    array = functools.partial(_array, mesh)

    def keys_and_values(count: int, size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        one = jax.eval_shape(lambda: kv_cache.empty(config, count, size, dtype)).layers[0]
        return tuple(array(x.shape, x.dtype, *kv_cache.AXES) for x in one)

    def stream(tokens: int):
        angle = array((config.head_dim // 2, tokens), jnp.float32, *reading.STREAM)
        return array((config.embed, tokens), dtype, *reading.STREAM), (angle, angle)

    tokens, params = SIZES[-1], _params(config, mesh, dtype)
    layer, head = params["layers"][0], {k: params[k] for k in ("head", "final_norm")}
    held = keys_and_values(slots, length)
    shared = (*keys_and_values(1, PREFIX), array((), jnp.int32))
    logits = array((slots, config.vocab_size), jnp.float32, *reading.LOGITS)
    column = jax.ShapeDtypeStruct((min(slots, tokens // FEEDS),), jnp.int32)
    pack = functools.partial(reading.pack, tokens=tokens, total=slots)
    packed = jax.eval_shape(pack, column, column, column)
    packed = jax.tree.map(lambda x: array(x.shape, x.dtype), packed)
    rows, nodes = column.shape[0], NODES[1]
    static = {"config": config, "dtype": jnp.dtype(dtype), "mesh": mesh}
    lowered = {
        "read layer": reading.extend_layer.lower(
            layer, held, shared, *stream(tokens), packed, **static
        ),
        "last read layer": reading.extend_last.lower(
            layer, head, held, logits, shared, *stream(tokens), packed, **static
        ),
        "score layer": reading.score_layer.lower(
            layer,
            held,
            shared,
            *stream(rows * nodes),
            array(column.shape, jnp.int32),
            array(column.shape, jnp.int32),
            array((rows, nodes, nodes), bool),
            **static,
        ),
    }
    found = {}
    for name, program in lowered.items():
        compiled = program.compile()
        memory = compiled.memory_analysis()
        sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        found[name] = (*sizes, host_transfers(compiled.as_text()))
    return found


def _array(mesh: Mesh, shape: tuple[int, ...], kind, *names: str | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, kind, sharding=fitted(mesh, shape, *names))


def _params(config: ModelConfig, mesh: Mesh, dtype):
    """Shapes of the weights in the layout of `models.cached.unstacked`."""
    shapes = jax.eval_shape(functools.partial(transformer.init, config), jax.random.key(0))
    return abstract_unstacked(shapes, mesh, dtype)


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
        step = compile_step(LLAMA_3_8B, mesh, args.slots, args.context)
        columns = (step.params, step.cache, step.traffic.bytes)
        sizes = "".join(f"{x / 1e6:8.0f}" for x in columns)
        memory = f"{step.temporary / 1e6:8.0f}{step.arguments / 1e6:11.0f}"
        host = ", ".join(step.traffic.host) or "none"
        print(f"{name + ', decode step':24}{sizes}{step.ratio:8.3f}{memory}  {host}", flush=True)
        programs = compile_reading(LLAMA_3_8B, mesh, args.slots, args.context)
        for program, (arguments, temporary, transfers) in programs.items():
            memory = f"{temporary / 1e6:8.0f}{arguments / 1e6:11.0f}"
            host = ", ".join(transfers) or "none"
            print(f"{name + ', ' + program:24}{'':32}{memory}  {host}", flush=True)


if __name__ == "__main__":
    main()
