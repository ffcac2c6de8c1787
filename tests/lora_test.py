"""Adapters: the model that they make, training them alone, PPO on one copy, decoding, peers."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from fakes import GEMMA_LIKE, NEOX_LIKE, tiny_model
from supervised_test import OPTIMIZER

from cai_jax.batch import pack
from cai_jax.decoding import Engine
from cai_jax.models import heads, lora, transformer
from cai_jax.models.lora import Lora
from cai_jax.models.scoring import score
from cai_jax.models.unstacked import unstacked
from cai_jax.saved_params import load_params
from cai_jax.stages import supervised
from cai_jax.training import fit, flops
from cai_jax.weights.safetensors import write_directory

pytestmark = pytest.mark.slow

RANK_3 = Lora(rank=3, alpha=6.0)
EXPERTS = {"experts": 4, "experts_per_token": 2}


def drawn(adapted, seed=0):
    """Adapters of which no part is zero."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(draw.normal(size=x.shape) * 0.3, jnp.float32), adapted.trained
    )


def hidden(config, params, dtype="float32"):
    tokens = jnp.arange(20).reshape(2, 10)
    places = jnp.broadcast_to(jnp.arange(10), (2, 10))
    return transformer.hidden_states(
        config, params, tokens, places, jnp.ones_like(tokens), dtype=dtype
    )


@pytest.mark.parametrize("changes", [{}, GEMMA_LIKE, NEOX_LIKE, EXPERTS])
def test_adapters_beside_kernels_compute_what_they_do_merged(changes):
    model = tiny_model(**changes)
    adapted = lora.adapted(model.params, RANK_3, 0, "test")
    fresh = hidden(model.config, adapted.joined(adapted.trained))
    np.testing.assert_allclose(fresh, hidden(model.config, model.params), atol=2e-5)
    joined = adapted.joined(drawn(adapted))
    merged = lora.merged(joined)
    assert jax.tree.structure(merged) == jax.tree.structure(model.params)
    found, expected = hidden(model.config, joined), hidden(model.config, merged)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(found - fresh).max() > 0.1
    q = model.params["layers"]["q"]["kernel"][1], merged["layers"]["q"]["kernel"][1]
    a, b = (drawn(adapted)["layers"]["q_lora"][name][1] for name in "ab")
    np.testing.assert_allclose(q[1] - q[0], 2 * np.einsum("dr,rhc->dhc", a, b), atol=1e-5)


def test_decoding_has_them_in_its_kernels():
    model = tiny_model()
    adapted = lora.adapted(model.params, RANK_3, 0, "test")
    joined = adapted.joined(drawn(adapted))
    found, expected = unstacked(joined, "float32"), unstacked(lora.merged(joined), "float32")
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found, expected)
    rounded = unstacked(joined, "bfloat16")["layers"][1]["o"]
    np.testing.assert_array_equal(rounded, expected["layers"][1]["o"].astype("bfloat16"))


def test_adapters_are_drawn_by_seed_and_stream():
    params = tiny_model().params
    a = lambda *key: lora.adapted(params, RANK_3, *key).trained["layers"]["v_lora"]["a"]  # noqa: E731
    np.testing.assert_array_equal(a(0, "x"), a(0, "x"))
    assert (a(0, "x") != a(1, "x")).all() and (a(0, "x") != a(0, "y")).all()
    assert np.abs(a(0, "x")).max() <= 32**-0.5
    assert lora.adapted(params, Lora(0, 1.0), 0, "x") is params


def test_a_scalar_head_is_trained_beside_them():
    model = tiny_model()
    adapted = lora.adapted(heads.with_scalar_head(model.params), RANK_3, 0, "test")
    assert "scalar_head" in adapted.trained and "scalar_head" not in adapted.base
    trained = drawn(adapted)
    mask = jnp.ones((2, 10), bool)
    of = lambda params: score(model.config, params, jnp.arange(20).reshape(2, 10), mask)  # noqa: E731
    joined = adapted.joined(trained)
    np.testing.assert_allclose(of(joined), of(lora.merged(joined)), rtol=1e-5)
    assert np.abs(of(joined)).min() > 0


