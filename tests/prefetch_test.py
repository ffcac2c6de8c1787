import threading
import time

import pytest

from cai_jax.training.prefetch import AHEAD, Prefetch


def never():
    return False


def test_all_in_order_from_one_thread():
    asked = []

    def make(number):
        asked.append((number, threading.current_thread().name))
        return -number

    with Prefetch(make, 3, 9) as coming:
        assert [coming.take(never)[0] for _ in range(3, 9)] == [-3, -4, -5, -6, -7, -8]
    assert [number for number, _ in asked] == [3, 4, 5, 6, 7, 8]
    assert len({thread for _, thread in asked}) == 1
    assert asked[0][1] != threading.current_thread().name


def test_they_are_made_ahead_but_no_further():
    made = threading.Semaphore(0)
    asked = []

    def make(number):
        asked.append(number)
        made.release()
        return number

    with Prefetch(make, 0, 100) as coming:
        for _ in range(AHEAD):
            assert made.acquire(timeout=10)
        time.sleep(0.05)
        assert asked == list(range(AHEAD))
        coming.take(never)
        assert made.acquire(timeout=10)
        time.sleep(0.05)
        assert asked == list(range(AHEAD + 1))


def test_an_error_comes_with_its_batch():
    def make(number):
        if number == 2:
            raise KeyboardInterrupt("no third batch")
        return number

    with (
        pytest.raises(KeyboardInterrupt, match="no third batch"),
        Prefetch(make, 0, 9) as coming,
    ):
        assert [coming.take(never)[0] for _ in range(2)] == [0, 1]
        coming.take(never)
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_only_the_time_without_work_is_counted():
    def slow(number):
        time.sleep(0.2)
        return number

    with Prefetch(slow, 0, 3) as coming:
        _, idle = coming.take(never)
        assert 0.1 < idle < 0.4
        _, idle = coming.take(lambda: True)
        assert idle == 0
        time.sleep(0.4)
        _, idle = coming.take(never)
        assert idle < 0.1


def test_nothing_to_make():
    with Prefetch(lambda number: 1 / 0, 4, 4):
        pass
