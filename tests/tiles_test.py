"""Attention of new tokens to their slots, tile by tile, against attention to everything at once."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.models import tiles as tiling
from cai_jax.models.tiles import Tiles, among, tiled_attention

KV_HEADS, GROUP, SIZE, SLOTS, LENGTH = 2, 3, 8, 7, 40


# (window, soft cap): some see a part of what all read first and others none of it.
LIMITS = [(None, None), (6, None), (13, 1.5)]


def dense(q, k, v, window=None, softcap=None):
    """Softmax attention [K, G, C] to the last keys and values of [K, P, C], in float64."""
    k, v = (x[:, -(window or x.shape[1]) :] for x in (k, v))
    scores = np.einsum("kgc,kpc->kgp", q, k) / np.sqrt(q.shape[-1])
    scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("kgp,kpc->kgc", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("before", [None, 0, 1, 11, 24])
@pytest.mark.parametrize("rows", [1, 3, 6])
@pytest.mark.parametrize(("window", "softcap"), LIMITS)
def test_tiles_give_what_dense_attention_gives(monkeypatch, rows, before, window, softcap):
    monkeypatch.setattr(tiling, "TILE", 4)
    monkeypatch.setattr(tiling, "WIDEST", 16)
    monkeypatch.setattr(tiling, "BLOCK", 10)  # divides neither 24 nor any length
    monkeypatch.setattr(tiling, "OWN_BLOCK", 9)
    draw, random_numbers = random.Random(rows), np.random.default_rng(rows)
    counts = [draw.choice((0, 1, 3, 4, 9, 17)) for _ in range(rows)]
    counts[0] = max(counts[0], 5)
    lengths = [draw.randint(0, LENGTH - n) for n in counts]
    slots = draw.sample(range(SLOTS), rows)
    tokens = sum(counts) + 3
    normal = lambda *shape: random_numbers.normal(size=shape)  # noqa: E731
    q = normal(tokens, KV_HEADS, GROUP, SIZE)
    k, v = (normal(KV_HEADS, SLOTS, LENGTH, SIZE) for _ in "kv")
    first_k, first_v = (normal(KV_HEADS, 1, 24, SIZE) for _ in "kv")
    shared = None
    if before is not None:
        shared = (jnp.asarray(first_k.swapaxes(2, 3)), jnp.asarray(first_v), jnp.int32(before))

    places = np.concatenate([np.arange(m, m + n) for m, n in zip(lengths, counts, strict=True)])
    places = jnp.asarray([*places, 0, 0, 0])
    found = jax.jit(tiled_attention, static_argnames="softcap")(
        jnp.asarray(q),
        (jnp.asarray(k.swapaxes(2, 3)), jnp.asarray(v)),
        shared,
        jnp.asarray(slots, jnp.int32),
        Tiles.of(tokens, jnp.asarray(lengths), jnp.asarray(counts)),
        begins=None if window is None else places - window + 1,
        softcap=softcap,
    )

    token = 0
    for slot, length, count in zip(slots, lengths, counts, strict=True):
        for place in range(length, length + count):
            keys, values = (
                np.concatenate([f[:, 0, : before or 0], own[:, slot, : place + 1]], 1)
                for f, own in ((first_k, k), (first_v, v))
            )
            expected = dense(q[token], keys, values, window, softcap)
            np.testing.assert_allclose(found[token], expected, atol=2e-6)
            token += 1
    assert not np.any(found[token:])


def test_tiles_hold_every_token_once_whatever_the_rows_shares():
    draw = random.Random(1)
    for _ in range(50):
        rows, tokens = draw.choice((1, 2, 8, 32)), draw.choice((64, 192, 512))
        cuts = sorted(draw.randint(0, tokens) for _ in range(rows))
        counts = [b - a for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
        lengths = [draw.randint(0, 90) for _ in range(rows)]
        tiles = Tiles.of(tokens, jnp.asarray(lengths), jnp.asarray(counts))
        used = np.asarray(tiles.index)[: int(tiles.used)]
        assert np.all(np.asarray(tiles.index)[int(tiles.used) :] == tokens)
        assert sorted(used[used < tokens]) == list(range(sum(counts)))
        for index, row, first in zip(used, tiles.rows, tiles.first, strict=False):
            begin = sum(counts[: int(row)])
            assert index[0] - begin == int(first) - lengths[int(row)]
            assert np.all(index[index < tokens] < begin + counts[int(row)])


def test_tiles_are_enough_where_every_row_begins_one_for_a_single_token():
    counts = [1] * 31 + [481]  # 512 tokens, each row one more than whole tiles of 16
    tiles = Tiles.of(512, jnp.zeros(32, jnp.int32), jnp.asarray(counts))
    assert int(tiles.used) == len(tiles.index) == 31 + 31
    used = np.asarray(tiles.index)
    assert sorted(used[used < 512]) == list(range(512))


@pytest.mark.parametrize("before", [None, 11])
@pytest.mark.parametrize(("window", "softcap"), [*LIMITS, (2, None)])
def test_tokens_of_a_tree_see_their_ancestors_and_all_of_their_slot(before, window, softcap):
    rows, width = 4, 3
    normal = lambda *shape: np.random.default_rng(len(shape)).normal(size=shape)  # noqa: E731
    q = normal(rows * width, KV_HEADS, GROUP, SIZE)
    new_k, new_v = normal(2, rows * width, KV_HEADS, SIZE)
    k, v = normal(2, KV_HEADS, SLOTS, LENGTH, SIZE)
    first_k, first_v = normal(2, KV_HEADS, 1, 24, SIZE)
    shared = None
    if before is not None:
        shared = (jnp.asarray(first_k.swapaxes(2, 3)), jnp.asarray(first_v), jnp.int32(before))
    # Both are children of the first node in even rows, and a chain in odd ones.
    sees = np.tril(np.ones((rows, width, width), bool))
    sees[::2, 2, 1] = False
    slots, lengths = [5, 0, 6, 2], [0, 1, 17, LENGTH]
    depths = sees.sum(-1) - 1
    within, begins = sees, None
    if window is not None:
        within = sees & (depths[:, :, None] - depths[:, None] < window)
        begins = jnp.asarray((np.array(lengths)[:, None] + depths - window + 1).ravel())

    found = tiled_attention(
        jnp.asarray(q),
        (jnp.asarray(k.swapaxes(2, 3)), jnp.asarray(v)),
        shared,
        jnp.asarray(slots),
        Tiles.behind(jnp.asarray(lengths), width),
        among(*map(jnp.asarray, (q, new_k, new_v, within)), softcap),
        begins,
        softcap,
    )

    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        for node in range(width):
            seen = row * width + np.flatnonzero(sees[row, node])
            keys, values = (
                np.concatenate(
                    [f[:, 0, : before or 0], own[:, slot, :length], new[seen].swapaxes(0, 1)], 1
                )
                for f, own, new in ((first_k, k, new_k), (first_v, v, new_v))
            )
            n = row * width + node
            expected = dense(q[n], keys, values, window, softcap)
            np.testing.assert_allclose(found[n], expected, atol=2e-6)
