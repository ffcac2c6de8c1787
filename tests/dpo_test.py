"""DPO: what it reads of a pair, and that it learns to tell responses apart as far as labels do."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import tiny_model
from preference_model_test import pair, separable

from cai_jax.conversation import Conversation
from cai_jax.encoding import example
from cai_jax.records import to_line
from cai_jax.stages import dpo
from cai_jax.stages.dpo import Reference, Settings
from cai_jax.training.optimizer import OptimizerConfig

OPTIMIZER = OptimizerConfig(
    kind="adamw", learning_rate=3e-3, schedule="constant", warmup_steps=1, weight_decay=0.0,
    b1=0.9, b2=0.95, eps=1e-8, clip_norm=1.0, moment_dtype="float32",
)  # fmt: skip
SETTINGS = Settings(
    epochs=1, batch_size=4, length=64, beta=0.1, ai_weight=1.0, human_weight=2.0, save_every=2,
    microbatches=1, remat="none", compute_dtype="float32", optimizer=OPTIMIZER,
)  # fmt: skip
PROMPT = Conversation().human("Hi there, hello")


def quiet(done, total, metrics=None):
    pass


def examples(model, comparisons, cut_off=()):
    """Texts of 33 to 64 tokens: one width, one program."""
    comparisons = [dataclasses.replace(c, prompt=PROMPT) for c in comparisons]
    return dpo.examples(SETTINGS, model.tokenizer, model.format, comparisons, cut_off)


def train(folder, model, data, settings=SETTINGS, progress=quiet):
    reference = dpo.reference_logprobs(settings, model.config, model.params, data, folder, quiet)
    params = dpo.train_dpo(
        settings, model.config, jax.tree.map(jnp.array, model.params), data, reference, folder, 0,
        progress,
    )  # fmt: skip
    return params, [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def logprobs(model, params, data, tmp_path) -> np.ndarray:
    return dpo.reference_logprobs(SETTINGS, model.config, params, data, tmp_path, quiet)


def test_separable_pairs_are_told_apart(tmp_path, model):
    """Over 95% right on pairs it has not seen."""
    settings = dataclasses.replace(SETTINGS, batch_size=16, epochs=3, save_every=1000)
    params, rows = train(tmp_path, model, examples(model, separable(160, seed=0)), settings)
    assert rows[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-5)
    for name in ("margin", "chosen_reward", "rejected_reward", "reference_kl"):
        assert rows[0][f"policy/{name}"] == pytest.approx(0, abs=1e-4), (
            "policy and reference differ"
        )
    assert rows[-1]["policy/accuracy"] > 0.95
    assert rows[-1]["policy/margin"] > 5 * rows[1]["policy/margin"] > 0
    assert rows[-1]["policy/reference_kl"] > 0
    fresh = examples(model, separable(100, seed=1))
    after, before = (
        logprobs(model, p, fresh, tmp_path / name)
        for p, name in ((params, "after"), (model.params, "before"))
    )
    a, b = (after - before).T
    right = (a > b) == np.array([e.prob_a > 0.5 for e in fresh])
    assert right.mean() > 0.95


def test_a_soft_label_is_where_training_ends(tmp_path, model):
    """One pair seen again and again: sigmoid of beta times the log-ratios' difference to prob_a."""
    one = examples(model, [pair(0, "aaa", "bbb", 0.7)])
    settings = dataclasses.replace(SETTINGS, epochs=120, save_every=1000)
    params, rows = train(tmp_path, model, one, settings)
    after, before = (
        logprobs(model, p, one, tmp_path / n) for p, n in ((params, "1"), (model.params, "0"))
    )
    ((a, b),) = settings.beta * (after - before)
    assert 1 / (1 + np.exp(b - a)) == pytest.approx(0.7, abs=0.02)
    entropy = -0.7 * np.log(0.7) - 0.3 * np.log(0.3)
    assert rows[-1]["train/loss"] == pytest.approx(entropy, abs=0.01)


def test_the_first_step_raises_the_better_response_and_a_tie_moves_nothing(model):
    loss = dpo.make_loss(model.config, SETTINGS)
    gradient = jax.jit(jax.grad(loss, has_aux=True))

    def moved(prob_a):
        data = examples(model, [pair(0, "Yes", "No", prob_a)])
        zero = np.zeros((1, 2), np.float32)
        (batch,) = dpo.batches(data, zero, SETTINGS, 0)
        start = np.asarray(dpo.jit_response_logprobs(model.config, model.params, batch))[:1]
        (batch,) = dpo.batches(data, start, SETTINGS, 0)
        gradients, _ = gradient(model.params, batch)
        params = jax.tree.map(lambda p, g: p - 1e-2 * g, model.params, gradients)
        after = np.asarray(dpo.jit_response_logprobs(model.config, params, batch))[:1]
        return (after - start)[0]

    a, b = moved(1.0)
    assert a > 1e-4 and b < -1e-4
    a, b = moved(0.0)
    assert a < -1e-4 and b > 1e-4
    np.testing.assert_allclose(moved(0.5), 0, atol=2e-5)


