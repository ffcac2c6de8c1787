"""Params alone on disk, checked by a checksum of every array; Orbax underneath.

Arrays carry no sharding with them: params written on one number of devices are read on any other,
laid out as the caller asks, each process reading its own part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from cai_jax import rng, storage

PyTree = Any
# The machine's fault, not the checkpoint's.
NOT_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used here; the message is one sentence."""


def save_params(directory: str | Path, params: PyTree, metadata: dict[str, Any]) -> None:
    """Saves parameters alone, replacing what `directory` holds; returns when they are on disk.

    Args:
      directory: appears only when complete.
      params: a tree of dicts of arrays.
      metadata: anything JSON can hold.

    Raises:
      CheckpointError, StorageError: they could not be written.
    """
    document = {"metadata": metadata, "checksums": checksums(params)}
    items = ocp.args.Composite(
        params=ocp.args.PyTreeSave(params), document=ocp.args.JsonSave(document)
    )
    directory = storage.absolute(storage.path(directory))
    with WriteErrors(directory), _params_checkpointer() as checkpointer:
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
    template = saved_shapes(directory)
    directory = storage.absolute(storage.path(directory))
    with _reading(directory), _params_checkpointer() as checkpointer:
        if shardings is not None:
            template = jax.tree.map(
                lambda t, s: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=s),
                template,
                shardings,
            )
        items = ocp.args.Composite(params=restore_args(template), document=ocp.args.JsonRestore())
        restored = checkpointer.restore(directory, args=items)
        check_sums(restored["params"], restored["document"]["checksums"])
    return restored["params"], restored["document"]["metadata"]


def saved_shapes(directory: str | Path) -> PyTree:
    """Shapes and dtypes of what `save_params` wrote, as jax.ShapeDtypeStruct; reads no array.

    Raises:
      CheckpointError: the folder is missing or damaged.
    """
    directory = storage.absolute(storage.path(directory))
    if not directory.exists():  # what is_dir() says of a bucket out of reach too
        raise CheckpointError(f"There are no saved parameters at {directory}.")
    with _reading(directory), _params_checkpointer() as checkpointer:
        found = checkpointer.metadata(directory).item_metadata["params"].tree
        return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), found)


@contextlib.contextmanager
def read_errors(directory: Path, what: str, remedy: str) -> Iterator[None]:
    """Turns whatever reading damaged files raises into one sentence: what cannot be read, why, and
    the remedy; or that the folder's bucket cannot be reached."""
    try:
        yield
    except NOT_DAMAGE:
        raise
    except Exception as error:
        if (away := storage.not_reached(error, directory)) is not None:
            raise away from error
        raise CheckpointError(f"{what} cannot be read ({first_line(error)}); {remedy}.") from error


def _reading(directory: Path) -> contextlib.AbstractContextManager[None]:
    remedy = f"remove {directory.parent} to make them again, or put a whole copy there"
    return read_errors(directory, f"The parameters saved at {directory}", remedy)


class WriteErrors:
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
                f"A checkpoint could not be written to {self._directory} ({first_line(error)}); "
                "check that there is room and that the folder may be written."
            ) from error


def _params_checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(
            params=ocp.PyTreeCheckpointHandler(use_compression=False),
            document=ocp.JsonCheckpointHandler(),
        )
    )


def named(tree: PyTree) -> dict[str, Any]:
    """Leaves by the path to them, keys joined by slashes."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def restore_args(template: PyTree, partial_restore: bool = False) -> ocp.args.PyTreeRestore:
    """How Orbax is asked for a tree; a part of what it has saved where `partial_restore`."""
    device = jax.config.jax_default_device  # which code may have set for a while
    device = device if isinstance(device, jax.Device) else jax.local_devices()[0]
    default = jax.sharding.SingleDeviceSharding(device)

    def place(leaf):
        sharding = getattr(leaf, "sharding", None) or default
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    abstract = jax.tree.map(place, template)
    args = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(abstract, restore_args=args, partial_restore=partial_restore)


def check_shapes(found: PyTree, template: PyTree, where: Path) -> None:
    """Raises CheckpointError unless two trees hold arrays of the same shapes and dtypes."""
    found, expected = named(found), named(template)
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


def checksums(tree: PyTree) -> dict[str, int]:
    """A number of 32 bits for each array, by its name: the same on any number of devices."""
    return {name: int(value) for name, value in named(jax.device_get(_sums(tree))).items()}


def check_sums(tree: PyTree, expected: dict[str, int]) -> None:
    """Raises OSError where an array's checksum is another."""
    # Storage reads a lost piece of an array as zeros and checks no values: this does.
    for name, value in checksums(tree).items():
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


def first_line(error: Exception) -> str:
    """An error in one line that is short enough for a sentence."""
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    return line.split(". See full")[0][:200]  # TensorStore goes on with addresses of its own
