"""Checkpoints that survive a kill: Orbax underneath, checked by a checksum of every array.

A save goes to a temporary folder that is renamed when complete, so a process killed while saving
leaves the checkpoint before it untouched. Arrays carry no sharding with them: a checkpoint written
on one number of devices is read on any other, laid out as the template asks.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from cai_jax import growing, hosts, storage
from cai_jax.saved_params import (
    NOT_DAMAGE,
    CheckpointError,
    WriteErrors,
    check_shapes,
    check_sums,
    checksums,
    first_line,
    read_errors,
    restore_args,
)

PyTree = Any


class Checkpoints:
    """The numbered checkpoints of one training run, the newest `keep` of them.

    Args:
      directory: created if absent.
      keep: how many to keep, at least 1; 2 or more leave one to fall back on.
    """

    def __init__(self, directory: str | Path, keep: int):
        self.directory = storage.absolute(storage.path(directory))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._manager = self._open()

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: PyTree, extra: dict[str, Any]) -> None:
        """Saves; when it returns, `state` may be donated.

        On an accelerator the arrays are copied to the host and written in the background. On CPU
        the write is done before it returns: a background write would read the very buffers that
        the next step overwrites, or need a second copy of everything.

        Args:
          step: the number of optimiser steps `state` has seen.
          state: any tree of arrays.
          extra: anything JSON can hold.

        Raises:
          CheckpointError, StorageError: this save, or the one before it, could not be written.
        """
        document = {"extra": extra, "checksums": checksums(state)}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), document=ocp.args.JsonSave(document)
        )
        with WriteErrors(self.directory):
            growing.put_all()  # the rows of the steps that the checkpoint holds
            self._manager.wait_until_finished()
            # Without force it may decide, silently, that this step need not be saved.
            self._manager.save(step, args=items, force=True)

    def restore(self, template: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """Reads the newest good checkpoint.

        Args:
          template: a tree like the one saved, of arrays or jax.ShapeDtypeStruct; its shapes and
            dtypes are what is expected, its shardings say where the arrays go.

        Returns:
          (state, extra), or None if there is no checkpoint. One that is damaged is moved to
          `damaged-STEP` with a warning, and the one before it is read.

        Raises:
          CheckpointError: a checkpoint holds other tensors, shapes or dtypes than the template
            (found out before anything is allocated), or every checkpoint is damaged.
          StorageError: the bucket cannot be reached.
        """
        self._wait()
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._read(step, template)
            except (CheckpointError, *NOT_DAMAGE):
                raise
            except Exception as error:
                if (away := storage.not_reached(error, self.directory)) is not None:
                    raise away from error
                self._set_aside(step, error)
        if steps:
            raise CheckpointError(
                f"Every checkpoint in {self.directory} is damaged; remove that folder to start "
                "this stage again."
            )
        return None

    def wait(self) -> None:
        """Returns when the last save is on disk.

        Raises:
          CheckpointError, StorageError: it could not be written.
        """
        self._wait()

    def close(self) -> None:
        """Waits, then releases the threads; the object is of no further use."""
        self._wait()
        self._manager.close()

    def _wait(self) -> None:
        with WriteErrors(self.directory):
            self._manager.wait_until_finished()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.directory,
            item_handlers=_handlers(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=jax.default_backend() != "cpu",
            ),
        )

    def _read(self, step: int, template: PyTree) -> tuple[PyTree, dict[str, Any]]:
        found = self._manager.item_metadata(step)["state"].tree
        check_shapes(found, template, self.directory / str(step))
        items = ocp.args.Composite(state=restore_args(template), document=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        check_sums(restored["state"], restored["document"]["checksums"])
        return restored["state"], restored["document"]["extra"]

    def _set_aside(self, step: int, error: Exception) -> None:
        damaged = self.directory / f"damaged-{step}"
        warnings.warn(
            f"The checkpoint of step {step} in {self.directory} is damaged "
            f"({first_line(error)}); it is moved to {damaged.name} and the one before it is used.",
            stacklevel=3,
        )
        self._manager.close()
        hosts.once(lambda: storage.move(self.directory / str(step), damaged))
        self._manager = self._open()


def trained_params(directory: str | Path, step: int) -> PyTree:
    """The params in a checkpoint of training, without its optimiser's state, which is not read.

    Training may go on meanwhile. Of PPO's models it is the policy's params.

    Args:
      directory: of a `Checkpoints`.
      step: which of its checkpoints.

    Returns:
      params, float32, on the default device.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
      StorageError: the bucket cannot be reached.
    """
    directory = storage.absolute(storage.path(directory))
    options = ocp.CheckpointManagerOptions(read_only=True)  # the trainer may be writing there
    steps: list[int] = []
    if directory.exists():
        with ocp.CheckpointManager(directory, item_handlers=_handlers(), options=options) as found:
            steps = sorted(found.all_steps())
            if step in steps:
                return _params_in(found, step, directory)
    there = f"it has those of {', '.join(map(str, steps))}" if steps else "it has none"
    raise CheckpointError(f"{directory} has no checkpoint of step {step}; {there}.")


def _params_in(manager: ocp.CheckpointManager, step: int, directory: Path) -> PyTree:
    what = f"The checkpoint of step {step} in {directory}"
    with read_errors(directory, what, "take another step"):
        found = manager.item_metadata(step)["state"].tree
        outer = ["policy"] if "policy" in found else []
        params = found["policy"]["params"] if outer else found["params"]
        template = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), params)
        for key in ["params", *outer]:
            template = {key: template}
        args = ocp.args.Composite(
            state=restore_args(template, partial_restore=True), document=ocp.args.JsonRestore()
        )
        restored = manager.restore(step, args=args)
        check_sums(restored["state"], restored["document"]["checksums"])
    state = restored["state"]
    return (state["policy"] if outer else state)["params"]


def _handlers() -> dict[str, Any]:
    return {
        "state": ocp.PyTreeCheckpointHandler(use_compression=False),
        "document": ocp.JsonCheckpointHandler(),
    }
