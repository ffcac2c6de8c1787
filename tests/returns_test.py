import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax import returns


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_last_index():
    mask = jnp.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    assert returns.last_index(mask).tolist() == [1, 2, 3, 3]


def test_shaped_rewards_by_hand():
    mask = jnp.array([[True, True, False], [True, True, True], [False, False, False]])
    lp = jnp.array([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]])
    ref = jnp.array([[-2.0, -1.0, -5.0], [-1.0, -1.0, -3.0], [-2.0, -2.0, -2.0]])
    out = returns.shaped_rewards(jnp.array([10.0, -4.0, 7.0]), lp, ref, mask, 0.1)
    expected = [[-0.1, 10.1, 0.0], [0.0, 0.0, -4.2], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert out.dtype == jnp.float32


def test_the_score_lands_on_the_last_real_token_wherever_padding_is():
    zeros = jnp.zeros((3, 4))
    mask = jnp.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]], bool)
    out = returns.shaped_rewards(jnp.array([1.0, 2.0, 3.0]), zeros, zeros, mask, 0.5)
    assert out.tolist() == [[0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 3, 0]]


def test_rewards_stay_fractions():
    # Built with zeros_like(token_ids) they would become integers and 0.25 would vanish.
    out = returns.shaped_rewards(
        jnp.array([0.25]), jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.ones((1, 1), bool), 0.0
    )
    assert out.dtype == jnp.float32 and out[0, 0] == 0.25
    with pytest.raises(AssertionError):
        returns.shaped_rewards(
            jnp.array([1]), jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.ones((1, 1), bool), 0.0
        )


def test_masked_logprobs_never_reach_the_rewards():
    lp = jnp.array([[-1.0, jnp.nan]])
    mask = jnp.array([[True, False]])
    out = returns.shaped_rewards(jnp.ones(1), lp, jnp.zeros((1, 2)), mask, 1.0)
    assert out.tolist() == [[2.0, 0.0]]


def test_the_penalty_takes_the_estimator_that_is_asked_for():
    lp, ref = jnp.array([[-1.0, -2.0]]), jnp.array([[-2.0, -1.5]])
    mask, score = jnp.ones((1, 2), bool), jnp.array([3.0])
    log_ratio = np.array([1.0, -0.5])  # of the policy to the reference
    expected = {
        "k1": log_ratio,
        "k2": log_ratio**2 / 2,
        "k3": np.exp(-log_ratio) - 1 + log_ratio,
    }
    for name, kl in expected.items():
        out = returns.shaped_rewards(score, lp, ref, mask, 0.1, name)
        np.testing.assert_allclose(out[0], -0.1 * kl + [0, 3], rtol=1e-6)
    assert expected["k3"] == pytest.approx([0.36787944, 0.14872127])


def test_the_whole_penalty_can_fall_on_the_last_token():
    mask = jnp.array([[True, True, False], [False, True, True], [False, False, False]])
    lp = jnp.array([[-1.0, -2.0, jnp.nan], [jnp.inf, -1.0, -1.0], [-1.0, -1.0, -1.0]])
    ref = jnp.array([[-2.0, -1.5, -5.0], [-1.0, -2.0, -3.0], [-2.0, -2.0, -2.0]])
    score = jnp.array([10.0, -4.0, 7.0])
    spread = returns.shaped_rewards(score, lp, ref, mask, 0.1)
    whole = returns.shaped_rewards(score, lp, ref, mask, 0.1, "k1", "last_token")
    np.testing.assert_allclose(whole, [[0, 9.95, 0], [0, 0, -4.3], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(whole.sum(-1), spread.sum(-1), rtol=1e-6)


def test_a_score_from_the_zero_of_the_start_less_what_being_cut_off_costs():
    score, cut = jnp.array([1.0, 2.0, -1.0]), jnp.array([False, True, True])
    out = returns.normalised_score(score, cut, 0.5, 2.0, 0.25)
    np.testing.assert_allclose(out, [0.25, 0.5, -1.0], rtol=1e-6)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(returns.normalised_score(score, cut, 0.0, 1.0, 0.0), score)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.1 * (1 + 0.1 * 64 / 1000)),
        (60.0, 0.1 * (1 + 0.2 * 64 / 1000)),  # no further than 0.2 off
        (5.4, 0.1 * (1 - 0.1 * 64 / 1000)),
        (-3.0, 0.1 * (1 - 0.2 * 64 / 1000)),
    ],
)
def test_the_coefficient_follows_the_target(kl, expected):
    assert returns.adapted_kl_coefficient(0.1, kl, 6.0, 1000, 64) == pytest.approx(expected)
    assert returns.adapted_kl_coefficient(0.1, kl, 0.0, 1000, 64) == 0.1


