"""The engine on meshes and in several processes: the Transcripts of one device.

A device mesh cannot be had in a process that has begun with one device, so all runs are in
processes of their own.
"""

import json
import subprocess
import sys
import textwrap

import numpy as np
import processes
import pytest
import tiny_run

pytestmark = pytest.mark.slow

# (slice, data, fsdp, sequence, tensor), of eight devices in one process and of four in two.
MESHES = {
    "2x4": (1, 2, 1, 1, 4),
    "4x2": (1, 2, 2, 1, 2),
    "slices, sequence": (2, 1, 1, 2, 2),  # along sequence all do the same
    "processes": (1, 2, 1, 1, 2),
}
KERNEL = {"kernel": None, "kernel, 4x2": MESHES["4x2"]}  # the last to run: it stays

PROGRAM = """
    import dataclasses, functools, json, sys

    from cai_jax import hosts
    from cai_jax.mesh import MESH_AXES, ROWS, make_mesh, place

    hosts.start()
    import jax, numpy as np
    from fakes import tiny_model
    from jax.sharding import PartitionSpec

    from cai_jax.decoding import Engine, bursts, reading
    from cai_jax.models import slot_attention
    from cai_jax.script import Choose, Force, Sample, Script

    model = tiny_model(vocab_size=264, heads=8, kv_heads=4)
    rng = np.random.default_rng(0)

    def script(n):
        # All share a beginning; every three share more of one, and fork.
        text = "\\n\\nHuman: All read this first. " + "abcdefgh"[n // 3] * 20 + f" {n}"
        rule = {"temperature": (0.0, 1.0, 0.7)[n % 3], "top_p": (1.0, 0.9)[n % 2]}
        first = Sample(int(rng.integers(1, 24)), ("e", "\\n\\nHuman:"), **rule)
        follow = (Force(" and then:"), Choose((" (A)", " (B)", "c")), Sample(5, ("☃",)))
        return Script((Force(text), first, *follow), f"{n}")

    decode, layouts = bursts.decode, set()

    def watched(params, cache, *more, **static):
        layouts.update(x.sharding.spec for x in jax.tree.leaves(cache) if mesh)
        after, *drawn = decode(params, cache, *more, **static)
        layouts.update(x.sharding.spec for x in jax.tree.leaves(after) if mesh)
        return after, *drawn

    bursts.decode = watched
    scripts = [script(n) for n in range(12)]
    for name, shape in json.loads(sys.argv[1]).items():
        if "kernel" in name:
            slot_attention.by_kernel = reading.by_kernel = lambda mesh: True
            interpreted = functools.partial(functools.partial, interpret=True)
            slot_attention.decode_attention = interpreted(slot_attention.decode_attention)
            reading.read_attention = interpreted(reading.read_attention)
            jax.clear_caches()
        mesh = shape and make_mesh(dict(zip(MESH_AXES, shape)))
        engine = Engine(dataclasses.replace(model, params=place(model.params, mesh)), 8, 128)
        layouts.clear()
        transcripts = engine.run(scripts)
        assert engine.stats.shared and engine.stats.forked
        if mesh:
            data = tuple(n for n in ROWS if mesh.shape[n] > 1)
            assert layouts == {PartitionSpec("tensor", data if len(data) > 1 else data[0])}
            weights = {n for x in jax.tree.leaves(engine._unstacked) for n in x.sharding.spec}
            assert weights == {None, "tensor"}
        print(json.dumps({"name": name, "result": [dataclasses.asdict(t) for t in transcripts]}))
"""


def start(meshes, devices, cache, **more):
    environment = tiny_run.environment(cache) | more
    environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), json.dumps(meshes)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def read(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {row["name"]: row["result"] for row in rows}


@pytest.fixture(scope="module")
def found(tiny_cache):
    """Name -> Transcripts as dicts; of each process's own."""
    here = {name: shape for name, shape in MESHES.items() if name != "processes"}
    one = {"one": None} | here | KERNEL
    found = read(start(one, 8, tiny_cache))
    both = {"processes": MESHES["processes"]}
    pair = [start(both, 2, tiny_cache, **joined) for joined in processes.two()]
    first, second = (read(process)["processes"] for process in pair)
    return found | {"processes": first, "the other process": second}


@pytest.mark.parametrize("name", [*MESHES, "the other process", *KERNEL])
def test_the_transcripts_are_those_of_one_device(found, name):
    """On meshes; and by the kernel that attends to slots on TPU, interpreted."""
    assert len(found["one"]) == 12
    for a, b in zip(found["one"], found[name], strict=True):
        for x, y in zip(a["segments"], b["segments"], strict=True):
            for field in ("text", "tokens", "stop_reason"):
                assert x[field] == y[field], (a["id"], field)
            for field in ("logprobs", "option_logprobs"):
                np.testing.assert_allclose(x[field] or [], y[field] or [], atol=1e-4)
