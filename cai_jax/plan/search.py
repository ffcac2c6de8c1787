"""Mesh shapes and batch splits for a topology, ranked by how long the run would take on each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from rich import box
from rich.table import Table

from cai_jax.machine import check_batches
from cai_jax.mesh import make_mesh
from cai_jax.models.config import ModelConfig
from cai_jax.plan.hours import hours, times_of
from cai_jax.plan.program import Compiled
from cai_jax.plan.report import compile_all
from cai_jax.plan.shapes import shape_of
from cai_jax.plan.topology import Topology, topology
from cai_jax.progress import Progress
from cai_jax.run_texts import read_data
from cai_jax.settings import ConfigError, RunSettings

SPLITS = (1, 2, 4, 8)  # microbatches


@dataclasses.dataclass(frozen=True)
class Tried:
    """Attributes: settings that were set, as a command line has them; hours of the run at the
    least; most, the program that needs the most memory of a chip."""

    said: str
    hours: float
    most: Compiled


def search(s: RunSettings, name: str, slices: int, progress: Progress) -> bool:
    """Tries every candidate, prints them ranked, those that do not fit last; whether any fits.

    Raises:
      ConfigError: a topology or model that is unknown.
    """
    config, found, data = shape_of(s.model), topology(name, slices), read_data(s)
    tried = []
    for said, changed in candidates(s, config, found):
        progress.say(f"trying {said}")
        mesh = make_mesh(dataclasses.asdict(changed.mesh), found.devices)
        rows = compile_all(changed, config, mesh, progress)
        taken = sum(stage.seconds for stage in hours(times_of(changed, data), rows, found)) / 3600
        tried.append(Tried(said, taken, max(rows, key=lambda row: row.total)))
    progress.console.print(ranked(tried, found))
    return any(_fits(one, found) for one in tried)


def candidates(
    s: RunSettings, config: ModelConfig, found: Topology
) -> Iterator[tuple[str, RunSettings]]:
    """Splits of a slice over data, fsdp and tensor, each with the fewest microbatches and with
    more; what does not divide is left out. `slice` is the number of slices."""
    chips = len(found.devices) // found.slices
    for tensor in _divisors(min(chips, config.kv_heads)):
        if config.kv_heads % tensor or chips % tensor:
            continue
        for data in (1, 2):
            if chips // tensor % data or chips // tensor == data > 1:
                continue
            shape = {"slice": found.slices, "data": data, "fsdp": chips // tensor // data}
            shape |= {"sequence": 1, "tensor": tensor}
            for parts in SPLITS:
                # Every flag, whatever the config says, so that they can be given as they stand.
                changed = dataclasses.replace(s, mesh=dataclasses.replace(s.mesh, **shape))
                given = [f"--config.mesh.{axis}={size}" for axis, size in shape.items()]
                for group in ("finetune", "preference_model", s.algorithm):
                    part = dataclasses.replace(getattr(changed, group), microbatches=parts)
                    changed = dataclasses.replace(changed, **{group: part})
                    given.append(f"--config.{group}.microbatches={parts}")
                try:
                    check_batches(changed, make_mesh(shape, found.devices))
                except (ConfigError, ValueError):
                    continue
                yield " ".join(given), changed


def ranked(tried: list[Tried], found: Topology) -> Table:
    """The fastest that fit first."""
    made = Table(box=box.SIMPLE_HEAD, title=f"Meshes and batch splits on {found.name}")
    for heading in ("hours", "most memory, GB", "of", "settings"):
        made.add_column(heading, no_wrap=heading != "settings")
    for one in sorted(tried, key=lambda one: (not _fits(one, found), one.hours)):
        over = "" if _fits(one, found) else " !"
        total = f"{one.most.total / 1e9:.2f}{over}"
        made.add_row(f"{one.hours:.3g}", total, one.most.program.name, one.said)
    return made


def _fits(one: Tried, found: Topology) -> bool:
    return one.most.total <= found.chip.hbm


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
