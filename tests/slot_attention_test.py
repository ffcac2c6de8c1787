"""The TPU's kernel for attention to slots: numbers by its interpreter, and compiled."""

import functools
import importlib.util
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.mesh import fitted
from cai_jax.models import kv_cache, slot_attention, slot_kernel
from cai_jax.models.attention import Part, cached_attention
from cai_jax.models.slot_attention import decode_attention, read_attention
from cai_jax.models.tiles import Tiles, among, tiled_attention

pytestmark = pytest.mark.slow

SLOTS, LENGTH, FIRST = 6, 40, 24
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}


def by_kernel(attend, *args, **limits):
    return jax.jit(functools.partial(attend, mesh=None, interpret=True, **limits))(*args)


def drawn(dtype, tokens, kv_heads=2, group=3, size=8, before=None):
    """q [N, K, G, C]; keys and values of slots; those that all rows read first, or None."""
    draw = np.random.default_rng(tokens)
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape), dtype)  # noqa: E731

    def keys_and_values(slots, length):
        return normal(kv_heads, slots, size, length), normal(kv_heads, slots, length, size)

    q, held, first = (
        normal(tokens, kv_heads, group, size),
        *map(keys_and_values, (SLOTS, 1), (LENGTH, FIRST)),
    )
    return q, held, None if before is None else (*first, jnp.int32(before))


def close(found, expected, dtype):
    assert found.dtype == expected.dtype == dtype
    found, expected = (np.asarray(x, np.float32) for x in (found, expected))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[dtype])


@pytest.fixture(
    params=[
        (512, 512, None, None), (16, 9, None, None), (40, 4, None, None), (16, 9, 5, None),
        (40, 4, 30, 1.5),
    ],
    ids=str,
)  # fmt: skip
def limits(request, monkeypatch):
    """Window and soft cap, with sizes of blocks of keys, whole or not dividing a slot's length, and
    of the widest tile."""
    block, widest, *limits = request.param
    monkeypatch.setattr(slot_kernel, "BLOCK", block)
    monkeypatch.setattr(slot_kernel, "WIDEST", widest)
    return limits


@pytest.mark.parametrize(("dtype", "group"), [("float32", 4), ("bfloat16", 1)])
@pytest.mark.parametrize("before", [None, 0, 11])
def test_a_token_of_each_slot_attends_as_by_xla(limits, dtype, before, group):
    window, softcap = limits
    q, held, shared = drawn(dtype, SLOTS, group=group, before=before)
    seen = jnp.array([0, 1, LENGTH, 16, 17, 0])
    begins = None if window is None else seen - window
    found = by_kernel(decode_attention, q, held, shared, seen, begins=begins, softcap=softcap)

    first = jnp.full(SLOTS, -LENGTH) if begins is None else begins
    number = jnp.arange(LENGTH)
    mask = (number < seen[:, None]) & (number >= first[:, None])
    parts = [Part(*held, mask[:, None])]
    nothing = seen == 0
    if before is not None:
        k, v, length = shared
        number = jnp.arange(FIRST)
        mask = (number < length) & (number >= first[:, None] + length)
        parts.append(Part(k[:, 0], v[:, 0], mask[:, None]))
        nothing &= ~mask.any(-1)
    expected = cached_attention(q.swapaxes(0, 1)[:, :, None], tuple(parts), softcap)
    expected = expected[:, :, 0].swapaxes(0, 1)
    close(found, jnp.where(nothing[:, None, None, None], 0, expected), dtype)


@pytest.mark.parametrize(
    ("dtype", "before"), [("float32", None), ("float32", 0), ("float32", 11), ("bfloat16", 11)]
)
def test_texts_are_read_as_in_tiles_by_xla(limits, dtype, before):
    """Rows of any share of the tokens, one of none, and a row that is only padding."""
    window, softcap = limits
    counts, lengths = [9, 0, 1, 17, 5, 0], [0, 3, 39, 20, 35, 0]
    slots = [*random.Random(0).sample(range(SLOTS), 5), SLOTS]
    q, held, shared = drawn(dtype, sum(counts) + 3, before=before)
    tiles = Tiles.of(len(q), jnp.asarray(lengths), jnp.asarray(counts))
    places = np.concatenate([np.arange(m, m + n) for m, n in zip(lengths, counts, strict=True)])
    begins = None if window is None else jnp.asarray([*places, 0, 0, 0]) - window + 1
    limits = {"begins": begins, "softcap": softcap}
    args = q, held, shared, jnp.asarray(slots), tiles, None
    found = by_kernel(read_attention, *args, **limits)
    close(found, tiled_attention(*args, **limits), dtype)
    assert not np.any(found[sum(counts) :])


