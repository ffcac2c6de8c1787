import collections
from types import SimpleNamespace

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


def random_pairs(n: int = 64):
    """Log-probabilities of whole responses, two of a policy and two of a reference, and labels."""
    a, b = -20 + 8 * draw(n), -25 + 8 * draw(n, seed=1)
    ra, rb = a + 3 * draw(n, seed=2), b + 3 * draw(n, seed=3)
    return a, b, ra, rb, jax.nn.sigmoid(2 * draw(n, seed=4))


def test_dpo_metrics_by_hand():
    # Rewards at beta 2: A 2, 4, -2, 0; B 0, 6, 2, 8. The second and third pairs favour B.
    a, b = jnp.array([1.0, 2, -1, 0]), jnp.array([0.0, 3, 1, 4])
    p, w = jnp.array([0.9, 0.2, 0.4, 0.5]), jnp.array([1.0, 1, 2, 1])
    _, metrics = losses.dpo_loss(a, b, 0 * a, 0 * b, p, w, 2.0)
    found = {name: float(value) for name, value in metrics.items()}
    assert found == pytest.approx({
        "policy/chosen_reward": (2 + 6 + 2 * 2) / 4,
        "policy/rejected_reward": (0 + 4 + 2 * -2) / 4,
        "policy/margin": (2 + 2 + 2 * 4) / 4,
        "policy/accuracy": 1.0,
        "policy/reference_kl": -(1 + 5 + 2 * 0 + 4) / 2 / 5,
        "count": 5.0,
    })  # fmt: skip
    _, metrics = losses.dpo_loss(a, b, 0 * a, 0 * b, 1 - p, w, 2.0)
    assert metrics["policy/accuracy"] == 0 and metrics["policy/margin"] == -3


def test_dpo_gradient_is_that_of_the_paper():
    """Rafailov et al., section 4, with a soft label: beta * (sigmoid(h) - p) for log pi(A)."""
    a, b, ra, rb, p = random_pairs()
    w = jnp.abs(draw(64, seed=5)).at[7].set(0.0)
    gradients = jax.grad(lambda *x: losses.dpo_loss(*x, ra, rb, p, w, 0.1)[0], (0, 1))(a, b)
    h = 0.1 * ((a - ra) - (b - rb))
    expected = 0.1 * w * (jax.nn.sigmoid(h) - p) / w.sum()
    np.testing.assert_allclose(gradients, (expected, -expected), rtol=1e-4, atol=1e-7)
    assert gradients[0][7] == 0.0


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_soft_dpo_equals_pytorchs_logistic_loss(beta):
    torch = pytest.importorskip("torch")
    a, b, ra, rb, p = (np.array(x) for x in random_pairs())
    loss, _ = losses.dpo_loss(*random_pairs(), jnp.ones(64), beta)
    logits = beta * ((torch.tensor(a) - torch.tensor(ra)) - (torch.tensor(b) - torch.tensor(rb)))
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(p))
    np.testing.assert_allclose(loss, theirs, rtol=0, atol=1e-5)


