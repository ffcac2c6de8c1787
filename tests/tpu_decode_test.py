"""An 8B model compiled for TPUs: a decode step moves little more than params and cache."""

import dataclasses
import importlib.util

import jax.numpy as jnp
import pytest

from cai_jax.plan.decoding import Shapes
from cai_jax.plan.shapes import LLAMA_3_8B

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="compiling for a TPU needs libtpu: pip install -e '.[plan]'",
    ),
    pytest.mark.parametrize("topology", ["v5e:4x4", "v6e:4x4"]),
]


def test_a_step_moves_params_and_cache_once(topology):
    from benchmarks import tpu, tpu_decode

    mesh = tpu.mesh_for(topology, data=-1, tensor=8)
    step = tpu_decode.compile_step(Shapes(LLAMA_3_8B, mesh, 128, 1024, jnp.dtype("bfloat16")))
    assert step.traffic.host == ()
    # Below 1 where some weights stay in on-chip memory from step to step.
    assert 0.7 < step.ratio < 1.15, step.traffic.largest
    assert step.temporary < step.arguments / 2


def test_heads_that_share_a_device_stay_where_they_are(topology):
    """A token is written into four heads of a slot without moving the others (four layers)."""
    from benchmarks import tpu, tpu_decode

    mesh = tpu.mesh_for(topology, data=-1, tensor=2)
    model = dataclasses.replace(LLAMA_3_8B, layers=4)
    shapes = Shapes(model, mesh, 128, 1024, jnp.dtype("bfloat16"))
    step = tpu_decode.compile_step(shapes)
    assert 0.7 < step.ratio < 1.15, step.traffic.largest


def test_reading_needs_no_host_and_little_memory(topology):
    from benchmarks import tpu, tpu_decode

    mesh = tpu.mesh_for(topology, data=-1, tensor=8)
    shapes = Shapes(LLAMA_3_8B, mesh, 128, 1024, jnp.dtype("bfloat16"))
    programs = tpu_decode.compile_reading(shapes)
    assert set(programs) == {"read layer", "last read layer", "score layer"}
    for name, (arguments, temporary, host) in programs.items():
        assert host == (), name
        assert temporary < arguments / 2, name
