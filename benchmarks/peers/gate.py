"""A library's own training loop, one step at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Gate:
    """Runs a training loop in a thread and stops it after each step.

    Args:
      loop: is called in the thread with `pause`, which it has to call after every step.
    """

    def __init__(self, loop: Callable[[Callable[[], None]], None]):
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._loop, self._error = loop, None
        threading.Thread(target=self._run, daemon=True).start()

    def step(self) -> None:
        """Lets the loop do one step more.

        Raises:
          RuntimeError: the loop ended instead.
        """
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise RuntimeError("the training loop ended before this step was done") from self._error

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._loop(self._pause)
            self._error = StopIteration()
        except BaseException as error:
            self._error = error
        self._done.release()

    def _pause(self) -> None:
        self._done.release()
        self._go.acquire()
