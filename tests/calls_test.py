"""How forced tokens are packed into calls of few sizes."""

import random

from cai_jax.decoding.calls import FEEDS, FEW_SIZES, SIZES, packing


def test_calls_are_of_few_sizes_and_everything_is_read_in_the_end():
    draw = random.Random(0)
    for _ in range(300):
        slots = draw.choice((1, 4, 32))
        most, allowed = draw.choice((3, 60, 900)), draw.choice((SIZES, FEW_SIZES))
        waiting = {
            i: draw.randint(1, most) for i in draw.sample(range(slots), draw.randint(1, slots))
        }
        calls = 0
        while waiting:
            size, rows, taken = packing(waiting, slots, allowed)
            assert size in allowed and rows == min(slots, size // FEEDS)
            assert 1 <= len(taken) <= rows and sum(taken.values()) <= size
            assert all(0 < n <= waiting[i] for i, n in taken.items())
            waiting = {i: n - taken.get(i, 0) for i, n in waiting.items() if n > taken.get(i, 0)}
            calls += 1
        assert calls <= 1 + slots * most // 200


def test_feeds_of_all_slots_are_read_in_one_call():
    size, rows, taken = packing({i: 20 + i % 9 for i in range(16)}, 32, SIZES)
    assert taken == {i: 20 + i % 9 for i in range(16)}
    assert (size, rows) == (384, 32)


def test_many_short_feeds_are_read_in_one_call():
    size, rows, taken = packing(dict.fromkeys(range(32), 1), 32, SIZES)
    assert taken == dict.fromkeys(range(32), 1) and (size, rows) == (256, 32)
