"""Programs that a config will run, and what the compiler says of one on a chip."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from cai_jax.mesh import DEFAULT_RULES, param_shardings
from cai_jax.plan.hlo_collectives import collectives
from cai_jax.plan.hlo_traffic import loop_traffic, program_bytes
from cai_jax.plan.topology import Chip

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Part:
    """What is compiled at once.

    Attributes:
      lowered: to compile.
      times: how often the program runs it.
      steps: rounds of its one loop, of which the program is one; 0 where it is the whole.
    """

    lowered: jax.stages.Lowered
    times: int = 1
    steps: int = 0


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of a run.

    Attributes:
      name: of its stage, and where that has several, of the program.
      group: the config's group of the settings that make it smaller.
      parts: what it runs.
      held: bytes on a device of what it reads and writes: params, moments, cache.
      beside: bytes on a device of what its stage holds meanwhile and it has no part in, such as
        the reference policy.
      flops: of the whole program on all devices: the model's, and what `remat` computes again.
      params, optimizer: bytes on a device of weights and of an optimiser's state, of `held`.
      gradients: bytes on a device of what a step has while it works.
    """

    name: str
    group: str
    parts: tuple[Part, ...]
    held: int
    beside: int
    flops: float
    params: int = 0
    optimizer: int = 0
    gradients: int = 0


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program, per chip.

    Attributes:
      program: what was compiled.
      held, temporary: bytes that it needs; the new state takes the old one's place. Where the
        compiler refused, the rest is what it would be without the part that is too large.
      moved: bytes between memory and chip.
      received: bytes from other chips, by the mesh axes along which they are sent.
      seconds: that compiling took.
    """

    program: Program
    held: int
    temporary: int
    moved: float
    received: Mapping[tuple[str, ...], float]
    seconds: float

    @property
    def total(self) -> int:
        """Bytes that stand in memory while the program runs."""
        return self.held + self.temporary + self.program.beside

    def kinds(self) -> dict[str, int]:
        """`total` by what the bytes are of."""
        program = self.program
        gradients = min(program.gradients, self.temporary)
        return {
            "params": program.params,
            "optimizer": program.optimizer,
            "cache, batch": self.held - program.params - program.optimizer,
            "beside": program.beside,
            "gradients": gradients,
            "temporaries": self.temporary - gradients,
        }

    def bounds(self, chip: Chip, chips: int) -> dict[str, float]:
        """Seconds that each resource is busy, were it used at its published rate.

        What is sent along `slice`, alone or with other axes, all counts for the network.
        """
        network = sum(size for axes, size in self.received.items() if "slice" in axes)
        return {
            "arithmetic": self.program.flops / chips / chip.flops,
            "memory": self.moved / chip.hbm_rate,
            "links": (sum(self.received.values()) - network) / chip.ici_rate,
            "network": network / chip.dcn_rate,
        }


def compile_program(program: Program, mesh: Mesh) -> Compiled:
    """Compiles, and reads what the compiler says of it."""
    began = time.perf_counter()
    held, temporary, moved, received = program.held, 0, 0.0, {}
    for part in program.parts:
        try:
            compiled = part.lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if not (needed := re.search(r"temporaries \(([\d.]+)G\)", str(error))):
                raise
            # More than the device has: nothing else is known of it.
            temporary = max(temporary, int(float(needed[1]) * 2**30))
            continue
        memory, text = compiled.memory_analysis(), compiled.as_text()
        new = memory.output_size_in_bytes - memory.alias_size_in_bytes
        held = max(held, memory.argument_size_in_bytes)
        temporary = max(temporary, memory.temp_size_in_bytes + new)
        share = part.times / (part.steps or 1)
        each = program_bytes(text)
        if part.steps:  # a loop that does not say how often it runs counts once
            each += (part.steps - 1) * loop_traffic(text).bytes
        moved += share * each
        # Reading looks up each token's row in a loop, which sends nothing.
        unsaid = part.steps or (1 if program.group == "engine" else None)
        for sent in collectives(text, mesh.shape, unsaid):
            received[sent.axes] = received.get(sent.axes, 0.0) + share * sent.bytes
    return Compiled(program, held, temporary, moved, received, time.perf_counter() - began)


def local_bytes(tree: PyTree) -> int:
    """Bytes of one device's part of ShapeDtypeStructs."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def sharded(tree: PyTree, mesh: Mesh) -> PyTree:
    """Shapes of params, or of a TrainState, in training's layout."""
    layout = param_shardings(tree, mesh, DEFAULT_RULES)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout
    )
