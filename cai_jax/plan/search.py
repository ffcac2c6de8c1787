"""Mesh shapes and batch splits for a topology, ranked by how long the run would take on each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

from rich import box
from rich.table import Table

from cai_jax.machine import check_batches
from cai_jax.mesh import make_mesh
from cai_jax.models.config import ModelConfig
from cai_jax.plan.hours import hours, times_of
from cai_jax.plan.program import Compiled
from cai_jax.plan.programs import programs_of
from cai_jax.plan.report import compile_all
from cai_jax.plan.shapes import shape_of
from cai_jax.plan.topology import Topology, topology
from cai_jax.plan.training import training_steps
from cai_jax.progress import Progress
from cai_jax.run_texts import read_data
from cai_jax.settings import ConfigError, RunSettings

MOST = 8  # microbatches


@dataclasses.dataclass(frozen=True)
class Tried:
    """Attributes: settings that were set, as a command line has them; hours of the run at the
    least, infinite where it was not compiled; most, the program that needs the most memory of a
    chip."""

    said: str
    hours: float
    most: Compiled


def search(s: RunSettings, name: str, slices: int, progress: Progress) -> bool:
    """Tries every mesh, prints them ranked, those that do not fit last; whether any fits.

    Raises:
      ConfigError: a topology or model that is unknown.
    """
    config, found, data = shape_of(s.model), topology(name, slices), read_data(s)
    tried = []
    for changed in meshes(s, config, found):
        progress.say(f"trying {said(changed)}")
        try:
            settings, rows = split(changed, config, found, progress)
        except ValueError as error:  # a dimension that the mesh does not divide
            progress.say(f"left out: {error}")
            continue
        stages = hours(times_of(settings, data), rows, found)
        taken = sum(stage.seconds for stage in stages) / 3600 if len(rows) > 1 else math.inf
        tried.append(Tried(said(settings), taken, max(rows, key=lambda row: row.total)))
    progress.console.print(ranked(tried, found))
    return any(_fits(one, found) for one in tried)


def meshes(s: RunSettings, config: ModelConfig, found: Topology) -> Iterator[RunSettings]:
    """Splits of a slice over data, fsdp and tensor that divide the model and the batches, each
    batch in one part. `slice` is the number of slices."""
    s = _with_parts(s, dict.fromkeys(_groups(s), 1))
    chips = len(found.devices) // found.slices
    for tensor in _divisors(min(chips, config.kv_heads)):
        if config.kv_heads % tensor or chips % tensor:
            continue
        for data in (1, 2):
            if chips // tensor % data or chips // tensor == data > 1:
                continue
            shape = {"slice": found.slices, "data": data, "fsdp": chips // tensor // data}
            shape |= {"sequence": 1, "tensor": tensor}
            changed = dataclasses.replace(s, mesh=dataclasses.replace(s.mesh, **shape))
            if _divides(changed, found):
                yield changed


def split(
    s: RunSettings, config: ModelConfig, found: Topology, progress: Progress
) -> tuple[RunSettings, list[Compiled]]:
    """The microbatches of each group with which its steps fit, and more of them while that makes
    the steps faster, as where less then leaves on-chip memory; and every program, compiled.

    Where something is too large before any work, as its shapes say, that alone is given, not
    compiled.
    """
    mesh = make_mesh(dataclasses.asdict(s.mesh), found.devices)
    programs = list(programs_of(s, config, mesh))
    largest = max(programs, key=lambda program: program.held + program.beside)
    if largest.held + largest.beside > found.chip.hbm:
        return s, [Compiled(largest, largest.held, 0, 0.0, {}, 0.0)]
    rows = {row.program.name: row for row in compile_all(programs, mesh, progress)}
    for group in _groups(s):
        while (parts := 2 * getattr(s, group).microbatches) <= MOST:
            more = _with_parts(s, {group: parts})
            if not _divides(more, found):
                break
            progress.say(f"trying config.{group}.microbatches={parts}")
            steps = [x for x in training_steps(more, config, mesh) if x.group == group]
            smaller = compile_all(steps, mesh, progress)
            now = [rows[step.name] for step in steps]
            fits = all(row.total <= found.chip.hbm for row in now)
            if fits and _seconds(smaller, found) >= _seconds(now, found):
                break
            s = more
            rows |= {row.program.name: row for row in smaller}
    return s, list(rows.values())


def said(s: RunSettings) -> str:
    """Mesh and microbatches as a command line sets them: all, whatever the config says."""
    given = [f"--config.mesh.{axis}={size}" for axis, size in dataclasses.asdict(s.mesh).items()]
    parts = (f"--config.{g}.microbatches={getattr(s, g).microbatches}" for g in _groups(s))
    return " ".join((*given, *parts))


def ranked(tried: list[Tried], found: Topology) -> Table:
    """The fastest that fit first."""
    made = Table(box=box.SIMPLE_HEAD, title=f"Meshes and batch splits on {found.name}")
    for heading in ("hours", "most memory, GB", "of", "settings"):
        made.add_column(heading, no_wrap=heading != "settings")
    for one in sorted(tried, key=lambda one: (not _fits(one, found), one.hours)):
        over = "" if _fits(one, found) else " !"
        total = f"{one.most.total / 1e9:.2f}{over}"
        taken = f"{one.hours:.3g}" if math.isfinite(one.hours) else ""
        made.add_row(taken, total, one.most.program.name, one.said)
    return made


def _groups(s: RunSettings) -> tuple[str, ...]:
    """Groups of settings that have microbatches."""
    return "finetune", "preference_model", s.algorithm


def _with_parts(s: RunSettings, parts: Mapping[str, int]) -> RunSettings:
    return dataclasses.replace(
        s,
        **{
            group: dataclasses.replace(getattr(s, group), microbatches=count)
            for group, count in parts.items()
        },
    )


def _divides(s: RunSettings, found: Topology) -> bool:
    """Whether every batch divides into its parts, and they over the mesh."""
    try:
        check_batches(s, make_mesh(dataclasses.asdict(s.mesh), found.devices))
    except (ConfigError, ValueError):
        return False
    return True


def _seconds(rows: list[Compiled], found: Topology) -> float:
    """Of each once, at the least."""
    return sum(max(row.bounds(found.chip, len(found.devices)).values()) for row in rows)


def _fits(one: Tried, found: Topology) -> bool:
    return one.most.total <= found.chip.hbm


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
