"""Scores, values and log-probabilities: blind to padding and its side, read at the right token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.models import heads, scoring, transformer

RNG = np.random.default_rng(0)
ROWS = [RNG.integers(0, 256, n).tolist() for n in (3, 9, 16, 1)]


@pytest.fixture(scope="module")
def scorer(model):
    """The tiny model with a scalar head that is not zero."""
    params = heads.with_scalar_head(model.params)
    head = {"kernel": jnp.asarray(RNG.normal(size=(32, 1)), jnp.float32), "bias": jnp.ones((1,))}
    return dataclasses.replace(model, params=params | {"scalar_head": head})


def batch(rows, length, side, filler=0):
    """Tokens padded on one side, and their mask."""
    tokens = np.full((len(rows), length), filler, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for n, row in enumerate(rows):
        at = slice(length - len(row), None) if side == "left" else slice(0, len(row))
        tokens[n, at], mask[n, at] = row, True
    return tokens, mask


@functools.partial(jax.jit, static_argnames=("config",))
def hidden_of(config, params, tokens):
    """Hidden states of right-padded rows, where a causal model needs no mask."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return transformer.hidden_states(config, params, tokens, positions, jnp.ones_like(tokens))


def score(model, tokens, mask):
    return np.asarray(scoring.jit_score(model.config, model.params, tokens, mask))


def test_a_score_is_the_head_at_the_last_token(scorer):
    found = score(scorer, *batch(ROWS, 20, "right"))
    head = scorer.params["scalar_head"]
    hidden = hidden_of(scorer.config, scorer.params, batch(ROWS, 20, "right")[0])
    for n, row in enumerate(ROWS):
        expected = hidden[n, len(row) - 1] @ head["kernel"][:, 0] + head["bias"][0]
        np.testing.assert_allclose(found[n], expected, atol=1e-5)
    assert np.ptp(found) > 0.1


def test_padding_its_side_and_its_tokens_change_no_score(scorer):
    expected = score(scorer, *batch(ROWS, 20, "right"))
    end = scorer.tokenizer.end_ids[0]
    for side in ("left", "right"):
        for length, filler in ((20, 9), (20, end), (32, 0)):
            found = score(scorer, *batch(ROWS, length, side, filler))
            np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(score(scorer, *batch(ROWS[:2], 20, "left")), expected[:2], atol=1e-5)


def test_an_end_token_is_read_where_it_is_real(scorer):
    """Pad = EOS must not make the score fall on the token before it."""
    end = scorer.tokenizer.end_ids[0]
    with_end = score(scorer, *batch([[*row, end] for row in ROWS], 20, "right", end))
    without = score(scorer, *batch(ROWS, 20, "right", end))
    assert (np.abs(with_end - without) > 1e-3).all()


def test_a_fresh_head_scores_all_texts_alike(model):
    params = heads.with_scalar_head(model.params)
    assert "lm_head" not in params and "lm_head" in model.params
    scores = scoring.jit_score(model.config, params, *batch(ROWS, 20, "right"))
    assert (np.asarray(scores) == 0).all() and scores.dtype == jnp.float32


PROMPTS, REPLIES = ROWS, [RNG.integers(0, 256, n).tolist() for n in (5, 1, 12, 7)]


def together(prompt_length, reply_length, rows=slice(None)):
    return (
        *batch(PROMPTS[rows], prompt_length, "left", 3),
        *batch(REPLIES[rows], reply_length, "right", 4),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_reply_logprobs_are_those_of_the_whole_text(model, temperature):
    logprobs, entropies = scoring.jit_reply_logprobs(
        model.config, model.params, *together(16, 12), temperature
    )
    whole = [prompt + reply for prompt, reply in zip(PROMPTS, REPLIES, strict=True)]
    hidden = hidden_of(model.config, model.params, batch(whole, 28, "right")[0])
    logits = transformer.logits(model.params, hidden) / temperature
    whole_scores = np.asarray(jax.nn.log_softmax(logits))
    for n, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True)):
        scores = whole_scores[n, len(prompt) - 1 : len(prompt) + len(reply) - 1]
        expected = scores[np.arange(len(reply)), reply]
        np.testing.assert_allclose(logprobs[n, : len(reply)], expected, atol=1e-4)
        entropy = -(np.exp(scores) * scores).sum(-1)
        np.testing.assert_allclose(entropies[n, : len(reply)], entropy, atol=1e-4)


def test_padding_and_neighbours_change_no_logprob_and_no_value(model, scorer):
    read = {
        "logprobs": lambda *a: scoring.jit_reply_logprobs(model.config, model.params, *a, 1.0)[0],
        "values": lambda *a: scoring.jit_reply_values(scorer.config, scorer.params, *a),
    }
    for name, f in read.items():
        whole = np.asarray(f(*together(16, 12)))
        wider = np.asarray(f(*together(24, 70)))  # over one chunk of logits
        part = np.asarray(f(*together(16, 12, slice(1, 3))))
        for n, reply in enumerate(REPLIES):
            np.testing.assert_allclose(
                wider[n, : len(reply)], whole[n, : len(reply)], atol=1e-4, err_msg=name
            )
        np.testing.assert_allclose(part[0, :1], whole[1, :1], atol=1e-4)
        np.testing.assert_allclose(part[1], whole[2], atol=1e-4)


def test_a_value_stands_before_its_token(scorer):
    """The value of token t is read from what stands before t: a change at t leaves it alone."""
    prompt, prompt_mask, reply, mask = together(16, 12)
    values = functools.partial(scoring.jit_reply_values, scorer.config, scorer.params)
    before = np.asarray(values(prompt, prompt_mask, reply, mask))
    changed = reply.copy()
    changed[2, 6] += 1
    after = np.asarray(values(prompt, prompt_mask, changed, mask))
    moved = np.abs(after - before) > 1e-6
    assert not moved[2, :7].any() and moved[2, 7:12].all()
    assert not moved[[0, 1, 3]].any()


def test_the_value_of_the_whole_reply_is_the_score(scorer):
    """The value head after the last token, so that a preference model starts a value function."""
    tokens = [PROMPTS[2] + REPLIES[2]]
    whole = score(scorer, *batch(tokens, 32, "right"))
    prompt, reply = PROMPTS[2], [*REPLIES[2], 0]
    values = scoring.jit_reply_values(
        scorer.config, scorer.params, *batch([prompt], 16, "left"), *batch([reply], 16, "right")
    )
    np.testing.assert_allclose(values[0, len(reply) - 1], whole[0], atol=1e-5)


def test_places_count_real_tokens():
    mask = np.array([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    assert scoring.places(mask).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
