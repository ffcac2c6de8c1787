"""Every stage's `microbatches` and `compute_dtype`: what they may change and what they may not."""

import dataclasses

import absolute_harmfulness_test
import dpo_test
import jax
import numpy as np
import preference_model_test
import pytest
import supervised_test
from preference_model_test import pair

from cai_jax.stages import supervised

pytestmark = pytest.mark.slow

STAGES = {
    "finetune": supervised_test,
    "preference_model": preference_model_test,
    "dpo": dpo_test,
    "scorer": absolute_harmfulness_test,
}


def train(stage, folder, model, **changes):
    """(params, metrics' rows) of a batch of four, with an uneven share of targets or weights."""
    module = STAGES[stage]
    settings = dataclasses.replace(module.SETTINGS, batch_size=4, **changes)
    if stage == "finetune":
        chains = [supervised_test.chain(text) for text in ("No.", "Ask a doctor first." * 2)]
        data = supervised.examples(settings, model.tokenizer, model.format, chains, [])
        return module.train(folder, model, data, settings)[:2]
    if stage == "scorer":
        return module.train(folder, model, settings)
    pairs = [pair(0, "a", "b", 0.2), pair(1, "c", "d", 1.0, "human"), pair(2, "e", "f", 0.7)]
    if stage == "dpo":
        return module.train(folder, model, dpo_test.examples(model, pairs), settings)
    return module.train(folder, model, pairs, settings)


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    """stage -> what it gives in one batch and float32."""
    return {name: train(name, tmp_path_factory.mktemp(name), model) for name in STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_microbatches_give_the_whole_batchs_step(stage, plain, model, tmp_path):
    """Where one holds more targets, or pairs of more weight, than another too."""
    params, rows = train(stage, tmp_path, model, microbatches=2)
    expected, expected_rows = plain[stage]
    assert len(rows) == len(expected_rows)
    for row, other in zip(rows, expected_rows, strict=True):
        for name in ("train/loss", "train/grad_norm", "train/count"):
            assert row[name] == pytest.approx(other[name], rel=1e-4), name
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4)  # noqa: E731
    jax.tree.map(close, params, expected)
    assert not all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True)
    ), "it was one batch"


@pytest.mark.parametrize("stage", STAGES)
def test_compute_in_bfloat16_trains_float32_params(stage, plain, model, tmp_path):
    params, rows = train(stage, tmp_path, model, compute_dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
    exact = plain[stage][1][0]
    assert rows[0]["train/grad_norm"] != exact["train/grad_norm"]
    assert rows[0]["train/grad_norm"] == pytest.approx(exact["train/grad_norm"], rel=0.05)
    assert rows[0]["train/loss"] == pytest.approx(exact["train/loss"], rel=0.02)
    if stage == "dpo":  # policy and reference begin as one, so both have to compute alike
        assert rows[0]["policy/reference_kl"] == pytest.approx(0, abs=1e-4)