def trained(model, tmp_path, adapters, dtype="float32", **options):
    """(params that a few steps of finetuning leave, the losses)."""
    draw, losses = np.random.default_rng(0), []
    texts = [draw.integers(0, 259, 12).tolist() for _ in range(16)]
    batches = pack([(text, [True] * 12) for text in texts], 24, 4)
    params = jax.tree.map(lambda x: jnp.array(x, dtype), model.params)
    found = fit.fit(
        lora.adapted(params, adapters, 0, "test"),
        supervised.make_loss(model.config, "full"),
        dataclasses.replace(OPTIMIZER, learning_rate=0.02),
        [jax.tree.map(np.asarray, batch) for batch in batches] * 8,
        tmp_path, 4, lambda done, total, metrics: losses.append(metrics["train/loss"]), **options,
    )  # fmt: skip
    return found, losses


def test_training_changes_kernels_by_a_product_of_the_rank_and_nothing_else(tmp_path):
    model = tiny_model()
    found, losses = trained(model, tmp_path, RANK_3)
    assert losses[-1] < losses[0] - 0.5
    for name, tensors in model.params["layers"].items():
        for kind, before in tensors.items():
            change = np.asarray(found["layers"][name][kind] - before)
            if kind != "kernel":
                assert not change.any()
                continue
            axes = 1 + lora.INPUTS[name]
            rows = int(np.prod(before.shape[1:axes]))
            for layer in change:
                sizes = np.linalg.svd(layer.reshape(rows, -1), compute_uv=False)
                assert sizes[2] > 1e-3 and sizes[3] < 1e-5
    for name in ("embed", "final_norm", "lm_head"):
        jax.tree.map(np.testing.assert_array_equal, found[name], model.params[name])
    kept = sum(f.stat().st_size for f in (tmp_path / "checkpoints" / "8").rglob("*"))
    assert kept < 0.8 * sum(x.nbytes for x in jax.tree.leaves(model.params))


def test_a_checkpoint_goes_on_where_it_was(tmp_path):
    model = tiny_model()
    whole, losses = trained(model, tmp_path / "a", RANK_3)
    for step in (tmp_path / "a" / "checkpoints").iterdir():
        if int(step.name) > 4:
            (tmp_path / "gone").mkdir(exist_ok=True)
            step.rename(tmp_path / "gone" / step.name)
    again, more = trained(model, tmp_path / "a", RANK_3)
    assert more == losses[-len(more) :]
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_what_is_frozen_may_be_bfloat16_and_keeps_what_it_learns(tmp_path):
    model = tiny_model()
    found, _ = trained(model, tmp_path, RANK_3, "bfloat16")
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    up = found["layers"]["up"]["kernel"]
    assert (up != up.astype("bfloat16")).mean() > 0.9  # merged in float32
    held = np.asarray(model.params["layers"]["up"]["kernel"].astype("bfloat16"), np.float32)
    assert np.linalg.matrix_rank(up[0] - held[0], tol=1e-4) == 3


def test_frozen_weights_count_two_thirds():
    params = tiny_model().params
    weights, *shape = flops.shape_of(params)
    adapted = lora.adapted(params, RANK_3, 0, "test")
    beside, *same = flops.shape_of(adapted.joined(adapted.trained))
    added = sum(x.size for x in jax.tree.leaves(adapted.trained))
    assert beside == weights * 2 // 3 + added and same == shape


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_cache):
    """The workdir of a whole run with adapters of rank 2."""
    folder = tmp_path_factory.mktemp("adapters")
    experiment, workdir = tiny_run.write(folder), folder / "run"
    options = ["--config.lora.rank=2", "--config.ppo.optimizer.learning_rate=0.01"]
    ended = tiny_run.run_apart(experiment.command("run", workdir, *options), tiny_cache)
    assert ended.returncode == 0, ended.stderr
    return workdir


