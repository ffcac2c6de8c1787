"""Attention within a sequence, by rows and at once; products with weights as two matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.models.attention import MASKED, causal_mask, self_attention
from cai_jax.models.layers import matrix_product

# Several segments, then padding; one segment; padding first; nothing but padding.
SEGMENTS = np.array(
    [[1] * 4 + [2] * 3 + [3] + [0] * 2, [1] * 10, [0] * 3 + [1] * 7, [0] * 10], np.int32
)


def drawn(dtype=jnp.float32, q_heads=6, kv_heads=2, width=4):
    draw = np.random.default_rng(0)
    shape = (*SEGMENTS.shape,)

    def make(heads):
        return jnp.asarray(2 * draw.normal(size=(*shape, heads, width)), dtype)

    return make(q_heads), make(kv_heads), make(kv_heads)


def literal(q, k, v, segment_ids):
    """Softmax over the keys that each query sees, one query at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(q.shape[:3]):
        ids = segment_ids[b]
        seen = [s for s in range(t + 1) if ids[s] == ids[t] and ids[s]]
        if seen:
            scores = np.array([q[b, t, h] @ k[b, s, h // group] for s in seen])
            weights = np.exp((scores - scores.max()) / np.sqrt(q.shape[-1]))
            values = np.array([v[b, s, h // group] for s in seen])
            out[b, t, h] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("q_heads", [2, 6])
def test_a_token_sees_earlier_tokens_of_its_segment(by_rows, q_heads):
    given = drawn(q_heads=q_heads)
    found = self_attention(*given, jnp.asarray(SEGMENTS), by_rows)
    real = SEGMENTS > 0
    np.testing.assert_allclose(found[real], literal(*given, SEGMENTS)[real], atol=2e-6)
    assert np.isfinite(found).all()


def test_gradients_by_rows_are_those_of_all_at_once():
    given, ids = drawn(), jnp.asarray(SEGMENTS)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=given[0].shape), jnp.float32)
    weight = weight * (ids > 0)[..., None, None]

    def gradients(by_rows):
        def loss(*x):
            return (self_attention(*x, ids, by_rows) * weight).sum()

        return jax.jit(jax.grad(loss, (0, 1, 2)))(*given)

    for a, b in zip(gradients(True), gradients(False), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)
        assert np.abs(a).max() > 0.1


def test_by_rows_keeps_the_dtype_of_the_values():
    given, ids = drawn(jnp.bfloat16), jnp.asarray(SEGMENTS)
    found = self_attention(*given, ids, True)
    assert found.dtype == jnp.bfloat16
    real = SEGMENTS > 0
    exact = literal(*given, SEGMENTS)[real]
    np.testing.assert_allclose(found[real].astype(jnp.float32), exact, atol=0.03)


def test_by_rows_no_array_holds_the_scores_of_all_rows():
    rows, length, heads = 16, 128, 4

    def shape(n):
        return jax.ShapeDtypeStruct((rows, length, n, 8), jnp.float32)

    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def held(by_rows):
        def loss(q, k, v, ids):
            return self_attention(q, k, v, ids, by_rows).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape(heads), shape(2), shape(2), ids)
        return compiled.compile().memory_analysis().temp_size_in_bytes

    scores = 4 * rows * heads * length**2
    assert held(True) < scores < held(False)


def test_the_mask_of_segments_is_causal_and_blind_to_padding():
    mask = np.asarray(causal_mask(jnp.asarray(SEGMENTS)))
    for b, t, s in np.ndindex(mask.shape):
        ids = SEGMENTS[b]
        assert mask[b, t, s] == (s <= t and ids[s] == ids[t] and ids[s] > 0)
    assert np.isfinite(np.float32(MASKED))


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "axes"),
    [
        ((2, 3, 4), (4, 5), 1),
        ((2, 3, 4), (4, 5, 6), 1),
        ((2, 3, 4, 5), (4, 5, 6), 2),
        ((4,), (4, 5), 1),
    ],
)
def test_a_product_with_weights_is_the_same_as_one_of_matrices(x_shape, kernel_shape, axes):
    draw = np.random.default_rng(2)
    x, kernel = (jnp.asarray(draw.normal(size=s), jnp.float32) for s in (x_shape, kernel_shape))
    last = tuple(range(x.ndim - axes, x.ndim))
    numbers = ((last, tuple(range(axes))), ((), ()))
    found = matrix_product(x, kernel, numbers, precision=None)
    expected = jax.lax.dot_general(x, kernel, numbers)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
