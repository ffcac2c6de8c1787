"""Drawing a token: distribution, edges of the inverse CDF, the nucleus, log-probabilities."""

import functools

import jax
import numpy as np
import pytest

from cai_jax.decoding import sampling
from cai_jax.decoding.sampling import Rule, sample

N = 20_000
SAMPLE, INVERSE_CDF = jax.jit(sample), jax.jit(sampling._inverse_cdf)


@functools.cache
def many_keys():
    return jax.random.split(jax.random.key(0), N)


def draw(logits, *, temperature=1.0, top_p=1.0, top_k=0, end_ids=(), early=False):
    """N tokens and log-probabilities from one row of logits; settings are numbers or arrays [N]."""
    logits = np.broadcast_to(np.asarray(logits, np.float32), (N, len(logits)))
    each = lambda x, dtype: np.broadcast_to(np.asarray(x, dtype), (N,))  # noqa: E731
    rule = Rule(each(temperature, np.float32), each(top_p, np.float32), each(top_k, np.int32))
    end_ids = np.asarray(end_ids, np.int32)
    return map(np.asarray, SAMPLE(logits, many_keys(), rule, end_ids, each(early, bool)))


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


def random_logits(vocab, scale=2.0, seed=0):
    return scale * np.random.default_rng(seed).normal(size=vocab)


@pytest.mark.parametrize(("vocab", "temperature"), [(5, 1.0), (300, 0.7), (300, 1.5), (512, 1.0)])
def test_samples_follow_the_softmax(vocab, temperature):
    """Pearson's chi-square, tokens of fewer than 8 expected draws pooled."""
    logits = random_logits(vocab)
    tokens, _ = draw(logits, temperature=temperature)
    expected = N * softmax(logits / temperature)
    observed = np.bincount(tokens, minlength=vocab)
    rare = expected < 8
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    statistic = (np.square(observed - expected)[keep] / expected[keep]).sum()
    freedom = keep.sum() - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)  # four standard deviations


def test_logprobs_are_of_the_distribution_at_the_temperature_before_top_p():
    logits = random_logits(300)
    for temperature, top_p in ((1.0, 1.0), (0.6, 0.5), (2.0, 0.9)):
        tokens, logprobs = draw(logits, temperature=temperature, top_p=top_p)
        expected = np.log(softmax(logits / temperature))[tokens]
        np.testing.assert_allclose(logprobs, expected, atol=2e-5)


def test_temperature_0_takes_the_likeliest_token_and_scores_it_at_temperature_1():
    logits = random_logits(300)
    tokens, logprobs = draw(logits, temperature=0.0, top_p=0.1)
    assert set(tokens) == {int(np.argmax(logits))}
    np.testing.assert_allclose(logprobs, np.log(softmax(logits).max()), atol=1e-5)


