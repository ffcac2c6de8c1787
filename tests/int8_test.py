"""Kernels in 8 bits: how they are rounded; one function in training's and decoding's layout."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
import tiny_run
from fakes import GEMMA_LIKE, NEOX_LIKE, tiny_model
from lora_test import EXPERTS, RANK_3, drawn, hidden

from cai_jax.decoding import Engine
from cai_jax.models import int8, lora
from cai_jax.saved_params import load_params
from cai_jax.script import Choose, Force, Sample, Script


def rounded(params):
    """The float32 params that the kernels in 8 bits stand for."""
    layers = {
        name: {
            kind: qwix.dequantize(x) if isinstance(x, qwix.QArray) else x for kind, x in of.items()
        }
        for name, of in int8.quantized(params)["layers"].items()
    }
    return {**params, "layers": layers}


def test_each_output_has_its_scale():
    model = tiny_model(**EXPERTS)
    held = int8.quantized(model.params)["layers"]
    for name, axes in int8.SUMMED.items():
        if name not in held:
            continue
        kernel = np.asarray(model.params["layers"][name]["kernel"])
        found, summed = held[name]["kernel"], tuple(1 + axis for axis in axes)
        scale = np.abs(kernel).max(summed, keepdims=True) / 127
        assert found.qvalue.dtype == jnp.int8
        np.testing.assert_allclose(found.scale, scale, rtol=0.01)
        error = np.abs(qwix.dequantize(found) - kernel)
        assert (error <= 0.51 * scale).all() and error.max() > 0
    assert isinstance(held["router"]["kernel"], jax.Array)
    assert held["attention_norm"]["scale"].dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, GEMMA_LIKE, NEOX_LIKE, EXPERTS, {"kv_heads": 1}])
def test_products_with_integers_are_those_with_what_they_stand_for(changes):
    model = tiny_model(**changes)
    found = hidden(model.config, int8.quantized(model.params))
    expected = hidden(model.config, rounded(model.params))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - hidden(model.config, model.params)).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, EXPERTS])
def test_decoding_reads_them_too(changes):
    model = tiny_model(**changes)
    asked = Force("Say (A) or (B): "), Sample(8, temperature=0.0), Choose(("A", "BC"))
    script = Script(asked, "a")
    found, expected = (
        Engine(dataclasses.replace(model, params=params), slots=1).run([script])[0].segments
        for params in (int8.quantized(model.params), rounded(model.params))
    )
    assert found[1].tokens == expected[1].tokens
    np.testing.assert_allclose(found[2].option_logprobs, expected[2].option_logprobs, atol=1e-3)


def test_adapters_beside_them():
    model = tiny_model()
    adapted = lora.adapted(int8.quantized(model.params), RANK_3, 0, "test")
    joined = adapted.joined(drawn(adapted))
    of_whole = lora.adapted(rounded(model.params), RANK_3, 0, "test").joined(drawn(adapted))
    np.testing.assert_allclose(
        hidden(model.config, joined), hidden(model.config, of_whole), atol=1e-4
    )
    merged = lora.merged(lora.moved(joined, model.params))
    expected = lora.merged(lora.moved(of_whole, model.params))
    jax.tree.map(np.testing.assert_array_equal, merged, expected)


@pytest.mark.nightly
def test_a_run_asks_and_refers_to_them(tmp_path, tiny_cache):
    """The reference is no longer the policy's very start; with adapters it is, in 8 bits."""
    experiment, first = tiny_run.write(tmp_path), {}
    held, adapters = "--config.frozen_int8=True", "--config.lora.rank=2"
    for name, more in {"plain": [], "int8": [held], "adapters": [held, adapters]}.items():
        options = ["--config.ppo.updates=1", *more]
        workdir = tmp_path / name
        for verb in ("revise", "finetune", "compare", "train-pm", "train-rl"):
            ended = tiny_run.run_apart(experiment.command(verb, workdir, *options), tiny_cache)
            assert ended.returncode == 0, ended.stderr
        rows = "".join(f.read_text("utf-8") for f in (workdir / "ppo" / "rollouts").iterdir())
        first[name] = [abs(json.loads(row)["kl"]) for row in rows.splitlines()]
        assert all(
            x.dtype == np.float32 for x in jax.tree.leaves(load_params(workdir / "ppo/params")[0])
        )
    assert max(first["plain"]) < 1e-4 < min(first["int8"])
    assert max(first["adapters"]) < 1e-4
