"""An 8B model's finetuning step compiled for TPUs: it fits, and sends what it must."""

import importlib.util

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: pip install -e '.[plan]'",
)

V5E = 16e9  # bytes of a device
EIGHT_BILLION = 8.03e9


def steps_of(**sizes):
    from benchmarks import tpu, tpu_training

    length = sizes.pop("length")
    return tpu_training.compile_step(tpu.LLAMA_8B, tpu.mesh_for("v5e:8x8", **sizes), length)


@pytest.mark.parametrize(
    "sizes",
    [{"fsdp": 64, "length": 4096}, {"fsdp": 16, "sequence": 4, "length": 32768}],
    ids=["fsdp", "sequence"],
)
def test_a_step_fits_and_sends_what_it_must(sizes):
    step = steps_of(**sizes)
    assert step.host == ()
    assert step.state == pytest.approx(12 * EIGHT_BILLION / 64, rel=0.01)  # split 64 ways
    assert step.arguments + step.temporary < V5E
    # Each layer's weights are gathered in bfloat16 for the forward pass and again for the
    # backward one: not the state, and no activations, of which a gathered batch has more.
    gathered = step.collectives["all-gather"][1]
    assert 2 * 2 * 6.9e9 < gathered < 2 * 2 * 6.9e9 + 8e9
    permuted = step.collectives.get("collective-permute", (0, 0))[0]
    assert (permuted > 0) == ("sequence" in sizes)
