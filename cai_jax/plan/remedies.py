"""What to change where a program does not fit: the smallest change that does, found by trying."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from cai_jax.machine import check_batches
from cai_jax.mesh import make_mesh, row_ways
from cai_jax.models.config import ModelConfig
from cai_jax.plan.program import Compiled, Program, compile_program
from cai_jax.plan.programs import programs_of
from cai_jax.plan.topology import Topology
from cai_jax.progress import Progress
from cai_jax.settings import ConfigError, RunSettings


def changes(
    program: Program, s: RunSettings, ways: int, heads: int
) -> Iterator[tuple[str, RunSettings]]:
    """Settings under which a program needs less memory, the smallest change first.

    Args:
      ways: into which the mesh splits a batch.
      heads: of keys and values, which `tensor` divides.
    """
    further: list[dict[str, str | int]] = []
    if program.group == "engine":
        slots = s.engine.slots
        while slots % 2 == 0 and slots // 2 >= ways:
            slots //= 2
            further.append({"engine.slots": slots})
    else:
        further += _of_training(program, s, ways)
    tensor = s.mesh.tensor
    while heads % (tensor * 2) == 0:
        tensor *= 2
        further.append({"mesh.tensor": tensor, "mesh.fsdp": -1})
    given, changed = {}, s
    for values in further:
        given |= values
        for name, value in values.items():
            changed = _replaced(changed, name.split("."), value)
        yield ", ".join(f"config.{name}={value}" for name, value in given.items()), changed


def _of_training(program: Program, s: RunSettings, ways: int) -> Iterator[dict[str, str | int]]:
    group = getattr(s, program.group)
    rows = group.batch_size // getattr(group, "minibatches", 1)
    # These change no result but by rounding.
    if group.remat != "full":
        yield {f"{program.group}.remat": "full"}
    parts = group.microbatches
    while rows % (parts * 2) == 0 and rows // (parts * 2) % ways == 0:
        parts *= 2
        yield {f"{program.group}.microbatches": parts}
    # These do, by the precision of products and of models that are not trained, and of moments.
    if group.compute_dtype != "bfloat16":
        yield {f"{program.group}.compute_dtype": "bfloat16"}
    if group.optimizer.moment_dtype != "bfloat16":
        optimizers = [n for n in ("optimizer", "value_optimizer") if hasattr(group, n)]
        yield {f"{program.group}.{n}.moment_dtype": "bfloat16" for n in optimizers}


def _replaced(settings, names: list[str], value: str | int):
    """Settings with one of a group's, or a group's group's, changed."""
    name, *rest = names
    if rest:
        value = _replaced(getattr(settings, name), rest, value)
    return dataclasses.replace(settings, **{name: value})


def remedy(
    row: Compiled, s: RunSettings, config: ModelConfig, found: Topology, progress: Progress
) -> str:
    """The first of `changes` with which a program fits, found by compiling it; a sentence."""
    room, name = found.chip.hbm, row.program.name
    needs = f"{name} needs {row.total / 1e9:.1f} GB of {room / 1e9:.1f}"
    ways = row_ways(make_mesh(dataclasses.asdict(s.mesh), found.devices))
    for said, changed in changes(row.program, s, ways, config.kv_heads):
        try:
            mesh = make_mesh(dataclasses.asdict(changed.mesh), found.devices)
            check_batches(changed, mesh)
        except (ConfigError, ValueError):  # another mesh, which does not divide something
            continue
        program = next(x for x in programs_of(changed, config, mesh) if x.name == name)
        if program.held + program.beside > room:
            continue
        progress.say(f"trying {said}")
        smaller = compile_program(program, mesh)
        if smaller.total <= room:
            return f"{needs}; with {said} it fits, in {smaller.total / 1e9:.1f} GB."
    return f"{needs}; no setting of its own makes it fit: split it over more chips."