def test_each_stage_of_a_run_adds_a_product_of_the_rank(run):
    """PPO's to SL-CAI, SL-CAI's and the preference model's to the start."""
    kernel = {}
    for stage in ("finetune", "preference_model", "ppo"):
        params = load_params(run / stage / "params")[0]
        kernel[stage] = np.asarray(params["layers"]["gate"]["kernel"])
    for stage, rank in {"ppo": 2, "preference_model": 4}.items():
        change = kernel[stage][0] - kernel["finetune"][0]
        assert np.linalg.matrix_rank(change, tol=1e-6) == rank


def test_peft_takes_a_run_s_adapters(run, tmp_path, tiny_cache):
    """SL-CAI's and PPO's as one, on the model that the run began with, are RL-CAI."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft", reason="pip install 'cai-jax[peers]'")
    from transformers import AutoModelForCausalLM

    export = ["export-weights", f"--workdir={run}"]
    assert tiny_run.run([*export, f"--to={tmp_path}/adapters", "--adapters"], tiny_cache) == 0
    assert tiny_run.run([*export, f"--to={tmp_path}/whole"], tiny_cache) == 0
    settings = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert settings["r"] == 4
    base = settings["base_model_name_or_path"]
    read = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)  # noqa: E731
    theirs = peft.PeftModel.from_pretrained(read(base), tmp_path / "adapters")
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        found, expected, start = (
            model(tokens).logits.numpy() for model in (theirs, read(tmp_path / "whole"), read(base))
        )
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected - start).max() > 0.01


def test_adapters_that_cannot_be_taken_apart_are_refused(run, tmp_path, tiny_cache, capsys):
    export = ["export-weights", f"--to={tmp_path}/adapters", "--adapters"]
    for more, sentence in (
        ([f"--workdir={run}", "--stage=preference_model"], "export it whole"),
        ([f"--workdir={run}", "--stage=dpo"], "has no finished 'dpo'"),
        (["--from=smollm2-135m-instruct"], "of a finished stage of --workdir"),
    ):
        assert tiny_run.run([*export, *more], tiny_cache) == 2
        assert sentence in capsys.readouterr().err


def test_it_is_what_peft_computes(tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft", reason="pip install 'cai-jax[peers]'")
    from transformers import AutoModelForCausalLM

    model = tiny_model(qkv_bias=True)
    write_directory(tmp_path, model.config, model.params, model.tokenizer, "")
    theirs = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32),
        peft.LoraConfig(
            r=3, lora_alpha=6.0, lora_dropout=0.0,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                            "down_proj"],
        ),
    )  # fmt: skip
    adapted = lora.adapted(model.params, RANK_3, 0, "test")
    ours = drawn(adapted)
    found = 0
    for name, parameter in theirs.named_parameters():
        if "lora_" not in name:
            continue
        layer, which = int(name.split(".layers.")[1].split(".")[0]), name.split(".lora_")[1][0]
        kernel = name.split("_proj")[0].split(".")[-1]
        value = np.asarray(ours["layers"][f"{kernel}_lora"][which.lower()][layer])
        value = value.reshape(-1, 3) if which == "A" else value.reshape(3, -1)
        with torch.no_grad():
            parameter.copy_(torch.tensor(value.T.copy()))
        found += 1
    assert found == 2 * 7 * model.config.layers
    tokens = np.arange(1, 41).reshape(2, 20)  # 0 would be padding
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    joined = dataclasses.replace(model, params=adapted.joined(ours))
    np.testing.assert_allclose(joined.logits(tokens), expected, atol=1e-4 * np.abs(expected).max())
    greedy = theirs.generate(
        torch.tensor(tokens[:1]), max_new_tokens=16, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )[0, 20:].tolist()  # fmt: skip
    merged = dataclasses.replace(model, params=lora.merged(joined.params))
    rows = tokens[:1].tolist()
    for _ in greedy:
        rows[0].append(int(merged.logits(np.array(rows))[0, -1].argmax()))
    assert rows[0][20:] == greedy
    assert Engine(joined, slots=1).dtype == np.float32