@pytest.mark.parametrize("before", [None, 11])
def test_options_are_read_as_in_tiles_by_xla(limits, before):
    window, softcap = limits
    rows, width = 4, 3
    q, held, shared = drawn("float32", rows * width, before=before)
    k, v, _ = (x[:, :, 0] for x in (*jnp.split(q, 3, axis=2)[:2], q))
    sees = np.tril(np.ones((rows, width, width), bool))
    sees[::2, 2, 1] = False
    lengths = jnp.array([0, 1, 17, LENGTH])
    args = (
        q, held, shared, jnp.array([5, 0, 4, 2]), Tiles.behind(lengths, width),
        among(q, k, v, jnp.asarray(sees)),
    )  # fmt: skip
    begins = None
    if window is not None:
        begins = (lengths[:, None] + jnp.arange(width) - window + 1).ravel()
    limits = {"begins": begins, "softcap": softcap}
    found = by_kernel(read_attention, *args, **limits)
    close(found, tiled_attention(*args, **limits), "float32")


def test_tokens_are_written_as_by_xla():
    """What is out of range goes nowhere. On meshes by `engine_mesh_test`."""
    kv_heads, size = 4, 8
    draw = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape), "float32")  # noqa: E731
    held = normal(kv_heads, SLOTS, size, LENGTH), normal(kv_heads, SLOTS, LENGTH, size)

    def both(new, slots, places):
        write = jax.jit(functools.partial(slot_attention.write, mesh=None))
        found = write(held, new, slots, places)
        to = jnp.arange(SLOTS) if slots is None else slots
        for one, expected in zip(found, kv_cache.write(held, new, to, places), strict=True):
            np.testing.assert_array_equal(one, expected)
        assert not np.array_equal(found[0], held[0])

    new = lambda count: (normal(count, kv_heads, size), normal(count, kv_heads, size))  # noqa: E731
    both(new(SLOTS), None, jnp.array([0, 3, LENGTH - 1, LENGTH, 7, 7]))
    slots = jnp.array([4, 4, 0, SLOTS, 1, 5, 2, 3, SLOTS])
    both(new(9), slots, jnp.array([0, 1, 2, 3, LENGTH, 5, LENGTH - 1, 7, LENGTH]))


@pytest.mark.parametrize("window", [None, 9])
def test_blocks_that_a_row_does_not_see_are_not_fetched(monkeypatch, window):
    """They hold what would make all of a tile's results NaN."""
    monkeypatch.setattr(slot_kernel, "BLOCK", 8)
    q, (k, v), _ = drawn("float32", SLOTS)
    seen = jnp.array([0, 1, LENGTH, 16, 17, 0])
    fetched = jnp.arange(LENGTH) < -(-seen // 8)[:, None] * 8
    begins = None if window is None else seen - window
    if window is not None:
        fetched &= jnp.arange(LENGTH) >= begins[:, None] // 8 * 8
    fetched = fetched.at[0, :8].set(True)  # a first tile has no other to stay at
    k, v = jnp.where(fetched[:, None], k, jnp.nan), jnp.where(fetched[..., None], v, jnp.nan)
    assert np.isfinite(by_kernel(decode_attention, q, (k, v), None, seen, begins=begins)).all()


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: pip install -e '.[plan]'",
)
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize(
    ("kv_heads", "group", "size", "dtype", "limited"),
    [
        (8, 4, 128, "bfloat16", False),
        (8, 8, 128, "float32", False),
        (3, 3, 64, "bfloat16", False),
        (2, 2, 80, "float32", False),
        (4, 2, 256, "bfloat16", True),
    ],
)
def test_it_compiles_for_tpus(topology, kv_heads, group, size, dtype, limited):
    """On four chips, of slots whose length is not one of whole blocks; no scores are in memory.

    With a window and a soft cap too.
    """
    from benchmarks import tpu

    mesh, slots, length, tokens = tpu.mesh_for(topology, fsdp=2, tensor=2), 16, 1300, 512

    def array(kind, shape, *names):
        return jax.ShapeDtypeStruct(shape, kind, sharding=fitted(mesh, shape, *names))

    def layer(slots):
        k = array(dtype, (kv_heads, slots, size, length), *kv_cache.AXES)
        return k, array(dtype, (kv_heads, slots, length, size), *kv_cache.AXES)

    def queries(tokens, *names):
        return array(dtype, (tokens, kv_heads, group, size), *names)

    whole = functools.partial(array, jnp.int32)
    shared, column = (*layer(1), whole(())), whole((slots,))
    tiles = jax.eval_shape(functools.partial(Tiles.of, tokens), column, column)
    tiles = jax.tree.map(lambda x: whole(x.shape), tiles)
    programs = {
        decode_attention: (queries(slots, *kv_cache.AXES[::-1]), layer(slots), shared, column),
        read_attention: (queries(tokens), layer(slots), shared, column, tiles, None),
    }
    for attend, args in programs.items():
        limits = {"begins": whole(args[0].shape[:1]), "softcap": 50.0} if limited else {}
        made = jax.jit(functools.partial(attend, mesh=mesh), static_argnames="softcap")
        text = made.lower(*args, **limits).compile().as_text()
        assert text.count('custom_call_target="tpu_custom_call"') == 2  # own slots, and shared
        assert f",{length}]" not in text.replace(f"{size},{length}]", "")
