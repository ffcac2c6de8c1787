"""SIGTERM, which schedulers send some seconds before they take a machine away.

What is sampled and scored lies in shards that are written whole, so those stages end at once. A
training loop notes the signal, saves where a step ends, and stops there.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cai_jax import growing
from cai_jax.training.checkpoint import Checkpoints

PyTree = Any


class Terminated(KeyboardInterrupt):
    """SIGTERM came; the message says what is saved. Like Ctrl-C it is no Exception."""

    exit_code = 128 + signal.SIGTERM


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """While open, SIGTERM raises Terminated in the main thread.

    However it closes, logs in a bucket are then whole.
    """

    def end(number, frame):
        raise Terminated("Stopped by SIGTERM")

    with _handler(end):
        try:
            yield
        finally:
            growing.put_all()


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """While open, SIGTERM is noted only, for a loop that saves before it stops.

    Yields:
      asked(): whether SIGTERM has come to any process. Every process calls it at the same points
      of the same loop, and all get the same answer; where there are several, that of the call
      before, so that none waits for the others. A SIGTERM that no answer told of is raised again
      when this closes.
    """
    came = told = False
    everywhere = _agreement() if jax.process_count() > 1 else bool

    def note(number, frame):
        nonlocal came
        came = True

    def asked() -> bool:
        nonlocal told
        told = everywhere(came)
        return told

    with _handler(note):
        yield asked
    if came and not told:
        signal.raise_signal(signal.SIGTERM)


def save_and_stop(
    checkpoints: Checkpoints, step: int, state: PyTree, extra: dict[str, Any], reached: str
) -> NoReturn:
    """Saves `state` unless that step is saved, waits until it is on disk, raises Terminated.

    Args:
      reached: what is then saved, such as "step 3 of 12".
    """
    checkpoints.wait()
    if step not in checkpoints.steps():
        checkpoints.save(step, state, extra)
        checkpoints.wait()
    raise Terminated(f"Stopped by SIGTERM: {reached} is saved in {checkpoints.directory}")


@contextlib.contextmanager
def _handler(function: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets the main thread alone set handlers
        return
    former = signal.signal(signal.SIGTERM, function)
    try:
        yield
    finally:
        # None stands for a handler set outside Python, such as that of jax.distributed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if former is None else former)


def _agreement() -> Callable[[bool], bool]:
    """A function of one bool from each process: whether any was true at the call before."""
    mesh = Mesh(np.array(jax.devices()), ("all",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("all",), ()))
    some = jax.jit(jnp.any, out_shardings=whole)
    answer: jax.Array | None = None

    def agreed(mine: bool) -> bool:
        nonlocal answer
        before = answer
        answer = some(
            jax.make_array_from_callback((mesh.size,), split, lambda index: np.full(1, mine))
        )
        return before is not None and bool(before)

    return agreed
