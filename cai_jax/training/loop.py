"""The training loop: resume, step, log one step late, save; stop on SIGTERM or a bad loss."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cai_jax.shards import write_atomically
from cai_jax.training import preemption
from cai_jax.training.checkpoint import Checkpoints
from cai_jax.training.metrics import MetricsLog
from cai_jax.training.prefetch import Prefetch
from cai_jax.training.state import TrainState

PyTree = Any
_CHECKED = ("train/loss", "train/grad_norm")


class TrainingError(ValueError):
    """Training cannot go on; the message is one sentence."""


def train(
    state: TrainState,
    step_fn: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    batches: Callable[[int], PyTree],
    total_steps: int,
    checkpoints: Checkpoints,
    save_every: int,
    metrics_log: MetricsLog,
    frozen: tuple[PyTree, ...] = (),
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
    on_step: Callable[[int, TrainState], None] | None = None,
    rates: Callable[[int, float], Mapping[str, float]] | None = None,
) -> TrainState:
    """Trains up to `total_steps`, from the newest good checkpoint if there is one.

    Every process of a multi-host run calls it; process 0 writes the log.

    Step n + 1 is dispatched before the metrics of step n are fetched, and batches are made ahead in
    a thread, so the device need not wait for the host. A run killed anywhere and started again ends
    with the same state and the same metrics.jsonl as one that was not, given a `batches` that
    depends on its argument alone. On SIGTERM the step underway is finished and saved.

    Beside the step's own metrics two are logged: perf/step_seconds, from the end of one step to the
    end of the next, and perf/wait_share, the part of them in which the device had nothing to do and
    the next batch was not there.

    Args:
      state: the state to begin with, also the template for a checkpoint; it is donated.
      step_fn: from `make_step`.
      batches: the batch for the step that follows `step` steps; called in a thread, in order.
      total_steps: where to stop; also the step of the last checkpoint.
      checkpoints: where to save and resume.
      save_every: steps between checkpoints, at least 1.
      metrics_log: one row a step, numbered from 1.
      frozen: passed to `step_fn` after the batch: reference and preference params.
      progress: called with (steps done, total_steps, that step's metrics), one step late.
      on_step: called with (steps done, state) after each dispatch; it must not keep the state,
        which the next step donates.
      rates: of a step and the seconds it took, more perf/ metrics.

    Returns:
      The state after `total_steps`, saved.

    Raises:
      TrainingError: a loss or gradient norm is not finite. The batch is in `bad_batch.npz` beside
        the metrics, and nothing from that step on has been saved.
      CheckpointError: see `Checkpoints`.
      Terminated: SIGTERM came, and the message's step is saved.
    """
    done = 0
    saved = None
    if (restored := checkpoints.restore(state)) is not None:
        state, _ = restored
        done = saved = int(state.step)
    if done > total_steps:
        raise TrainingError(
            f"The checkpoint in {checkpoints.directory} is at step {done}, past the {total_steps} "
            "steps asked for; raise the number of steps or use a new workdir."
        )
    metrics_log.truncate(done)
    clock, idle, saving = time.perf_counter(), 0.0, 0.0
    pending = None

    def busy() -> bool:
        """Whether the step dispatched before is still being computed."""
        return pending is not None and not all(x.is_ready() for x in jax.tree.leaves(pending[2]))

    def settle() -> None:
        """Fetches, checks and logs the step dispatched before."""
        nonlocal clock, idle, saving, pending
        if pending is None:
            return
        step, batch, metrics = pending
        pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in _CHECKED:
            if not np.isfinite(values.get(name, 0.0)):
                where = metrics_log.path.parent
                raise not_finite(name, values[name], f"step {step}", batch, where, checkpoints)
        now = time.perf_counter()
        seconds = now - clock
        perf = {"perf/step_seconds": seconds, "perf/wait_share": idle / seconds}
        if saving:
            perf["perf/checkpoint_seconds"] = saving
        clock, idle, saving = now, 0.0, 0.0
        if rates is not None:
            perf |= rates(step, seconds)
        metrics_log.write(step, {**values, **perf})
        if progress is not None:
            progress(step, total_steps, values)

    with Prefetch(batches, done, total_steps) as coming, preemption.noted() as asked:
        while done < total_steps:
            batch, waited = coming.take(busy)
            idle += waited
            state, metrics = step_fn(state, batch, *frozen)
            done += 1
            settle()
            pending = (done, batch, metrics)
            if on_step is not None:
                on_step(done, state)
            if done % save_every == 0 or done == total_steps:
                settle()  # a step is known to be good, and its row written, before it is saved
                began = time.perf_counter()
                checkpoints.save(done, state, {})
                saved, saving = done, time.perf_counter() - began
            if asked():
                settle()
                reached = f"step {done} of {total_steps}"
                preemption.save_and_stop(checkpoints, done, state, {}, reached)
    if saved is None:
        checkpoints.save(done, state, {})  # total_steps is 0: the start is the result
    checkpoints.wait()
    return state


def not_finite(
    name: str, value: float, when: str, batch: PyTree, directory: Path, checkpoints: Checkpoints
) -> TrainingError:
    """The error of a loss, gradient or score that is no number; its batch is then on disk.

    Args:
      name: of the metric.
      when: such as "step 3".
      batch: what it was computed from; saved as `directory`/bad_batch.npz.
      checkpoints: of the run; the last of them is named.
    """
    checkpoints.wait()
    steps = checkpoints.steps()
    good = (
        f"the last good checkpoint is step {steps[-1]} in {checkpoints.directory}"
        if steps
        else "there is no checkpoint yet"
    )
    saved = save_batch(directory, batch)
    return TrainingError(
        f"{name} is {value} at {when}: its batch is in {saved}, and {good}; "
        "lower the learning rate or look at that batch."
    )


def save_batch(directory: Path, batch: PyTree) -> Path:
    """Writes `directory`/bad_batch.npz.

    The batch may lie on the devices of several processes; all of them call this.
    """
    leaves = jax.tree_util.tree_flatten_with_path(batch)[0]
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator=".") or "batch": _whole(leaf)
        for path, leaf in leaves
    }
    path = directory / "bad_batch.npz"
    if jax.process_index() == 0:
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_atomically(path, content.getvalue())
    return path


def _whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)
