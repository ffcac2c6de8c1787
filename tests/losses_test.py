import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cai_jax import logprobs, losses


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_cross_entropy_is_a_mean_over_targets_not_over_rows():
    lp = jnp.array([[-1.0, -2.0, -3.0], [-10.0, -20.0, -30.0]])
    mask = jnp.array([[True, True, True], [True, False, False]])
    loss, count = losses.cross_entropy(lp, mask)
    assert loss == 4.0 and count == 4.0


def test_cross_entropy_equals_optax_and_masked_tokens_get_no_gradient():
    logits = draw(2, 6, 9)
    ids = jnp.asarray(np.random.default_rng(1).integers(0, 9, (2, 6)))
    mask = jnp.array([[False, True, True, False, True, False], [False, True] + [False] * 4])

    def ours(logits):
        return losses.cross_entropy(logprobs.token_logprobs(logits, ids), mask[:, 1:])[0]

    def theirs(logits):
        each = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
        return (each * mask[:, 1:]).sum() / 4

    np.testing.assert_allclose(ours(logits), theirs(logits), rtol=1e-6)
    gradient = jax.grad(ours)(logits)
    np.testing.assert_allclose(gradient, jax.grad(theirs)(logits), atol=1e-6)
    # Logits at t predict t + 1: exactly the positions before targets move.
    moved = np.abs(np.asarray(gradient)).sum(-1) > 0
    assert (moved[:, :-1] == np.asarray(mask[:, 1:])).all() and not moved[:, -1].any()


def test_masked_values_cannot_leak_even_when_not_finite():
    lp = jnp.array([-1.0, -jnp.inf, jnp.nan])
    mask = jnp.array([True, False, False])
    assert losses.cross_entropy(lp, mask)[0] == 1.0
    gradient = jax.grad(lambda x: losses.cross_entropy(x, mask)[0])(lp)
    assert gradient.tolist() == [-1.0, 0.0, 0.0]


def test_an_all_masked_batch_has_loss_zero():
    loss, count = losses.cross_entropy(jnp.array([[-5.0]]), jnp.array([[False]]))
    assert loss == 0.0 and count == 0.0


def test_soft_bradley_terry_literals():
    one = jnp.ones(1)
    tied, total = losses.soft_bradley_terry(0 * one, 0 * one, one, one)
    np.testing.assert_allclose(tied, np.log(2), rtol=1e-6)
    assert total == 1.0
    hard, _ = losses.soft_bradley_terry(2 * one, one, one, one)
    np.testing.assert_allclose(hard, np.log1p(np.exp(-1.0)), rtol=1e-6)
    flipped, _ = losses.soft_bradley_terry(2 * one, one, 0 * one, one)
    np.testing.assert_allclose(flipped, np.log1p(np.exp(1.0)), rtol=1e-6)
    far, _ = losses.soft_bradley_terry(1e4 * one, -1e4 * one, 0 * one, one)
    np.testing.assert_allclose(far, 2e4)


def test_soft_bradley_terry_equals_optax_with_weights():
    a, b = draw(16), draw(16, seed=1)
    p = jax.nn.sigmoid(draw(16, seed=2))
    w = jnp.abs(draw(16, seed=3)).at[3].set(0.0)
    loss, total = losses.soft_bradley_terry(a, b, p, w)
    expected = (w * optax.sigmoid_binary_cross_entropy(a - b, p)).sum() / w.sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(total, w.sum())
    gradient = jax.grad(lambda a: losses.soft_bradley_terry(a, b, p, w)[0])(a)
    assert gradient[3] == 0 and (jnp.delete(gradient, 3) != 0).all()


def test_soft_bradley_terry_is_lowest_at_the_logit_of_the_label():
    one = jnp.ones(1)
    # Clamped to 0.6: the gap is capped at 0.405 (paper-spec, section 0).
    gap = jnp.log(0.6 / 0.4) * one
    gradient = jax.grad(lambda g: losses.soft_bradley_terry(g, 0 * one, 0.6 * one, one)[0])(gap)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_soft_bradley_terry_refuses_integer_scores():
    with pytest.raises(AssertionError):
        losses.soft_bradley_terry(jnp.ones(1, int), jnp.ones(1), jnp.ones(1), jnp.ones(1))


def test_squared_error_literals():
    score, rating = jnp.array([1.0, 4.0, 9.0]), jnp.array([3.0, 3.5, 0.0])
    loss, total = losses.squared_error(score, rating, jnp.array([1.0, 2.0, 0.0]))
    assert loss == (4.0 + 2 * 0.25) / 3 and total == 3.0
    none, total = losses.squared_error(score, rating, jnp.zeros(3))
    assert none == 0.0 and total == 0.0


def test_squared_error_equals_numpy_and_fillers_get_no_gradient():
    score, rating, weight = draw(16), draw(16, seed=1), jnp.abs(draw(16, seed=2)).at[5].set(0.0)
    loss, _ = losses.squared_error(score, rating, weight)
    expected = np.average((np.asarray(score) - np.asarray(rating)) ** 2, weights=weight)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    gradient = jax.grad(lambda s: losses.squared_error(s, rating, weight)[0])(score)
    closed = 2 * weight * (score - rating) / weight.sum()
    np.testing.assert_allclose(gradient, closed, rtol=1e-5, atol=1e-7)
    assert gradient[5] == 0.0
    with pytest.raises(AssertionError):
        losses.squared_error(jnp.ones(1, int), jnp.ones(1), jnp.ones(1))


