"""Device meshes, and the table that lays arrays out on them by the names of their axes.

From the slowest network to the fastest: `slice` for TPU slices that only a data centre's network
joins, each with all params, gradients summed over them; `data`, the same within a slice; `fsdp`,
rows of a batch and params split; `sequence`, the tokens of a row and params split; `tensor`, heads
and the MLP split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

PyTree = Any
AxisNames = tuple[str | None, ...]
Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

MESH_AXES = ("slice", "data", "fsdp", "sequence", "tensor")
ROWS = ("slice", "data", "fsdp")  # which split a batch

# Logical axis -> mesh axis (several: split over all of them; None: whole on every device).
DEFAULT_RULES: Rules = (
    ("batch", ROWS),
    ("tokens", "sequence"),
    ("pieces", (*ROWS, "sequence")),  # rows cut into each device's tokens
    ("replicas", ("slice", "data")),  # of the params
    ("unembedded", ("fsdp", "sequence", "tensor")),  # the vocabulary where logits are made
    ("slots", ROWS),
    ("rows", (*ROWS, "tensor")),
    ("embed", ("sequence", "fsdp")),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("vocab", "tensor"),
    ("head_dim", None),
    ("layers", None),
    ("norm", None),
)

# By the last two names of a tensor's path, so params, their gradients and their optimiser moments
# are all covered; a layer's tensors have a leading layers axis.
_PARAM_AXES: Mapping[tuple[str, str], AxisNames] = {
    ("embed", "embedding"): ("vocab", "embed"),
    **{
        (f"{name}_norm", kind): ("layers", "norm")
        for name in ("attention", "attention_post", "mlp", "mlp_post")
        for kind in ("scale", "bias")
    },
    # Of all heads together; over each head's own dimensions they have no axis of heads.
    ("q_norm", "scale"): ("layers", "heads", "head_dim"),
    ("k_norm", "scale"): ("layers", "kv_heads", "head_dim"),
    ("q", "kernel"): ("layers", "embed", "heads", "head_dim"),
    ("k", "kernel"): ("layers", "embed", "kv_heads", "head_dim"),
    ("v", "kernel"): ("layers", "embed", "kv_heads", "head_dim"),
    ("q", "bias"): ("layers", "heads", "head_dim"),
    ("k", "bias"): ("layers", "kv_heads", "head_dim"),
    ("v", "bias"): ("layers", "kv_heads", "head_dim"),
    ("o", "kernel"): ("layers", "heads", "head_dim", "embed"),
    ("o", "bias"): ("layers", None),
    ("gate", "kernel"): ("layers", "embed", "mlp"),
    ("gate", "bias"): ("layers", "mlp"),
    ("up", "bias"): ("layers", "mlp"),
    ("down", "bias"): ("layers", None),
    ("up", "kernel"): ("layers", "embed", "mlp"),
    ("down", "kernel"): ("layers", "mlp", "embed"),
    ("router", "kernel"): ("layers", "embed", None),
    ("experts_gate", "kernel"): ("layers", None, "embed", "mlp"),
    ("experts_up", "kernel"): ("layers", None, "embed", "mlp"),
    ("experts_down", "kernel"): ("layers", None, "mlp", "embed"),
    # Adapters (models.lora): the rank is whole everywhere.
    **{(f"{name}_lora", "a"): ("layers", "embed", None) for name in ("q", "k", "v", "gate", "up")},
    ("q_lora", "b"): ("layers", None, "heads", "head_dim"),
    ("k_lora", "b"): ("layers", None, "kv_heads", "head_dim"),
    ("v_lora", "b"): ("layers", None, "kv_heads", "head_dim"),
    ("o_lora", "a"): ("layers", "heads", "head_dim", None),
    ("o_lora", "b"): ("layers", None, "embed"),
    ("gate_lora", "b"): ("layers", None, "mlp"),
    ("up_lora", "b"): ("layers", None, "mlp"),
    ("down_lora", "a"): ("layers", "mlp", None),
    ("down_lora", "b"): ("layers", None, "embed"),
    ("final_norm", "scale"): ("norm",),
    ("final_norm", "bias"): ("norm",),
    ("lm_head", "kernel"): ("embed", "vocab"),
    ("scalar_head", "kernel"): ("embed", None),
    ("scalar_head", "bias"): (None,),
}


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes of MESH_AXES.

    Args:
      shape: sizes of those axes; one may be -1 and takes what is left.
      devices: all of all processes unless given.

    Raises:
      ValueError: other axes, sizes whose product is not the number of devices, or TPU slices of
        another number than `slice`.
    """
    if set(shape) != set(MESH_AXES):
        raise ValueError(
            f"A mesh has the axes {', '.join(MESH_AXES)}; the config gives "
            f"{', '.join(shape) or 'none'}."
        )
    sizes = [shape[name] for name in MESH_AXES]
    devices = jax.devices() if devices is None else devices
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and fixed > 0 and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        asked = ", ".join(f"{name}={shape[name]}" for name in MESH_AXES)
        raise ValueError(
            f"The mesh {asked} does not cover the {len(devices)} devices exactly; the sizes must "
            "multiply to that, and at most one may be -1."
        )
    types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return Mesh(_arranged(tuple(sizes), devices), MESH_AXES, axis_types=types)


