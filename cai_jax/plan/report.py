"""What a config's programs need on a TPU topology, found by compiling them for it without one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

from jax.sharding import Mesh
from rich import box
from rich.table import Table

from cai_jax.machine import check_batches
from cai_jax.mesh import make_mesh, row_ways
from cai_jax.models.config import ModelConfig
from cai_jax.plan.hlo_traffic import collectives, program_bytes
from cai_jax.plan.shapes import shape_of
from cai_jax.plan.topology import Chip, Topology, topology
from cai_jax.plan.training import TrainingStep, training_steps
from cai_jax.progress import Progress
from cai_jax.settings import RunSettings


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step, per chip.

    Attributes:
      step: what was compiled.
      arguments, temporary: bytes that the program needs; the new state takes the old one's place.
      moved: bytes between memory and chip.
      received: bytes from other chips.
      seconds: that compiling took.
    """

    step: TrainingStep
    arguments: int
    temporary: int
    moved: int
    received: int
    seconds: float

    @property
    def total(self) -> int:
        """Bytes that stand in memory while the step runs."""
        return self.arguments + self.temporary + self.step.beside

    def bounds(self, chip: Chip, chips: int) -> dict[str, float]:
        """Seconds that each resource is busy, were it used at its published rate."""
        return {
            "arithmetic": self.step.flops / chips / chip.flops,
            "memory": self.moved / chip.hbm_rate,
            "links": self.received / chip.ici_rate,
        }


def plan(s: RunSettings, name: str, slices: int, progress: Progress) -> bool:
    """Compiles every training step of a run, prints the table; whether all fit.

    Of a step that does not fit the smallest change that makes it fit is found by trying.

    Raises:
      ConfigError: a topology or model that is unknown, or a batch that the mesh does not divide.
      ValueError: a dimension of the model that the mesh does not divide.
    """
    config, found = shape_of(s.model), topology(name, slices)
    mesh = make_mesh(dataclasses.asdict(s.mesh), found.devices)
    check_batches(s, mesh)
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "none"
    progress.say(
        f"{s.model} on {name}: {len(found.devices)} chips of {found.chip.hbm / 1e9:.1f} GB, mesh "
        f"axes: {sizes}"
    )
    rows = []
    for step in training_steps(s, config, mesh):
        rows.append(compile_step(step))
        progress.say(f"compiled: {step.name}, {rows[-1].seconds:.0f} s")
    progress.console.print(_table(rows, found))
    too_large = [row for row in rows if row.total > found.chip.hbm]
    for row in too_large:
        progress.say(remedy(row, s, config, mesh, found.chip, progress))
    return not too_large


def compile_step(step: TrainingStep) -> Compiled:
    """Compiles, and reads what the compiler says of it."""
    start = time.perf_counter()
    compiled = step.lowered.compile()
    seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        step,
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes + new,
        moved=program_bytes(text),
        received=sum(size for _, size in collectives(text).values()),
        seconds=seconds,
    )


def changes(step: TrainingStep, s: RunSettings, ways: int) -> Iterator[tuple[str, RunSettings]]:
    """Settings under which a step needs less memory, the smallest change first.

    Args:
      ways: into which the mesh splits a batch.
    """
    group = getattr(s, step.group)
    rows = group.batch_size // getattr(group, "minibatches", 1)
    further: list[dict[str, str | int]] = []
    # These change no result but by rounding.
    if group.remat != "full":
        further.append({f"{step.group}.remat": "full"})
    parts = group.microbatches
    while rows % (parts * 2) == 0 and rows // (parts * 2) % ways == 0:
        parts *= 2
        further.append({f"{step.group}.microbatches": parts})
    # These do, by the precision of the models that are not trained, and of Adam's moments.
    if step.beside and s.dtype != "bfloat16":
        further.append({"dtype": "bfloat16"})
    if group.optimizer.moment_dtype != "bfloat16":
        optimizers = [n for n in ("optimizer", "value_optimizer") if hasattr(group, n)]
        further.append({f"{step.group}.{n}.moment_dtype": "bfloat16" for n in optimizers})
    given, changed = {}, s
    for values in further:
        given |= values
        for name, value in values.items():
            changed = _replaced(changed, name.split("."), value)
        yield ", ".join(f"config.{name}={value}" for name, value in given.items()), changed


def _replaced(settings, names: list[str], value: str | int):
    """Settings with one of a group's, or a group's group's, changed."""
    name, *rest = names
    if rest:
        value = _replaced(getattr(settings, name), rest, value)
    return dataclasses.replace(settings, **{name: value})


def remedy(
    row: Compiled, s: RunSettings, config: ModelConfig, mesh: Mesh, chip: Chip, progress: Progress
) -> str:
    """The first of `changes` with which a step fits, found by compiling it; a sentence."""
    needs = f"{row.step.name} needs {row.total / 1e9:.1f} GB of {chip.hbm / 1e9:.1f}"
    for said, changed in changes(row.step, s, row_ways(mesh)):
        step = next(x for x in training_steps(changed, config, mesh) if x.name == row.step.name)
        if step.state + step.beside > chip.hbm:
            continue
        progress.say(f"trying {said}")
        smaller = compile_step(step)
        if smaller.total <= chip.hbm:
            return f"{needs}; with {said} it fits, in {smaller.total / 1e9:.1f} GB."
    return f"{needs}; no setting of its own makes it fit: split it over more chips."


def _table(rows: list[Compiled], found: Topology) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"A step on {found.name}, per chip, in GB")
    table.add_column("", no_wrap=True)
    for heading in (
        "held", "beside", "working", "in all", "TFLOP", "moved", "received", "time", "bound by",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        bounds = row.bounds(found.chip, len(found.devices))
        slowest = max(bounds, key=bounds.get)
        over = " !" if row.total > found.chip.hbm else ""
        table.add_row(
            row.step.name,
            *(f"{x / 1e9:.2f}" for x in (row.arguments, row.step.beside, row.temporary)),
            f"{row.total / 1e9:.2f}{over}",
            f"{row.step.flops / len(found.devices) / 1e12:.3g}",
            *(f"{x / 1e9:.2f}" for x in (row.moved, row.received)),
            f"{bounds[slowest]:.3g} s",
            slowest,
        )
    return table
