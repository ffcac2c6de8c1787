"""Losses, advantages and KL estimators beside other libraries' own, and beside plain loops.

TRL and tunix are in the extra "bench", transformers in "test". TRL has PPO up to 1.9; its losses
and its GAE stand inside a loop that cannot be called, so these are loops of our own here.
"""

import collections
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cai_jax import logprobs, losses, returns

CLIP = 0.2
CLOSE = {"rtol": 0, "atol": 1e-5}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def masks(rows: int, length: int) -> np.ndarray:
    """bool[rows, length]: responses of every length from 1, then with holes."""
    mask = np.arange(length) < 1 + np.arange(rows)[:, None] % length
    mask[-1] = np.random.default_rng(9).random(length) < 0.5
    return mask


def rollout(rows: int = 8, length: int = 6) -> dict[str, np.ndarray]:
    """Random log-probabilities whose ratios pass the clip both ways, and what goes with them."""
    return {
        "new": -np.abs(draw(rows, length)),
        "old": -np.abs(draw(rows, length)) + 0.4 * draw(rows, length, seed=1),
        "advantages": draw(rows, length, seed=2),
        "values": draw(rows, length, seed=3),
        "old_values": draw(rows, length, seed=3) + 0.3 * draw(rows, length, seed=4),
        "returns": draw(rows, length, seed=5),
        "mask": masks(rows, length),
    }


def test_token_cross_entropy_with_masks_equals_optax_and_transformers():
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.loss.loss_utils")
    logits = 3 * draw(4, 9, 17)
    ids = np.random.default_rng(1).integers(0, 17, (4, 9))
    mask = np.random.default_rng(2).random((4, 9)) < 0.6
    ours, count = losses.cross_entropy(
        logprobs.token_logprobs(jnp.array(logits), jnp.array(ids)), jnp.array(mask[:, 1:])
    )
    each = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
    np.testing.assert_allclose(ours, each[mask[:, 1:]].mean(), **CLOSE)
    labels = torch.tensor(np.where(mask, ids, -100))
    theirs = module.ForCausalLMLoss(torch.tensor(logits), labels, vocab_size=17)
    np.testing.assert_allclose(ours, theirs, **CLOSE)
    # As its trainer has it, over the targets of several batches.
    part = module.ForCausalLMLoss(torch.tensor(logits), labels, 17, num_items_in_batch=100)
    np.testing.assert_allclose(ours * count / 100, part, **CLOSE)


@pytest.mark.parametrize("chosen", ["a", "b"])
def test_bradley_terry_equals_trls_reward_loss(chosen):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("trl.trainer.reward_trainer")
    a, b = 4 * draw(64), 4 * draw(64, seed=1)
    alone = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=alone, _total_train_tokens=0,
        args=SimpleNamespace(center_rewards_coefficient=None),
        _metrics={"eval": collections.defaultdict(list)},
    )  # fmt: skip
    scores = np.concatenate([a, b] if chosen == "a" else [b, a])[:, None]
    output = SimpleNamespace(logits=torch.tensor(scores))
    theirs = module.RewardTrainer.compute_loss(trainer, lambda **inputs: output, {})
    label, ones = np.full(64, float(chosen == "a"), np.float32), np.ones(64, np.float32)
    ours, _ = losses.soft_bradley_terry(*map(jnp.array, (a, b, label, ones)))
    np.testing.assert_allclose(ours, theirs, **CLOSE)
    accuracy = (a > b).mean() if chosen == "a" else (b > a).mean()
    assert trainer._metrics["eval"]["accuracy"] == [pytest.approx(accuracy)]


def test_soft_bradley_terry_is_hard_losses_weighted_by_the_label():
    a, b, p = draw(64), draw(64, seed=1), np.random.default_rng(2).random(64).astype(np.float32)
    expected = np.mean([
        q * math.log1p(math.exp(y - x)) + (1 - q) * math.log1p(math.exp(x - y))
        for x, y, q in zip(a.tolist(), b.tolist(), p.tolist(), strict=True)
    ])  # fmt: skip
    ones = jnp.ones(64)
    ours, _ = losses.soft_bradley_terry(*map(jnp.array, (a, b, p)), ones)
    np.testing.assert_allclose(ours, expected, **CLOSE)


def by_loop(one, r: dict[str, np.ndarray]) -> float:
    """The mean of one(row, token) over the mask."""
    rows, length = r["mask"].shape
    found = [one(b, t) for b in range(rows) for t in range(length) if r["mask"][b, t]]
    return sum(found) / len(found)


def policy_term(r, b, t):
    ratio = math.exp(float(r["new"][b, t]) - float(r["old"][b, t]))
    advantage = float(r["advantages"][b, t])
    bounded = min(max(ratio, 1 - CLIP), 1 + CLIP)
    return -min(ratio * advantage, bounded * advantage), ratio, bounded * advantage


def test_clipped_policy_loss_equals_a_plain_loop():
    r = rollout()
    loss, metrics = losses.clipped_policy_loss(
        *(jnp.array(r[k]) for k in ("new", "old", "advantages", "mask")), CLIP
    )
    np.testing.assert_allclose(loss, by_loop(lambda b, t: policy_term(r, b, t)[0], r), **CLOSE)
    ratio = by_loop(lambda b, t: policy_term(r, b, t)[1], r)
    np.testing.assert_allclose(metrics["policy/ratio"], ratio, **CLOSE)

    def clipped(b, t):
        _, ratio, bounded = policy_term(r, b, t)
        return bounded < ratio * float(r["advantages"][b, t])

    share = by_loop(clipped, r)
    assert 0.1 < share < 0.9
    np.testing.assert_allclose(metrics["policy/clip_fraction"], share, **CLOSE)


