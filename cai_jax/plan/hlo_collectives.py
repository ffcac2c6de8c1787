"""What a compiled program sends between devices, and along which axes of the mesh."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from cai_jax.plan.hlo import Instruction, called, elements, entry_of, parse, rounds, size

COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    "collective-permute",
)
BETWEEN_SLICES = "xla_megascale_runtime"  # who moves what several slices send one another


@dataclasses.dataclass(frozen=True)
class Collective:
    """All of a program's collectives of a kind along the same axes.

    Attributes:
      kind: such as "all-gather".
      axes: names of the mesh axes along which its groups differ.
      often: how many times one is run.
      bytes: that one device ends up with in all.
    """

    kind: str
    axes: tuple[str, ...]
    often: int
    bytes: int


def collectives(text: str, mesh: Mapping[str, int], unsaid: int | None = None) -> list[Collective]:
    """What a module sends between devices, each computation as often as it is run.

    Parts of an asynchronous one share its channel, by which it is counted once; permutations have
    no such parts, and share a channel where they are several. What TPUs send between slices stands
    there as a transfer through the host, and counts as received along `slice`.

    Args:
      mesh: sizes of the axes by name, in the order of the devices.
      unsaid: how often a loop is run whose number of rounds the text does not say.

    Raises:
      ValueError: one stands in such a loop, and `unsaid` is None.
    """
    modules = parse(text)
    channels: dict[str, tuple[tuple[str, tuple[str, ...]], int, int]] = {}

    def walk(name: str, times: int | None) -> None:
        for one in modules[name].values():
            kind = one.op.removesuffix("-start")
            between = one.op == "recv" and BETWEEN_SLICES in one.rest
            if times is None and (between or kind in COLLECTIVES):
                raise ValueError(f"How often {one.name} is run is not said.")
            if kind in COLLECTIVES:
                # An asynchronous one's type: what goes in, what comes out, flags.
                parts = elements(one.type)
                result = parts[1] if kind != one.op and len(parts) > 1 else one.type
                channel = re.search(r"\bchannel_id=(\d+)", one.rest)
                key = channel[1] if channel and kind != "collective-permute" else one.name
                often = min(times, channels[key][1]) if key in channels else times
                what = kind, axes_of(one, mesh)
                channels[key] = what, often, size(result, main_memory=False)
            elif between:
                kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest)
                what = kind[1].lower().replace("_", "-") if kind else "recv", ("slice",)
                channels[one.name] = what, times, size(elements(one.type)[0], main_memory=False)
            if one.op == "while":
                each = rounds(modules, one) or unsaid
                walk(called(one, "body")[0], None if None in (times, each) else times * each)
            elif not one.op.endswith(("-done", "-update")):
                for key in ("calls", "to_apply", "branch_computations", "called_computations"):
                    for inner in called(one, key):
                        walk(inner, times)

    walk(entry_of(modules), 1)
    found: dict[tuple[str, tuple[str, ...]], tuple[int, int]] = {}
    for what, times, each in channels.values():
        often, total = found.get(what, (0, 0))
        found[what] = often + times, total + times * each
    return [Collective(*what, *sums) for what, sums in sorted(found.items())]


def axes_of(one: Instruction, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes along which the devices of a collective's groups, or of its pairs, differ."""
    sizes = list(mesh.values())
    places = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), -1)
    differ = np.zeros(len(sizes), bool)
    for group in _groups(one, len(places)):
        differ |= (places[group] != places[group[0]]).any(0)
    return tuple(name for name, differs in zip(mesh, differ, strict=True) if differs)


def _groups(one: Instruction, devices: int) -> list[np.ndarray]:
    """Device numbers of each group, or of each pair of a permutation; all where none is said."""
    # mesh['a'=2,'b'=4] {'b'}: numbers in that shape, a group along the named axes. Of 'b':(2)2 only
    # a part, which two groups stand before, is meant.
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", one.rest):
        shape, along = [], []
        parts = dict(re.findall(r"'(\w+)'(?::\((\d+)\)\d+)?", found[2]))
        counts = dict(re.findall(r"'(\w+)':\(\d+\)(\d+)", found[2]))
        for name, size in re.findall(r"'(\w+)'=(\d+)", found[1]):
            before, of = int(parts.get(name) or 1), int(counts.get(name) or size)
            along += [False, name in parts, False]
            shape += [before, of, int(size) // (before * of)]
        axes = [n for n, inside in enumerate(along) if inside]
        numbers = np.moveaxis(np.arange(np.prod(shape)).reshape(shape), axes, range(-len(axes), 0))
        return list(numbers.reshape(-1, math.prod(shape[n] for n in axes)))
    # [groups,size]<=[shape]T(order): numbers in that shape, transposed, in rows.
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", one.rest):
        into, shape, order = (
            [int(n) for n in part.split(",")] if part else None for part in found.groups()
        )
        numbers = np.arange(np.prod(shape)).reshape(shape)
        return list((numbers if order is None else numbers.transpose(order)).reshape(into))
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", one.rest):
        return [np.array(group.split(","), int) for group in re.findall(r"\{([\d,]+)\}", found[1])]
    return [np.arange(devices)]
