"""How forced tokens are packed into calls of few sizes."""

import random

from cai_jax.decoding.calls import SIZES, WIDTHS, packing


def test_calls_are_of_few_sizes_and_everything_is_read_in_the_end():
    draw, sizes = random.Random(0), set()
    for _ in range(300):
        slots = draw.choice((1, 4, 32))
        most = draw.choice((3, 60, 900))
        waiting = {
            i: draw.randint(1, most) for i in draw.sample(range(slots), draw.randint(1, slots))
        }
        calls = 0
        while waiting:
            width, size, rows, taken = packing(waiting, slots)
            assert width in (*WIDTHS, size) and size in SIZES and 1 <= len(taken) <= rows <= slots
            assert sum(taken.values()) <= size and max(taken.values()) <= width
            assert all(0 < n <= waiting[i] for i, n in taken.items())
            sizes.add((slots, width, size, rows))
            waiting = {i: n - taken.get(i, 0) for i, n in waiting.items() if n > taken.get(i, 0)}
            calls += 1
        assert calls <= 1 + slots * most // 200
    assert len({s for s in sizes if s[0] == 32}) <= len(SIZES) * len(WIDTHS)


def test_feeds_of_all_slots_are_read_in_one_call():
    width, size, rows, taken = packing({i: 20 + i % 9 for i in range(16)}, 32)
    assert taken == {i: 20 + i % 9 for i in range(16)}
    assert (width, size, rows) == (64, 512, 16)
