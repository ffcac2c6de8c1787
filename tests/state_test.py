import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_test import CONFIG

from cai_jax import batch, logprobs, losses
from cai_jax.training import optimizer, state

VOCAB, WIDTH = 11, 8


def new_params(seed=0):
    generator = np.random.default_rng(seed)
    return {
        "embed": {"embedding": jnp.asarray(generator.normal(size=(VOCAB, WIDTH)), jnp.float32)},
        "head": {"kernel": jnp.asarray(generator.normal(size=(WIDTH, VOCAB)), jnp.float32)},
    }


def bigram_loss(params, b):
    logits = params["embed"]["embedding"][b.tokens] @ params["head"]["kernel"]
    each = logprobs.token_logprobs(logits, b.tokens)
    loss, count = losses.cross_entropy(each, b.loss_mask[:, 1:])
    return loss, {"count": count, "train/double": 2 * loss}


def ragged_batch(rows=8):
    generator = np.random.default_rng(0)
    examples = []
    for n in range(rows):
        size = 2 + n
        examples.append((generator.integers(0, VOCAB, size).tolist(), [True] * size))
    return batch.token_batch(examples, rows + 2)


def make(**changes):
    return optimizer.make(dataclasses.replace(CONFIG, **changes), 100)


def test_loss_goes_to_near_zero_on_one_batch():
    o = make(learning_rate=0.1, weight_decay=0.0)
    step = state.make_step(bigram_loss, o)
    s = state.create(new_params(), o)
    b = batch.token_batch([([1, 2, 3, 4, 5], [True] * 5), ([6, 7, 8, 9, 0], [True] * 5)], 5)
    for _ in range(200):
        s, metrics = step(s, b)
    assert s.step == 200 and s.step.dtype == jnp.int32
    assert metrics["train/loss"] < 0.01


def test_metrics():
    o = make(warmup_steps=10)
    step = state.make_step(bigram_loss, o)
    _, metrics = step(state.create(new_params(), o), ragged_batch())
    assert set(metrics) == {
        "train/loss",
        "train/grad_norm",
        "train/learning_rate",
        "train/count",
        "train/double",
    }
    np.testing.assert_allclose(metrics["train/learning_rate"], 0.001, rtol=1e-6)
    assert metrics["train/count"] == sum(range(1, 9))
    loss, gradients = jax.value_and_grad(lambda p: bigram_loss(p, ragged_batch())[0])(new_params())
    squares = sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(gradients))
    np.testing.assert_allclose(metrics["train/grad_norm"], np.sqrt(squares), rtol=1e-5)
    np.testing.assert_allclose(metrics["train/loss"], loss, rtol=1e-6)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_is_the_whole_batch(parts):
    # Rows have 1 to 8 targets: a mean of microbatch means would differ.
    o = make()
    whole, expected = state.make_step(bigram_loss, o)(state.create(new_params(), o), ragged_batch())
    split, metrics = state.make_step(bigram_loss, o, microbatches=parts)(
        state.create(new_params(), o), ragged_batch()
    )
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)
    chex.assert_trees_all_close(split.opt_state, whole.opt_state, rtol=1e-4, atol=1e-7)
    assert split.step == 1


def test_of_metrics_named_max_it_is_the_greatest():
    def loss_fn(params, part):
        loss, metrics = bigram_loss(params, part)
        return loss, {**metrics, "a/max_token": part.tokens.max().astype(jnp.float32)}

    o = make()
    _, metrics = state.make_step(loss_fn, o, microbatches=4)(
        state.create(new_params(), o), ragged_batch()
    )
    assert metrics["a/max_token"] == ragged_batch().tokens.max()


def test_a_microbatch_without_targets_counts_for_nothing():
    b = ragged_batch()
    rows = np.arange(8) % 2 == 0  # microbatch 1 of 2 holds the odd rows
    b = b.replace(loss_mask=b.loss_mask & rows[:, None])

    def loss_fn(params, part):
        loss, metrics = bigram_loss(params, part)
        return jnp.where(metrics["count"] > 0, loss, jnp.nan), metrics

    o = make()
    _, expected = state.make_step(bigram_loss, o)(state.create(new_params(), o), b)
    s, metrics = state.make_step(loss_fn, o, microbatches=2)(state.create(new_params(), o), b)
    np.testing.assert_allclose(metrics["train/loss"], expected["train/loss"], rtol=1e-5)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(s.params))


def test_accumulation_refuses_what_it_cannot_weigh():
    o = make()
    with pytest.raises(ValueError, match="8 rows does not divide into 3 microbatches"):
        state.make_step(bigram_loss, o, microbatches=3)(
            state.create(new_params(), o), ragged_batch()
        )
    with pytest.raises(ValueError, match="metrics hold 'count'"):
        state.make_step(lambda p, b: (bigram_loss(p, b)[0], {}), o, microbatches=2)(
            state.create(new_params(), o), ragged_batch()
        )


def test_frozen_params_are_arguments_without_gradient_or_optimiser_state():
    def loss_fn(params, b, reference):
        loss, metrics = bigram_loss(params, b)
        return loss + bigram_loss(reference, b)[0], metrics

    o = make()
    step = state.make_step(loss_fn, o)
    reference = new_params(seed=1)
    kept = jax.device_get(reference)
    s = state.create(new_params(), o)
    moments = sum(x.size for x in jax.tree.leaves(s.opt_state) if x.ndim)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(s.params))
    s, first = step(s, ragged_batch(), reference)
    chex.assert_trees_all_equal(jax.device_get(reference), kept)
    # Another reference, the same compiled step: it was not baked in as a constant.
    _, second = step(s, ragged_batch(), jax.tree.map(lambda x: 2 * x, reference))
    assert step._cache_size() == 1
    assert abs(float(first["train/loss"]) - float(second["train/loss"])) > 0.1


def test_the_state_is_donated():
    o = make()
    s = state.create(new_params(), o)
    old = s.params["head"]["kernel"]
    state.make_step(bigram_loss, o)(s, ragged_batch())
    assert old.is_deleted()
