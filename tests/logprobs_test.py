import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cai_jax import logprobs


def draw(*shape, seed=0, scale=3.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, jnp.float32)


def tokens(*shape, vocab, seed=1):
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocab, shape), jnp.int32)


def test_token_logprobs_by_hand():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [1.0, 1.0, 1.0]]]))
    out = logprobs.token_logprobs(logits, jnp.array([[0, 1, 2]]))
    np.testing.assert_allclose(out, np.log([[0.25, 0.7]]), rtol=1e-6)


def test_token_logprobs_equals_optax():
    logits, ids = draw(3, 7, 11), tokens(3, 7, vocab=11)
    expected = -optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
    np.testing.assert_allclose(logprobs.token_logprobs(logits, ids), expected, atol=1e-5)
    expected = -optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1] / 0.7, ids[:, 1:])
    np.testing.assert_allclose(logprobs.token_logprobs(logits, ids, 0.7), expected, atol=1e-5)


def test_token_logprobs_stays_finite_at_large_logits():
    logits = jnp.array([[[1e4, 0.0], [0.0, 0.0]]], jnp.float32)
    out = logprobs.token_logprobs(logits, jnp.array([[0, 0]]))
    np.testing.assert_allclose(out, [[0.0]])


def test_token_logprobs_refuses_mismatched_shapes():
    with pytest.raises(AssertionError):
        logprobs.token_logprobs(draw(2, 5, 4), tokens(2, 6, vocab=4))


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 100])
def test_chunked_equals_whole_with_gradients(chunk):
    hidden, kernel, ids = draw(2, 7, 5), draw(5, 13, seed=2, scale=1.0), tokens(2, 7, vocab=13)

    def whole(hidden, kernel):
        logits = (hidden @ kernel) / 0.8
        chosen = -optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        p = jax.nn.softmax(logits)
        return chosen, -(p * jnp.log(p)).sum(-1)

    def chunked(hidden, kernel):
        return logprobs.chunked_token_logprobs(hidden, kernel, ids, 0.8, chunk)

    chex.assert_trees_all_close(chunked(hidden, kernel), whole(hidden, kernel), atol=2e-5)

    def summed(f):
        weight = draw(2, 7, seed=5)
        return lambda h, k: sum((weight * x).sum() for x in f(h, k))

    ours = jax.grad(summed(chunked), (0, 1))(hidden, kernel)
    theirs = jax.grad(summed(whole), (0, 1))(hidden, kernel)
    chex.assert_trees_all_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_chunked_never_holds_all_logits():
    length, vocab = 512, 4096
    hidden, kernel = draw(1, length, 8), draw(8, vocab)
    ids = tokens(1, length, vocab=vocab)

    def loss(hidden, kernel):
        return logprobs.chunked_token_logprobs(hidden, kernel, ids, 1.0, 16)[0].sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, kernel).compile()
    logits_bytes = 4 * length * vocab
    assert compiled.memory_analysis().temp_size_in_bytes < logits_bytes / 4


def test_chunked_takes_bfloat16_and_answers_in_float32():
    hidden, kernel = draw(1, 4, 5).astype(jnp.bfloat16), draw(5, 7).astype(jnp.bfloat16)
    out = logprobs.chunked_token_logprobs(hidden, kernel, tokens(1, 4, vocab=7), 1.0, 2)
    assert all(x.dtype == jnp.float32 for x in out)


def test_entropy():
    np.testing.assert_allclose(logprobs.entropy(jnp.zeros((2, 8))), np.log(8.0), rtol=1e-6)
    np.testing.assert_allclose(logprobs.entropy(jnp.array([0.0, -jnp.inf])), 0.0, atol=1e-7)
    p = np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(logprobs.entropy(jnp.log(p)), -(p * np.log(p)).sum(), rtol=1e-6)


def test_kl_estimators_agree_with_the_exact_divergence_in_expectation():
    p = np.array([0.5, 0.3, 0.2])
    q = np.array([0.2, 0.5, 0.3])
    exact = (p * np.log(p / q)).sum()
    log_p, log_q = jnp.log(jnp.asarray(p)), jnp.log(jnp.asarray(q))
    np.testing.assert_allclose((p * logprobs.kl_k1(log_p, log_q)).sum(), exact, rtol=1e-5)
    np.testing.assert_allclose((p * logprobs.kl_k3(log_p, log_q)).sum(), exact, rtol=1e-5)
    np.testing.assert_allclose(logprobs.kl_k1(log_p, log_q), np.log(p / q), rtol=1e-5)
    np.testing.assert_allclose(logprobs.kl_k2(log_p, log_q), np.log(p / q) ** 2 / 2, rtol=1e-5)
    assert (logprobs.kl_k3(log_p, log_q) > 0).all() and (logprobs.kl_k1(log_p, log_q) < 0).any()


def test_kl_estimators_on_samples_come_to_the_closed_form_of_categorical_distributions():
    rng = np.random.default_rng(0)
    for scale in (0.1, 0.5, 1.0):
        log_q = rng.normal(size=9)
        log_p = log_q + scale * rng.normal(size=9)
        log_p, log_q = (np.asarray(jax.nn.log_softmax(jnp.asarray(x))) for x in (log_p, log_q))
        p = np.exp(log_p.astype(np.float64))
        exact = (p * (log_p - log_q)).sum()
        tokens = rng.choice(9, size=100_000, p=p / p.sum())
        found = {
            name: np.asarray(estimate(log_p[tokens], log_q[tokens]), np.float64)
            for name, estimate in logprobs.KL_ESTIMATORS.items()
        }
        assert set(found) == {"k1", "k2", "k3"}
        for name in ("k1", "k3"):  # without bias, so within the error of a mean
            error = found[name].std() / np.sqrt(len(tokens))
            assert abs(found[name].mean() - exact) < 4 * error
        # Of the second order alone: its bias is of the third.
        assert found["k2"].mean() == pytest.approx(exact, rel=scale)
        assert found["k3"].std() < found["k1"].std()
        assert found["k1"].min() < 0 <= min(found["k2"].min(), found["k3"].min() + 1e-6)