@pytest.mark.parametrize("top_p", [1e-6, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("vocab", [5, 300])
def test_top_p_keeps_the_smallest_set_that_holds_the_mass(vocab, top_p):
    logits = random_logits(vocab, seed=3)
    probs = softmax(logits)
    order = np.argsort(-probs)
    size = int(np.searchsorted(np.cumsum(probs[order]), top_p)) + 1
    nucleus = order[:size]
    tokens, _ = draw(logits, top_p=top_p)
    assert set(tokens) <= set(nucleus.tolist())
    # and it draws all of them, in proportion
    likely = nucleus[N * probs[nucleus] / probs[nucleus].sum() > 30]
    frequency = np.bincount(tokens, minlength=vocab) / len(tokens)
    np.testing.assert_allclose(
        frequency[likely], probs[likely] / probs[nucleus].sum(), rtol=0.6, atol=0.01
    )


@pytest.mark.parametrize("vocab", [5, 300])
@pytest.mark.parametrize("top_k", [1, 2, 40])
def test_top_k_keeps_the_likeliest_tokens(vocab, top_k):
    logits = random_logits(vocab, seed=4)
    kept = np.argsort(-logits)[:top_k]
    tokens, logprobs = draw(logits, top_k=top_k)
    assert set(tokens) <= set(kept.tolist())
    expected = softmax(logits)[kept] / softmax(logits)[kept].sum()
    np.testing.assert_allclose(np.bincount(tokens, minlength=vocab)[kept] / N, expected, atol=0.02)
    np.testing.assert_allclose(logprobs, np.log(softmax(logits))[tokens], atol=2e-5)


def test_top_p_is_the_share_of_what_top_k_keeps():
    tokens, _ = draw(np.log([0.4, 0.3, 0.2, 0.1]), top_k=2, top_p=0.56)
    assert set(tokens) == {0}  # 0.4 is 57% of the two that are left


def test_an_end_token_is_not_drawn_early():
    logits = np.array([1.0, 5.0, 2.0, 4.0])
    early = np.arange(N) % 2 == 0
    tokens, logprobs = draw(logits, end_ids=(1, 3), early=early)
    assert set(tokens[early]) == {0, 2} and set(tokens[~early]) == {0, 1, 2, 3}
    np.testing.assert_allclose(logprobs, np.log(softmax(logits))[tokens], atol=2e-5)
    greedy, _ = draw(logits, temperature=0.0, end_ids=(1, 3), early=early)
    assert set(greedy[early]) == {2} and set(greedy[~early]) == {1}


def test_rows_have_temperatures_and_nuclei_of_their_own():
    logits = random_logits(300)
    kind = np.arange(N) % 3
    tokens, _ = draw(
        logits, temperature=np.where(kind == 0, 0.0, 1.0), top_p=np.where(kind == 1, 1e-6, 1.0)
    )
    assert set(tokens[kind == 0]) == set(tokens[kind == 1]) == {int(np.argmax(logits))}
    assert len(set(tokens[kind == 2])) > 100


@pytest.mark.parametrize("vocab", [3, 256, 257, 511])
def test_the_inverse_cdf_at_its_ends(vocab):
    """0 gives the first token that can be drawn, a number just under 1 the last one."""
    weights = np.random.default_rng(0).random(vocab).astype(np.float32)
    weights[0] = weights[-1] = 0  # neither the first nor the last token has any probability
    weights[1:-1] += 0.01
    below_one = np.nextafter(np.float32(1), np.float32(0))
    got = INVERSE_CDF(np.stack([weights] * 2), np.array([[0, 0], [below_one] * 2], np.float32))
    assert got.tolist()[0] == 1
    # The last weight may be below what float32 tells apart; never more than rounding away from it.
    assert weights[got[1]] > 0
    assert weights[int(got[1]) + 1 :].sum() <= 1e-5 * weights.sum()


def test_a_token_of_probability_0_is_never_drawn():
    rng = np.random.default_rng(0)
    weights = rng.random((1, 700)).astype(np.float32)
    weights[:, rng.random(700) < 0.7] = 0
    weights[:, 256:512] = 0  # a whole block
    blocks = np.pad(weights[0], (0, 68)).reshape(3, 256).astype(np.float64)
    edges = np.concatenate(
        [
            np.cumsum(blocks.sum(-1)) / blocks.sum(),
            *(np.cumsum(blocks, -1) / np.maximum(blocks.sum(-1, keepdims=True), 1e-9)),
        ]
    )
    u = np.concatenate([edges, edges - 1e-7, edges + 1e-7, rng.random(2000)])
    u = np.clip(u, 0, np.nextafter(np.float32(1), np.float32(0))).astype(np.float32)
    u = np.stack([np.concatenate([u, rng.permutation(u)]), np.concatenate([rng.permutation(u), u])])
    tokens = INVERSE_CDF(np.broadcast_to(weights, (u.shape[1], 700)), u.T)
    assert (weights[0, np.asarray(tokens)] > 0).all()


def test_the_inverse_cdf_equals_running_sums_in_float64():
    rng = np.random.default_rng(0)
    weights = rng.random((64, 777)).astype(np.float32) ** 4
    u = rng.random((64, 2)).astype(np.float32)
    tokens = np.asarray(INVERSE_CDF(weights, u))
    blocks = np.pad(weights, ((0, 0), (0, 247))).reshape(64, 4, 256).astype(np.float64)

    def first_past(parts, u):
        running = np.cumsum(parts, -1)
        return (running > u[:, None] * running[:, -1:]).argmax(-1)

    block = first_past(blocks.sum(-1), u[:, 0])
    exact = block * 256 + first_past(blocks[np.arange(64), block], u[:, 1])
    assert (tokens == exact).mean() > 0.95  # the others are a rounding away
    assert np.abs(tokens - exact).max() <= 1


def test_logits_of_minus_infinity_are_never_drawn():
    logits = random_logits(300)
    logits[::2] = -np.inf
    tokens, logprobs = draw(logits)
    assert (tokens % 2 == 1).all() and np.isfinite(logprobs).all()