def test_clipped_value_loss_equals_a_plain_loop():
    r = rollout()

    def one(b, t):
        value, old, target = (float(r[k][b, t]) for k in ("values", "old_values", "returns"))
        bounded = old + min(max(value - old, -CLIP), CLIP)
        return 0.5 * max((value - target) ** 2, (bounded - target) ** 2)

    loss, _ = losses.clipped_value_loss(
        *(jnp.array(r[k]) for k in ("values", "old_values", "returns", "mask")), CLIP
    )
    np.testing.assert_allclose(loss, by_loop(one, r), **CLOSE)


def test_whitening_equals_a_plain_loop():
    r = rollout()
    x, mask = 5 + 3 * r["advantages"].astype(float), r["mask"]
    mean = by_loop(lambda b, t: x[b, t], r)
    deviation = math.sqrt(by_loop(lambda b, t: (x[b, t] - mean) ** 2, r))
    expected = [
        [(x[b, t] - mean) / deviation if mask[b, t] else 0.0 for t in range(x.shape[1])]
        for b in range(len(x))
    ]
    found = returns.whiten(jnp.array(x, jnp.float32), jnp.array(mask))
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_whitening_equals_trls_but_for_its_count_less_one():
    """It divides by the count less one, as for a sample; n - 1 over n is the whole difference."""
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("trl.experimental.ppo.ppo_trainer", reason="TRL 1.9 has PPO")
    r = rollout()
    mask, count = torch.tensor(r["mask"]), r["mask"].sum()
    theirs = module.masked_whiten(torch.tensor(r["advantages"]), mask)
    ours = returns.whiten(jnp.array(r["advantages"]), jnp.array(r["mask"]))
    expected = np.where(r["mask"], theirs * math.sqrt(count / (count - 1)), 0)
    np.testing.assert_allclose(ours, expected, **CLOSE)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5)])
def test_gae_and_whitening_equal_tunix(gamma, lam):
    module = pytest.importorskip("tunix.rl.algo_core")
    rewards, values, mask = draw(8, 6), draw(8, 6, seed=1), masks(8, 6)
    theirs, targets = module.compute_gae_advantages(rewards, values, mask * 1.0, gamma, lam)
    advantages, found = returns.gae(*map(jnp.array, (rewards, values, mask)), gamma, lam)
    np.testing.assert_allclose(np.array(found)[mask], np.array(targets)[mask], **CLOSE)
    ours = np.array(returns.whiten(advantages, jnp.array(mask)))
    count = mask.sum()  # it divides by the count less one
    expected = np.array(theirs) * math.sqrt(count / (count - 1))
    np.testing.assert_allclose(ours[mask], expected[mask], **CLOSE)


@pytest.fixture
def tunix_ppo(monkeypatch):
    """Its PPO losses, given a model that says the rollout's log-probabilities and values."""
    module = pytest.importorskip("tunix.rl.algo_core")
    r = rollout()
    monkeypatch.setattr(module.nnx, "split", lambda model: (None, None))
    said = (jnp.array(r["new"]), None)
    monkeypatch.setattr(module.common, "compute_per_token_logps", lambda *a, **more: said)
    values = jnp.array(np.pad(r["values"], ((0, 0), (0, 1))))  # after the last token too
    monkeypatch.setattr(module.common, "compute_score", lambda *a, **more: values)
    batch = SimpleNamespace(
        prompt_ids=None, completion_ids=np.zeros_like(r["new"]), completion_mask=r["mask"] * 1.0,
        advantages=r["advantages"], old_per_token_logps=r["old"], ref_per_token_logps=None,
        old_values=r["old_values"], returns=r["returns"],
    )  # fmt: skip
    return module, r, batch


def test_clipped_losses_equal_tunix(tunix_ppo):
    module, r, batch = tunix_ppo
    config = SimpleNamespace(epsilon_low=CLIP, epsilon_high=CLIP, entropy_coef=None)
    theirs, said = module.ppo_policy_loss_fn(None, batch, config, 0, 1)
    ours, metrics = losses.clipped_policy_loss(
        *(jnp.array(r[k]) for k in ("new", "old", "advantages", "mask")), CLIP
    )
    np.testing.assert_allclose(ours, theirs, **CLOSE)
    np.testing.assert_allclose(metrics["policy/clip_fraction"], said["pg_clipfrac"], **CLOSE)
    theirs, said = module.ppo_value_loss_fn(None, batch, CLIP, 0, 1)
    ours, metrics = losses.clipped_value_loss(
        *(jnp.array(r[k]) for k in ("values", "old_values", "returns", "mask")), CLIP
    )
    np.testing.assert_allclose(ours, theirs, **CLOSE)
    np.testing.assert_allclose(metrics["value/clip_fraction"], said["vf_clipfrac"], **CLOSE)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (logprobs.kl_k1, "kl"),
        (logprobs.kl_k2, "mse_kl"),
        (logprobs.kl_k3, "low_var_kl"),
    ],
)
def test_kl_estimators_equal_tunix_and_a_plain_formula(ours, theirs):
    p, q = -np.abs(draw(5, 7)), -np.abs(draw(5, 7, seed=1))
    formula = {
        "kl": lambda x, y: x - y,
        "mse_kl": lambda x, y: (x - y) ** 2 / 2,
        "low_var_kl": lambda x, y: math.exp(y - x) - 1 - (y - x),
    }[theirs]
    expected = [[formula(float(x), float(y)) for x, y in zip(*both, strict=True)]
                for both in zip(p, q, strict=True)]  # fmt: skip
    found = ours(jnp.array(p), jnp.array(q))
    np.testing.assert_allclose(found, expected, **CLOSE)
    module = pytest.importorskip("tunix.rl.common")
    np.testing.assert_allclose(found, module.compute_kl_divergence(p, q, theirs), **CLOSE)