def by_trl(chosen, rejected, ref_chosen, ref_rejected, beta, kind, smoothing=0.0):
    """(loss, metrics) of TRL's own trainer, given a model that says these log-probabilities.

    Each response is one token after a prompt of one.
    """
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("trl.trainer.dpo_trainer")
    n = len(chosen)
    rows = torch.tensor(np.concatenate([chosen, rejected]))[:, None]
    output = SimpleNamespace(
        log_probs=rows, entropy=torch.zeros(2 * n, 1), mean_logits=torch.zeros(2 * n, 1),
        is_top1=torch.zeros(2 * n, 1, dtype=torch.bool),
    )  # fmt: skip
    alone = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=alone, aux_loss_enabled=False,
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", beta=beta,
        loss_types=[kind], loss_weights=[1.0], label_smoothing=smoothing, use_weighting=False,
        _metrics={"eval": collections.defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    both = torch.ones(2 * n, 2, dtype=torch.long)
    inputs = {
        "input_ids": both, "attention_mask": both,
        "completion_mask": torch.tensor([[0, 1]] * 2 * n),
        "ref_chosen_logps": torch.tensor(np.array(ref_chosen)),
        "ref_rejected_logps": torch.tensor(np.array(ref_rejected)),
    }  # fmt: skip
    loss = module.DPOTrainer._compute_loss(trainer, lambda **inputs: output, inputs, False)
    return float(loss), {k: v[-1] for k, v in trainer._metrics["eval"].items()}


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_dpo_equals_trl(beta):
    """TRL (in the extra "bench") has DPO and the robust form, which subtracts the flipped loss."""
    a, b, ra, rb, p = random_pairs()
    ones = jnp.ones(64)
    hard, metrics = losses.dpo_loss(a, b, ra, rb, ones, ones, beta)
    theirs, said = by_trl(a, b, ra, rb, beta, "sigmoid")
    np.testing.assert_allclose(hard, theirs, rtol=0, atol=1e-5)
    for ours, name in (
        ("chosen_reward", "chosen"), ("rejected_reward", "rejected"), ("margin", "margins"),
        ("accuracy", "accuracies"),
    ):  # fmt: skip
        np.testing.assert_allclose(metrics[f"policy/{ours}"], said[f"rewards/{name}"], atol=1e-5)
    smoothed, _ = losses.dpo_loss(a, b, ra, rb, 0.9 * ones, ones, beta)
    flipped, _ = losses.dpo_loss(a, b, ra, rb, 0 * ones, ones, beta)
    robust, _ = by_trl(a, b, ra, rb, beta, "robust", 0.1)
    np.testing.assert_allclose((0.9 * hard - 0.1 * flipped) / 0.8, robust, rtol=0, atol=1e-5)
    np.testing.assert_allclose(smoothed - 0.1 * flipped, 0.9 * theirs, rtol=0, atol=1e-5)
    # Of soft labels: TRL's loss with A chosen and with B chosen, as likely as they are.
    each = [
        q * by_trl(*(x[i : i + 1] for x in (a, b, ra, rb)), beta, "sigmoid")[0]
        + (1 - q) * by_trl(*(x[i : i + 1] for x in (b, a, rb, ra)), beta, "sigmoid")[0]
        for i, q in enumerate(p.tolist())
    ]
    soft, _ = losses.dpo_loss(a, b, ra, rb, p, ones, beta)
    np.testing.assert_allclose(soft, np.mean(each), rtol=0, atol=1e-5)


def test_dpo_gives_the_numbers_that_trl_gave():
    """Of TRL 1.16.0, by `by_trl`: each pair's loss with A chosen, and with B chosen."""
    a, b = jnp.array([-10.0, -7.5, -20.25]), jnp.array([-12.0, -7.0, -18.5])
    ra, rb = jnp.array([-11.0, -7.0, -19.0]), jnp.array([-11.5, -9.0, -19.0])
    p, ones = jnp.array([0.9, 0.4, 0.5]), jnp.ones(3)
    for beta, chosen, other in (
        (0.1, (0.620957077, 0.825939417, 0.784470439), (0.770957112, 0.575939417, 0.609470427)),
        (0.5, (0.386871010, 1.501929045, 1.223444581), (1.136870980, 0.251929075, 0.348444581)),
    ):
        hard, _ = losses.dpo_loss(a, b, ra, rb, ones, ones, beta)
        np.testing.assert_allclose(hard, np.mean(chosen), rtol=0, atol=1e-6)
        soft, _ = losses.dpo_loss(a, b, ra, rb, p, ones, beta)
        expected = np.mean(p * np.array(chosen) + (1 - p) * np.array(other))
        np.testing.assert_allclose(soft, expected, rtol=0, atol=1e-6)
    # At beta 0.5, A chosen: TRL's rewards -0.125 and 0.3333333, accuracy 1/3.
    _, metrics = losses.dpo_loss(a, b, ra, rb, ones, ones, 0.5)
    rewards = [float(metrics[f"policy/{name}_reward"]) for name in ("chosen", "rejected")]
    assert rewards == pytest.approx([-0.125, 1 / 3], abs=1e-6)
    assert metrics["policy/margin"] == pytest.approx(-0.4583333, abs=1e-6)
    assert metrics["policy/accuracy"] == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_conservative_dpo_equals_tunix(monkeypatch, smoothing):
    """Tunix (in the extra "bench") has the conservative form, given the log-probabilities."""
    module = pytest.importorskip("tunix.sft.dpo.dpo_trainer")
    a, b, ra, rb, _ = random_pairs()
    monkeypatch.setattr(module, "compute_logps", lambda *args, **more: (a, b))
    unread = collections.defaultdict(lambda: None, ref_chosen_logps=ra, ref_rejected_logps=rb)
    batch = type("Batch", (), {"__getattr__": lambda self, name: unread[name]})()
    theirs, said = module.dpo_loss_fn(None, batch, "dpo", 0.1, label_smoothing=smoothing)
    loss, metrics = losses.dpo_loss(a, b, ra, rb, jnp.full(64, 1 - smoothing), jnp.ones(64), 0.1)
    np.testing.assert_allclose(loss, theirs, rtol=0, atol=1e-5)
    for ours, name in (("margin", "margin"), ("accuracy", "accuracy"), ("chosen_reward", "chosen")):
        np.testing.assert_allclose(metrics[f"policy/{ours}"], said[f"rewards/{name}"], atol=1e-5)
