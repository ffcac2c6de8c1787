"""The training loop of every stage: resume, step, log one step late, save, stop on a bad loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cai_jax.training.checkpoint import Checkpoints
from cai_jax.training.metrics import MetricsLog
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
) -> TrainState:
    """Trains up to `total_steps`, from the newest good checkpoint if there is one.

    Every process of a multi-host run calls it; process 0 writes the log.

    Step n + 1 is dispatched before the metrics of step n are fetched, so the device never waits
    for the host. A run killed anywhere and started again ends with the same state and the same
    metrics.jsonl as one that was not, given a `batches` that depends on its argument alone.

    Args:
      state: the state to begin with, also the template for a checkpoint; it is donated.
      step_fn: from `make_step`.
      batches: the batch for the step that follows `step` steps.
      total_steps: where to stop; also the step of the last checkpoint.
      checkpoints: where to save and resume.
      save_every: steps between checkpoints, at least 1.
      metrics_log: one row a step, numbered from 1.
      frozen: passed to `step_fn` after the batch: reference and preference params.
      progress: called with (steps done, total_steps, that step's metrics), one step late.
      on_step: called with (steps done, state) after each dispatch; it must not keep the state,
        which the next step donates.

    Returns:
      The state after `total_steps`, saved.

    Raises:
      TrainingError: a loss or gradient norm is not finite. The batch is in `bad_batch.npz` beside
        the metrics, and nothing from that step on has been saved.
      CheckpointError: see `Checkpoints`.
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
    writes = jax.process_index() == 0
    if writes:
        metrics_log.truncate(done)
    clock = time.perf_counter()
    pending = None

    def settle() -> None:
        """Fetches, checks and logs the step dispatched before."""
        nonlocal clock, pending
        if pending is None:
            return
        step, batch, metrics = pending
        pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in _CHECKED:
            if not np.isfinite(values.get(name, 0.0)):
                raise TrainingError(
                    f"{name} is {values[name]} at step {step}: its batch is in "
                    f"{_save_batch(metrics_log.path.parent, batch)}, and "
                    + (
                        f"the last good checkpoint is step {saved} in {checkpoints.directory}"
                        if saved is not None
                        else "there is no checkpoint yet"
                    )
                    + "; lower the learning rate or look at that batch."
                )
        now = time.perf_counter()
        if writes:
            metrics_log.write(step, {**values, "perf/step_seconds": now - clock})
        clock = now
        if progress is not None:
            progress(step, total_steps, values)

    while done < total_steps:
        batch = batches(done)
        state, metrics = step_fn(state, batch, *frozen)
        done += 1
        settle()
        pending = (done, batch, metrics)
        if on_step is not None:
            on_step(done, state)
        if done % save_every == 0 or done == total_steps:
            settle()  # a step is known to be good, and its row written, before it is saved
            checkpoints.save(done, state, {})
            saved = done
    if saved is None:
        checkpoints.save(done, state, {})  # total_steps is 0: the start is the result
    checkpoints.wait()
    return state


def _save_batch(directory: Path, batch: PyTree) -> Path:
    leaves = jax.tree_util.tree_flatten_with_path(batch)[0]
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator=".") or "batch": np.asarray(leaf)
        for path, leaf in leaves
    }
    path = directory / "bad_batch.npz"
    np.savez(path, **arrays)
    return path