def test_leave_one_out_by_hand():
    rewards = jnp.array([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    found = returns.leave_one_out(rewards, 3)
    np.testing.assert_allclose(found, [-3.0, -1.5, 4.5, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("samples", [2, 3, 7])
def test_leave_one_out_equals_a_loop_over_the_others(samples):
    rewards = np.asarray(draw(5 * samples))
    expected = []
    for i, own in enumerate(rewards):
        first = i // samples * samples
        others = [rewards[j] for j in range(first, first + samples) if j != i]
        expected.append(own - sum(others) / len(others))
    found = returns.leave_one_out(jnp.asarray(rewards), samples)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gae_by_hand():
    rewards = jnp.array([[0.0, 0.0, 1.0]])
    values = jnp.array([[0.5, 0.5, 0.5]])
    mask = jnp.ones((1, 3), bool)
    advantages, targets = returns.gae(rewards, values, mask, 1.0, 0.95)
    np.testing.assert_allclose(advantages, [[0.5 * 0.95**2, 0.5 * 0.95, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(targets, advantages + 0.5, rtol=1e-6)


def reference_gae(rewards, values, gamma, lam):
    """The infinite sum of 1506.02438, Eq. 16, written out for one unpadded episode."""
    n = len(rewards)
    values = np.append(values, 0.0)
    deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, n)) for t in range(n)]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_the_written_out_sum_whatever_the_padding_holds(gamma, lam):
    rewards, values = draw(4, 6), draw(4, 6, seed=1)
    mask = jnp.array(
        [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]], bool
    )
    dirty = [jnp.where(mask, x, 1e6) for x in (rewards, values)]
    advantages, targets = returns.gae(*dirty, mask, gamma, lam)
    for b in range(4):
        real = np.flatnonzero(mask[b])
        expected = np.zeros(6)
        expected[real] = reference_gae(
            np.asarray(rewards)[b, real], np.asarray(values)[b, real], gamma, lam
        )
        np.testing.assert_allclose(advantages[b], expected, rtol=1e-4, atol=1e-5)
        expected[real] += np.asarray(values)[b, real]
        np.testing.assert_allclose(targets[b], expected, rtol=1e-4, atol=1e-5)


def test_gae_with_lambda_one_gives_the_sum_of_rewards_as_return():
    rewards, values = draw(2, 5), draw(2, 5, seed=1)
    _, targets = returns.gae(rewards, values, jnp.ones((2, 5), bool), 1.0, 1.0)
    expected = np.cumsum(np.asarray(rewards)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(targets, expected, rtol=1e-4, atol=1e-5)


def test_whiten_uses_unmasked_elements_of_the_whole_batch():
    x = jnp.array([[1.0, 3.0, 1e9], [5.0, 7.0, jnp.nan]])
    mask = jnp.array([[True, True, False], [True, True, False]])
    out = np.asarray(returns.whiten(x, mask))
    np.testing.assert_allclose(out[:, :2].ravel(), np.array([-3, -1, 1, 3]) / np.sqrt(5), rtol=1e-5)
    assert (out[:, 2] == 0).all()


def test_whiten_of_one_element_or_equal_elements_is_zero():
    assert returns.whiten(jnp.array([[4.0]]), jnp.array([[True]])).tolist() == [[0.0]]
    assert (returns.whiten(jnp.full((2, 2), 3.0), jnp.ones((2, 2), bool)) == 0).all()


def test_whitened_advantages_are_differentiable_without_nan():
    x, mask = jnp.zeros((1, 3)), jnp.array([[True, True, False]])
    assert jnp.isfinite(jax.grad(lambda x: returns.whiten(x, mask).sum())(x)).all()


def test_the_zero_and_the_scale_are_the_starts():
    found = [1.0, 2.0, 6.0]
    assert returns.baseline(found, True) == pytest.approx((3.0, np.std([1, 2, 6])))
    assert returns.baseline(found, False) == (3.0, 1.0)
    assert returns.baseline([], False) == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"all 2 responses .* have the score 1\.0; set ppo\.scale"):
        returns.baseline([1.0, 1.0], True)


def test_an_ensemble_gives_less_where_its_members_disagree():
    scores = jnp.array([[1.0, 4.0, -2.0], [1.0, 0.0, -4.0]])
    np.testing.assert_allclose(returns.agreed_score(scores, 0.0), [1.0, 2.0, -3.0])
    np.testing.assert_allclose(returns.agreed_score(scores, 0.5), [1.0, 1.0, -3.5])
    np.testing.assert_allclose(returns.agreed_score(scores[:1], 2.0), scores[0])
