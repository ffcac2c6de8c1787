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
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from cai_jax import growing, hosts, rng, storage

PyTree = Any
# The machine's fault, not the checkpoint's.
_NOT_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used here; the message is one sentence."""


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
        document = {"extra": extra, "checksums": _checksums(state)}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), document=ocp.args.JsonSave(document)
        )
        with _WriteErrors(self.directory):
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
            except (CheckpointError, *_NOT_DAMAGE):
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
        with _WriteErrors(self.directory):
            self._manager.wait_until_finished()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.directory,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                "document": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=jax.default_backend() != "cpu",
            ),
        )

    def _read(self, step: int, template: PyTree) -> tuple[PyTree, dict[str, Any]]:
        found = self._manager.item_metadata(step)["state"].tree
        check_shapes(found, template, self.directory / str(step))
        items = ocp.args.Composite(state=_restore_args(template), document=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        _check_sums(restored["state"], restored["document"]["checksums"])
        return restored["state"], restored["document"]["extra"]

    def _set_aside(self, step: int, error: Exception) -> None:
        damaged = self.directory / f"damaged-{step}"
        warnings.warn(
            f"The checkpoint of step {step} in {self.directory} is damaged "
            f"({_first_line(error)}); it is moved to {damaged.name} and the one before it is used.",
            stacklevel=3,
        )
        self._manager.close()
        hosts.once(lambda: storage.move(self.directory / str(step), damaged))
        self._manager = self._open()


def save_params(directory: str | Path, params: PyTree, metadata: dict[str, Any]) -> None:
    """Saves parameters alone, replacing what `directory` holds; returns when they are on disk.

    Args:
      directory: appears only when complete.
      params: a tree of dicts of arrays.
      metadata: anything JSON can hold.

    Raises:
      CheckpointError, StorageError: they could not be written.
    """
    document = {"metadata": metadata, "checksums": _checksums(params)}
    items = ocp.args.Composite(
        params=ocp.args.PyTreeSave(params), document=ocp.args.JsonSave(document)
    )
    directory = storage.absolute(storage.path(directory))
    with _WriteErrors(directory), _params_checkpointer() as checkpointer:
        checkpointer.save(directory, args=items, force=True)


def load_params(
    directory: str | Path, shardings: PyTree | None = None
) -> tuple[PyTree, dict[str, Any]]:
    """Reads what `save_params` wrote.

    Args:
      directory: the folder.
      shardings: a tree of jax.sharding.Sharding like the params, or None for the default device.

    Returns:
      (params, metadata), every array bit for bit as it was saved.

    Raises:
      CheckpointError: the folder is missing, damaged, or holds other tensors than `shardings`.
    """
    directory = storage.absolute(storage.path(directory))
    if not directory.exists():  # what is_dir() says of a bucket out of reach too
        raise CheckpointError(f"There are no saved parameters at {directory}.")
    try:
        with _params_checkpointer() as checkpointer:
            found = checkpointer.metadata(directory).item_metadata["params"].tree
            template = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), found)
            if shardings is not None:
                template = jax.tree.map(
                    lambda t, s: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=s),
                    template,
                    shardings,
                )
            items = ocp.args.Composite(
                params=_restore_args(template), document=ocp.args.JsonRestore()
            )
            restored = checkpointer.restore(directory, args=items)
        _check_sums(restored["params"], restored["document"]["checksums"])
    except _NOT_DAMAGE:
        raise
    except Exception as error:
        if (away := storage.not_reached(error, directory)) is not None:
            raise away from error
        raise CheckpointError(
            f"The parameters saved at {directory} cannot be read ({_first_line(error)}); remove "
            f"{directory.parent} to make them again, or put a whole copy there."
        ) from error
    return restored["params"], restored["document"]["metadata"]


class _WriteErrors:
    """Turns whatever the storage layers raise into one sentence that names the folder."""

    def __init__(self, directory: Path):
        self._directory = directory

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, Exception):
            if (away := storage.not_reached(error, self._directory)) is not None:
                raise away from error
            raise CheckpointError(
                f"A checkpoint could not be written to {self._directory} ({_first_line(error)}); "
                "check that there is room and that the folder may be written."
            ) from error


def _params_checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(
            params=ocp.PyTreeCheckpointHandler(use_compression=False),
            document=ocp.JsonCheckpointHandler(),
        )
    )


def _named(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def _restore_args(template: PyTree) -> ocp.args.PyTreeRestore:
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf):
        sharding = getattr(leaf, "sharding", None) or default
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    abstract = jax.tree.map(place, template)
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(abstract, restore_args=restore_args)


def check_shapes(found: PyTree, template: PyTree, where: Path) -> None:
    """Raises CheckpointError unless two trees hold arrays of the same shapes and dtypes."""
    found, expected = _named(found), _named(template)
    for name in [*expected, *found]:
        here, there = (
            _describe(tree[name]) if name in tree else None for tree in (expected, found)
        )
        if here != there:
            raise CheckpointError(
                f"The checkpoint {where} holds {there or 'nothing'} at {name}, where this run's "
                f"config needs {here or 'nothing'}; use the config it was written with or a new "
                "workdir."
            )


def _describe(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _checksums(tree: PyTree) -> dict[str, int]:
    return {name: int(value) for name, value in _named(jax.device_get(_sums(tree))).items()}


def _check_sums(tree: PyTree, expected: dict[str, int]) -> None:
    # Storage reads a lost piece of an array as zeros and checks no values: this does.
    for name, value in _checksums(tree).items():
        if expected[name] != value:
            raise OSError(f"the values of {name} are not those that were saved")


@jax.jit
def _sums(tree: PyTree) -> PyTree:
    """One uint32 an array: its bits, each weighted by an odd hash of its index, summed mod 2^32.

    Integer arithmetic, so the result doesn't depend on the sharding or the number of devices.
    """

    def leaf_sum(x):
        x = jnp.asarray(x)
        if x.dtype == jnp.bool_:
            bits = x
        else:
            bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        weights = rng.counter_bits(x.shape) | jnp.uint32(1)
        return (bits.astype(jnp.uint32) * weights).sum(dtype=jnp.uint32)

    return jax.tree.map(leaf_sum, tree)


def _first_line(error: Exception) -> str:
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    return line.split(". See full")[0][:200]  # TensorStore goes on with addresses of its own