def test_clipped_policy_loss_by_hand():
    ratios = jnp.array([[1.5, 0.5, 1.5, 0.5, 1.1]])
    advantages = jnp.array([[1.0, 1.0, -1.0, -1.0, 2.0]])
    mask = jnp.ones((1, 5), bool)
    loss, metrics = losses.clipped_policy_loss(
        jnp.log(ratios), jnp.zeros((1, 5)), advantages, mask, 0.2
    )
    # min(ratio A, clipped A): 1.2, 0.5, -1.5, -0.8, 2.2
    np.testing.assert_allclose(loss, -(1.2 + 0.5 - 1.5 - 0.8 + 2.2) / 5, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/clip_fraction"], 2 / 5, rtol=1e-6)
    np.testing.assert_allclose(metrics["policy/ratio"], 5.1 / 5, rtol=1e-6)

    def only(lp):
        return losses.clipped_policy_loss(lp, jnp.zeros((1, 5)), advantages, mask, 0.2)[0]

    moved = np.asarray(jax.grad(only)(jnp.log(ratios)))[0] != 0
    assert moved.tolist() == [False, True, True, False, True]


def test_policy_gradient_at_ratio_one_is_the_advantage_over_the_count():
    advantages = draw(2, 4)
    mask = jnp.array([[True, True, False, False], [True, False, True, False]])
    lp = -jnp.abs(draw(2, 4, seed=1))
    lp_bad = jnp.where(mask, lp, jnp.nan)  # what lies under the mask is never read

    def loss(x):
        return losses.clipped_policy_loss(x, lp, advantages, mask, 0.2)[0]

    expected = jnp.where(mask, -advantages / 4, 0.0)
    np.testing.assert_allclose(jax.grad(loss)(lp), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(lp_bad), expected, rtol=1e-5)


def test_policy_loss_sends_no_gradient_to_what_is_fixed():
    lp, mask = -jnp.abs(draw(1, 3)), jnp.ones((1, 3), bool)
    gradients = jax.grad(
        lambda old, adv: losses.clipped_policy_loss(lp, old, adv, mask, 0.2)[0], (0, 1)
    )(lp, draw(1, 3, seed=1))
    chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))


def test_clipped_value_loss_by_hand():
    values = jnp.array([[2.0, 0.1, 9.0]])
    old = jnp.zeros((1, 3))
    returns = jnp.array([[3.0, 1.0, 0.0]])
    mask = jnp.array([[True, True, False]])
    loss, metrics = losses.clipped_value_loss(values, old, returns, mask, 0.2)
    # clipped values 0.2 and 0.1: errors max(1, 2.8^2) and max(0.81, 0.81)
    np.testing.assert_allclose(loss, 0.5 * (2.8**2 + 0.81) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["value/clip_fraction"], 0.5)
    np.testing.assert_allclose(metrics["value/error"], np.sqrt((1 + 0.81) / 2), rtol=1e-5)
    gradient = jax.grad(lambda v: losses.clipped_value_loss(v, old, returns, mask, 0.2)[0])(values)
    np.testing.assert_allclose(gradient, [[0.0, -0.45, 0.0]], rtol=1e-5)


def test_value_loss_gradient_is_finite_at_zero_error():
    x, mask = jnp.ones((1, 2)), jnp.ones((1, 2), bool)
    gradient = jax.grad(lambda v: sum(
        jax.tree.leaves(losses.clipped_value_loss(v, x, x, mask, 0.2))))(x)  # fmt: skip
    assert jnp.isfinite(gradient).all()


def test_dpo_literals():
    a, b, ra, rb = (jnp.array([x]) for x in (-1.0, -3.0, -2.0, -2.5))
    one = jnp.ones(1)
    # h = 0.1 * ((-1 + 2) - (-3 + 2.5)) = 0.15
    loss, metrics = losses.dpo_loss(a, b, ra, rb, one, one, 0.1)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-0.15)), rtol=1e-6)
    np.testing.assert_allclose(metrics["policy/margin"], 0.15, rtol=1e-6)
    conservative, _ = losses.dpo_loss(a, b, ra, rb, 0.9 * one, one, 0.1)
    expected = 0.9 * np.log1p(np.exp(-0.15)) + 0.1 * np.log1p(np.exp(0.15))
    np.testing.assert_allclose(conservative, expected, rtol=1e-6)
    swapped, _ = losses.dpo_loss(b, a, rb, ra, 0.1 * one, one, 0.1)
    np.testing.assert_allclose(swapped, conservative, rtol=1e-6)


def test_dpo_weight_zero_counts_for_nothing_and_the_reference_gets_no_gradient():
    a, b, ra, rb = (draw(3, seed=s) for s in range(4))
    p, w = jnp.array([1.0, 0.2, 0.7]), jnp.array([1.0, 2.0, 0.0])
    loss, metrics = losses.dpo_loss(a, b, ra, rb, p, w, 0.3)
    fewer, _ = losses.dpo_loss(a[:2], b[:2], ra[:2], rb[:2], p[:2], w[:2], 0.3)
    np.testing.assert_allclose(loss, fewer, rtol=1e-6)
    assert metrics["count"] == 3.0
    gradients = jax.grad(lambda *r: losses.dpo_loss(a, b, *r, p, w, 0.3)[0], (0, 1))(ra, rb)
    chex.assert_trees_all_equal(gradients, (jnp.zeros(3), jnp.zeros(3)))