def _arranged(sizes: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices in the mesh's shape, so that the last axes have the fastest links."""
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if devices[0].platform != "tpu" or len(slices) == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if sizes[0] != len(slices):
        raise ValueError(
            f"The devices are {len(slices)} TPU slices and the mesh has slice={sizes[0]}; set "
            f"slice={len(slices)}, so that only gradients cross the network between them."
        )
    return mesh_utils.create_hybrid_device_mesh(
        (1, *sizes[1:]),
        (len(slices), *[1] * (len(sizes) - 1)),
        devices,
        allow_split_physical_axes=True,
    )


def spec(names: AxisNames, rules: Rules) -> PartitionSpec:
    """The partition of an array whose axes have these logical names (None: not split)."""
    table = dict(rules)
    if unknown := [name for name in names if name is not None and name not in table]:
        raise ValueError(f"The sharding rules have no line for the axis {unknown[0]!r}.")
    return PartitionSpec(*(None if name is None else table[name] for name in names))


def shardings(axes: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """A tree of NamedSharding from a tree of tuples of logical axis names."""
    return jax.tree.map(
        lambda names: NamedSharding(mesh, spec(names, rules)),
        axes,
        # A plain tuple of names is a leaf; an optimiser's empty state is a NamedTuple.
        is_leaf=lambda x: type(x) is tuple and all(n is None or isinstance(n, str) for n in x),
    )


def param_axes(params: PyTree) -> PyTree:
    """The logical axis names of every tensor, found by its path.

    Works on params, on a PM's or value model's, and on a whole TrainState: optimiser moments lie
    under the same names. What has another rank than the table says (a step counter, Adafactor's
    factors) gets no names and is whole on every device.

    Returns:
      A tree like `params` of tuples of names, for `shardings`.

    Raises:
      ValueError: a tensor of rank 1 or more whose path the table doesn't know.
    """

    def names(path, leaf):
        keys = [jax.tree_util.keystr((entry,), simple=True) for entry in path]
        parts = keys[-2:-1] == ["kernel"]  # models.int8: its integers and scales
        found = _PARAM_AXES.get(tuple(keys[-3:-1] if parts else keys[-2:]))
        if parts and found:  # a scale has one for all that is summed over
            sizes = zip(found, leaf.shape, strict=True)
            found = tuple(name if size > 1 else None for name, size in sizes)
        rank = len(leaf.shape)
        if rank and found is None:
            raise ValueError(f"No logical axes are known for the tensor {'/'.join(keys)}.")
        return found if found and len(found) == rank else (None,) * rank

    return jax.tree_util.tree_map_with_path(names, params)


def param_shardings(params: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """Shardings for params or a TrainState (arrays or ShapeDtypeStruct), checked to divide.

    Raises:
      ValueError: a dimension that its mesh axes do not divide; the sentence names both.
    """
    axes = param_axes(params)
    tree = shardings(axes, mesh, rules)

    def check(path, leaf, sharding):
        for axis, (size, over) in enumerate(zip(leaf.shape, sharding.spec, strict=True)):
            over = (over,) if isinstance(over, str) else over or ()
            ways = math.prod(mesh.shape[name] for name in over)
            if size % ways:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ValueError(
                    f"Axis {axis} of {name} has size {size}, which the mesh splits {ways} ways "
                    f"({', '.join(over)}); change the mesh or map that axis to None in the rules."
                )

    jax.tree_util.tree_map_with_path(check, params, tree)
    return tree


def mesh_of(tree: PyTree) -> Mesh | None:
    """The mesh of more than one device that arrays are laid out on, if they are on one."""
    found = getattr(jax.tree.leaves(tree)[0], "sharding", None)
    return found.mesh if isinstance(found, NamedSharding) and found.mesh.size > 1 else None


def traced_mesh_of(tree: PyTree) -> AbstractMesh | None:
    """`mesh_of` for jitted code, where arrays know their mesh's axes but not its devices.

    None also for a mesh of other axes than MESH_AXES.
    """
    mesh = jax.typeof(jax.tree.leaves(tree)[0]).sharding.mesh
    return mesh if mesh.size > 1 and mesh.axis_names == MESH_AXES else None


def fitted(
    mesh: Mesh | AbstractMesh | None, shape: tuple[int, ...], *names: str | None
) -> NamedSharding | None:
    """The sharding of an array by names of its first axes, over what divides them.

    Of the mesh axes of a name, the last are left out until the rest divide the array's axis, so
    that any size fits. None without a mesh, which stands for the default device.
    """
    if mesh is None:
        return None
    parts = []
    for size, over in zip(shape, spec(names, DEFAULT_RULES), strict=False):
        over = (over,) if isinstance(over, str) else over or ()
        over = [name for name in over if mesh.shape[name] > 1]
        while size % math.prod(mesh.shape[name] for name in over):
            over.pop()
        parts.append(tuple(over) if len(over) > 1 else over[0] if over else None)
    return NamedSharding(mesh, PartitionSpec(*parts))


def constrain(x: jax.Array, mesh: Mesh | AbstractMesh | None, *names: str | None) -> jax.Array:
    """In jitted code, lays an array out as `fitted` says; without names, whole on every device."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, fitted(mesh, x.shape, *names))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over slice, data and fsdp; every other axis whole. For every array of a batch.

    Also where `sequence` splits the tokens: ids are small, and each device takes its own of them
    inside the step, wherever padding put them.
    """
    return NamedSharding(mesh, PartitionSpec(ROWS))


def row_ways(mesh: Mesh) -> int:
    """How many ways a batch is split."""
    return math.prod(mesh.shape[name] for name in ROWS)


def place(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Lays params or a TrainState out on the mesh; without one, commits it to the first device.

    An array that is committed in one call of a jitted function and not in the next compiles twice.
    """
    if mesh is None:
        return jax.device_put(tree, jax.local_devices()[0])
    return jax.device_put(tree, param_shardings(tree, mesh, DEFAULT_RULES))


def layout(tree: PyTree) -> PyTree:
    """The sharding of every array."""
    return jax.tree.map(lambda x: x.sharding, tree)


def shard_batch(batch: PyTree, mesh: Mesh | None) -> PyTree:
    """Puts a host batch on the mesh; without one, leaves it where it is.

    Args:
      batch: a tree of arrays with a leading batch axis. Every process passes the same global
        batch, and each copies only its own rows to its devices.

    Raises:
      ValueError: the number of rows is not a multiple of slice x data x fsdp.
    """
    if mesh is None:
        return batch
    sharding = batch_sharding(mesh)
    ways = row_ways(mesh)

    def put(x):
        x = np.asarray(x)
        if x.shape[0] % ways:
            raise ValueError(
                f"A batch of {x.shape[0]} rows does not divide over slice x data x fsdp = {ways}; "
                "change batch_size or the mesh."
            )
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, batch)
