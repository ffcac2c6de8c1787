"""Batches made ahead in a thread, so that the device does not wait for the host."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

T = TypeVar("T")
AHEAD = 2  # batches; each is in memory
_TICK = 0.001  # seconds between two looks at whether the device still works


class Prefetch(Generic[T]):
    """`make(first)`, `make(first + 1)`, ... up to `make(last - 1)`, one after another in a thread.

    Use as a context. What `make` raises is raised where its batch is taken, after those before it.
    """

    def __init__(self, make: Callable[[int], T], first: int, last: int):
        self._make = make
        self._numbers = iter(range(first, last))
        self._coming: deque[Future[T]] = deque()
        self._thread = ThreadPoolExecutor(1, "batches")

    def __enter__(self) -> Prefetch[T]:
        for _ in range(AHEAD):
            self._order()
        return self

    def __exit__(self, *error) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, busy: Callable[[], bool]) -> tuple[T, float]:
        """The next batch, and the seconds that it was waited for while nothing was `busy`.

        Args:
          busy: whether the device has something to do.
        """
        batch, idle = self._coming.popleft(), 0.0
        while not batch.done():
            waits, began = not busy(), time.perf_counter()
            wait([batch], _TICK)
            idle += (time.perf_counter() - began) * waits
        self._order()
        return batch.result(), idle

    def _order(self) -> None:
        for number in self._numbers:
            self._coming.append(self._thread.submit(self._make, number))
            break
