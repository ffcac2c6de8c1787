"""An 8B model's finetuning step compiled for TPUs: it fits, and sends what it must."""

import importlib.util

import pytest

from cai_jax.plan.shapes import LLAMA_3_8B

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: pip install -e '.[plan]'",
)

V5E = 16e9  # bytes of a device
PARAMS, IN_LAYERS = 8.03e9, 6.98e9


@pytest.mark.nightly  # minutes on two cores
@pytest.mark.parametrize(
    ("sizes", "length"),
    [({"fsdp": 64}, 4096), ({"fsdp": 16, "sequence": 4}, 32768)],
    ids=["fsdp", "sequence"],
)
def test_a_step_fits_and_sends_what_it_must(sizes, length):
    from benchmarks import tpu, tpu_training

    mesh = tpu.mesh_for("v5e:8x8", **sizes)
    step = tpu_training.compile_step(LLAMA_3_8B, mesh, length)
    assert step.host == ()
    assert step.state == pytest.approx(12 * PARAMS / 64, rel=0.01)  # all of it split 64 ways
    assert step.arguments + step.temporary < V5E
    # In bfloat16, forwards and backwards: each layer's weights, and the last hidden states, to
    # where a part of the vocabulary is. No other activations and no unembedding.
    states = sizes["fsdp"] * length * LLAMA_3_8B.embed
    gathered = step.collectives["all-gather"][1]
    assert gathered == pytest.approx(2 * 2 * (IN_LAYERS + states), rel=0.05)
    permuted = step.collectives.get("collective-permute", (0, 0))[1]
    assert (permuted > 3e9) == ("sequence" in sizes)  # keys and values, 3 times on in 32 layers