@pytest.mark.parametrize("chat", [False, True])
def test_a_responses_log_probability_is_the_sum_over_its_tokens_and_end(tmp_path, chat):
    """By one plain forward pass of each text alone, whatever its padding and its neighbours."""
    model = tiny_model(chat=chat)
    comparisons = [pair(0, "short", "a longer answer", 1.0), pair(1, "x" * 10, "y", 0.3)]
    data = examples(model, comparisons, cut_off={("1", "y")})
    assert [t in model.tokenizer.end_ids for e in data for t in (e.a[-1], e.b[-1])] == [
        True, True, True, False,
    ]  # fmt: skip
    found = logprobs(model, model.params, data, tmp_path)
    for c, sums in zip(comparisons, found, strict=True):
        for text, total in zip((c.response_a, c.response_b), sums, strict=True):
            whole = (c.id, text) != ("1", "y")
            tokens, mask = example(model.tokenizer, model.format, PROMPT, text, whole)
            padded = np.array([tokens + [0] * (64 - len(tokens))])
            table = jax.nn.log_softmax(model.logits(padded)[0])
            each = [float(table[n - 1, t]) for n, t in enumerate(tokens) if mask[n]]
            assert len(each) == len(text) + whole + (not chat)  # plain text begins with a space
            assert total == pytest.approx(sum(each), abs=1e-3)


def test_weights_by_source_and_pairs_that_are_too_long(model):
    comparisons = [
        pair(0, "a", "b", 0.2),
        pair(1, "c", "d", 1.0, "human"),
        pair(2, "e" * 100, "f", 0.0),
        pair(3, "g", "h" * 100, 0.0),
    ]
    found = examples(model, comparisons)
    assert [(e.id, e.prob_a, e.weight) for e in found] == [("0", 0.2, 1.0), ("1", 1.0, 2.0)]
    prompt = example(model.tokenizer, model.format, PROMPT, "")[1].count(False)
    assert {e.prompt_tokens for e in found} == {prompt}
    with pytest.raises(ValueError, match=r"none of 2 comparisons fits dpo\.length"):
        examples(model, comparisons[2:])


def test_every_pair_comes_once_an_epoch_with_its_own_reference(model):
    data = examples(model, [pair(n, chr(97 + n), chr(65 + n), n / 10) for n in range(10)])
    reference = np.arange(20, dtype=np.float32).reshape(10, 2)
    settings = dataclasses.replace(SETTINGS, epochs=2)
    found = dpo.batches(data, reference, settings, 0)
    assert [float(b.comparisons.weight.sum()) for b in found[:3]].count(2.0) == 1
    orders = []
    for epoch in (found[:3], found[3:]):
        rows = [
            (int(b.ref_logprobs[n, 0]), int(b.ref_logprobs[n, 1]), float(b.comparisons.prob_a[n]))
            for b in epoch
            for n in range(4)
            if b.comparisons.weight[n] > 0
        ]
        assert sorted(rows) == [(2 * n, 2 * n + 1, pytest.approx(n / 10)) for n in range(10)]
        orders.append([row[0] for row in rows])
    assert orders[0] != orders[1]


def test_the_reference_is_computed_once_and_kept(tmp_path, model, monkeypatch):
    """Each shard as it is made: a killed run goes on with the next."""
    data = examples(model, [pair(n, "a" * (n + 1), "b" * (20 - n), 0.5) for n in range(20)])
    found = logprobs(model, model.params, data, tmp_path)
    kept = sorted(path.name for path in (tmp_path / "reference").iterdir())
    assert kept == [f"{n:05d}-of-00003.jsonl" for n in range(3)]  # of save_every batches each
    (tmp_path / "reference" / kept[1]).unlink()
    real, calls = dpo.jit_response_logprobs, []
    noted = lambda *args, **named: calls.append(1) or real(*args, **named)  # noqa: E731
    monkeypatch.setattr(dpo, "jit_response_logprobs", noted)
    np.testing.assert_array_equal(logprobs(model, model.params, data, tmp_path), found)
    assert len(calls) == 2
    again = logprobs(model, model.params, data[::-1], tmp_path / "reversed")
    np.testing.assert_allclose(again[::-1], found, atol=1e-4)
    whole = Reference("x", float(np.float32(-1234.5678)), -0.1)
    assert str(np.float32(whole.logprob_a)) in to_line(whole), "six digits are not enough"


def test_a_beta_that_cannot_be():
    with pytest.raises(ValueError, match=r"dpo\.beta is 0\.0; it must be above 0"):
        dataclasses.replace(SETTINGS, beta=0.0)
