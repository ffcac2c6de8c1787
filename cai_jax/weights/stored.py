"""A checked model file whose tensors are still on disk, and their way onto devices by slices."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cai_jax.mesh import DEFAULT_RULES, param_shardings
from cai_jax.models.config import ModelConfig
from cai_jax.models.transformer import Params
from cai_jax.tokenizer import Tokenizer
from cai_jax.weights import names

Box = tuple[tuple[int, int], ...]  # a part of an array: (start, stop) on each axis


@dataclasses.dataclass(frozen=True)
class Stored:
    """A model of which all is known but the values of its tensors.

    Attributes:
      config: its shape; the tensors' names and shapes are those that it asks for.
      dialect: whose names the tensors have.
      read: read(name, index) is the part `index` of a tensor, in its file's shape and Hugging
        Face's row order, of any float dtype. An index has a slice for each axis, those of rows
        that belong to heads whole heads; () is all of it.
      tokenizer: its tokenizer.
      template: its chat template, or None.
      files: that its weights are in.
    """

    config: ModelConfig
    dialect: names.Dialect
    read: Callable[..., np.ndarray]
    tokenizer: Tokenizer
    template: str | None
    files: tuple[Path, ...]

    def params(self, dtype: str, mesh: jax.sharding.Mesh | None) -> Params:
        """Reads the params, one at a time, each cast as it is read.

        Args:
          dtype: of all params.
          mesh: lays them out as its rules say, and each process reads what its own devices hold,
            every tensor once; it never has more than its part of one param on the host. None for
            the default device.

        Raises:
          ValueError: a dimension that the mesh does not divide, before anything is read.
        """
        sources = _sources(self.config, self.dialect)
        shapes = {
            path: jax.ShapeDtypeStruct(_shape(parts), dtype) for path, parts in sources.items()
        }
        tree = unflatten_dict(shapes, sep="/")
        places = mesh and flatten_dict(param_shardings(tree, mesh, DEFAULT_RULES), sep="/")
        made = {}
        for path, parts in sources.items():
            made[path] = self._array(parts, shapes[path], places and places[path])
            made[path].block_until_ready()  # before the next one takes memory on the host
        return unflatten_dict(made, sep="/")

    def whole(self) -> tuple[ModelConfig, dict, Tokenizer, str | None]:
        """(configuration, params as numpy float32, tokenizer, chat template or None)."""
        params = names.assemble(self.config, self.dialect, self.read)
        return self.config, params, self.tokenizer, self.template

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of the weight files; reads them."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]

    @functools.cached_property
    def _read_part(self) -> Callable[..., np.ndarray]:
        """`read`, also of one of several tensors that files keep joined."""
        return names.part_reader(self.config, self.dialect, self.read)

    def _array(
        self,
        sources: list[_Source],
        like: jax.ShapeDtypeStruct,
        sharding: jax.sharding.Sharding | None,
    ) -> jax.Array:
        if sharding is None:
            everything = tuple((0, size) for size in like.shape)
            return jnp.asarray(self._pieces(sources, like.dtype, {everything})[everything])

        def box(index: tuple[slice, ...]) -> Box:
            return tuple(s.indices(size)[:2] for s, size in zip(index, like.shape, strict=True))

        local = sharding.addressable_devices_indices_map(like.shape).values()
        pieces = self._pieces(sources, like.dtype, {box(index) for index in local})
        return jax.make_array_from_callback(like.shape, sharding, lambda index: pieces[box(index)])

    def _pieces(
        self, sources: list[_Source], dtype: np.dtype, boxes: set[Box]
    ) -> dict[Box, np.ndarray]:
        """Parts of a param; of each tensor that it is made of, what they need is read once."""
        pieces = {box: np.empty([stop - start for start, stop in box], dtype) for box in boxes}
        for source in sources:
            place, own = source.place, len(source.place)
            takers = [box for box in boxes if _holds(box, place)]
            if not takers:
                continue
            sides = zip(*(box[own:] for box in takers), strict=True)
            hull = tuple((min(a for a, _ in side), max(b for _, b in side)) for side in sides)
            part = self._part(source, hull)
            if part.dtype != dtype:
                part = part.astype(np.float32)
            for box in takers:
                at = tuple(i - a for i, (a, _) in zip(place, box, strict=False))
                pieces[box][at] = part[_within(box[own:], hull)]
        return pieces

    def _part(self, source: _Source, hull: Box) -> np.ndarray:
        """A part of one tensor, turned from the file's axes to ours."""
        shape, order = source.shape, range(len(source.shape))
        sides = [(axis,) for axis in order]  # of the file, as axes of ours
        if source.inputs:
            sides = [order[source.inputs :], order[: source.inputs]]
        elif source.flat:
            sides = [order]
        # A side of several axes is flat in the file; it is cut there by its first axis alone.
        units = [math.prod(shape[axis] for axis in side[1:]) for side in sides]
        edges = [hull[side[0]] for side in sides]
        index = tuple(slice(a * n, b * n) for (a, b), n in zip(edges, units, strict=True))
        read = self._read_part(source.name, index)
        cut = {side[0]: b - a for side, (a, b) in zip(sides, edges, strict=True)}
        axes = [axis for side in sides for axis in side]
        read = read.reshape([cut.get(axis, shape[axis]) for axis in axes])
        read = read.transpose(np.argsort(axes))
        return read[tuple(slice(None) if axis in cut else slice(*hull[axis]) for axis in order)]


@dataclasses.dataclass(frozen=True)
class _Source:
    """A tensor of a file that is a part of one of our params.

    Attributes:
      name: in the file.
      place: which layer and expert of the param it is, as far as it has such axes.
      shape: in ours, without those axes.
      inputs: how many of the axes are inputs, which files have after the outputs, each side flat.
      flat: whether a tensor without inputs is flat in the file.
    """

    name: str
    place: tuple[int, ...]
    shape: tuple[int, ...]
    inputs: int
    flat: bool


def _sources(config: ModelConfig, dialect: names.Dialect) -> dict[str, list[_Source]]:
    """By a param's path, what it is made of, in the order of its leading axes."""
    found = {}
    for row in names.rows(config):
        whole = names.our_shape(row, config)
        layers = (config.layers,) if row.path.startswith("layers/") else ()
        leading, shape = (*layers, *whole[: row.apart]), whole[row.apart :]
        tensors = zip(np.ndindex(*leading), names.file_names(row, config, dialect), strict=True)
        flat = len(names.file_shape(row, config)) == 1
        found[row.path] = [_Source(name, place, shape, row.inputs, flat) for place, name in tensors]
    return found


def _shape(sources: list[_Source]) -> tuple[int, ...]:
    """Of the param that is made of them."""
    return *(i + 1 for i in sources[-1].place), *sources[-1].shape


def _holds(box: Box, place: tuple[int, ...]) -> bool:
    return all(a <= i < b for i, (a, b) in zip(place, box, strict=False))


def _within(box: Box, hull: Box) -> tuple[slice, ...]:
    """The index of a box in an array that holds its hull."""
    return tuple(slice(a - first, b - first) for (a, b), (first, _) in zip(box, hull, strict=True))
