"""What a config's programs need on a TPU topology, found by compiling them for it without one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh
from rich import box
from rich.table import Table

from cai_jax.machine import check_batches
from cai_jax.mesh import make_mesh
from cai_jax.plan.hours import Stage, hours, times_of
from cai_jax.plan.program import Compiled, Program, compile_program
from cai_jax.plan.programs import programs_of
from cai_jax.plan.remedies import remedy
from cai_jax.plan.shapes import shape_of
from cai_jax.plan.topology import Topology, topology
from cai_jax.progress import Progress
from cai_jax.run_texts import read_data
from cai_jax.settings import RunSettings


def plan(s: RunSettings, name: str, slices: int, price: float, progress: Progress) -> bool:
    """Compiles every program of a run and prints what it needs; whether all fit.

    Of a program that does not fit the smallest change that makes it fit is found by trying.

    Args:
      price: of a chip for an hour, 0 where it is not known.

    Raises:
      ConfigError: a topology or model that is unknown, or a batch that the mesh does not divide.
      ValueError: a dimension of the model that the mesh does not divide; a file of prompts that
        cannot be read.
    """
    config, found, data = shape_of(s.model), topology(name, slices), read_data(s)
    mesh = make_mesh(dataclasses.asdict(s.mesh), found.devices)
    check_batches(s, mesh)
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "none"
    room = f"{len(found.devices)} devices of {found.chip.hbm / 1e9:.1f} GB"
    progress.say(f"{s.model} on {found.name}: {room}, mesh axes: {sizes}")
    rows = compile_all(list(programs_of(s, config, mesh)), mesh, progress)
    progress.console.print(table(rows, found))
    progress.console.print(memory_table(rows, found))
    for line in links(rows):
        progress.say(line)
    stages = hours(times_of(s, data), rows, found)
    progress.console.print(_hours_table(stages))
    for line in cost(stages, found, price):
        progress.say(line)
    too_large = [row for row in rows if row.total > found.chip.hbm]
    for row in too_large:
        progress.say(remedy(row, s, config, found, progress))
    return not too_large


def compile_all(programs: Sequence[Program], mesh: Mesh, progress: Progress) -> list[Compiled]:
    """Every program, compiled; what is run in two places is compiled once.

    One at a time: of two, libtpu 0.0.42 twice ran out of a thread's stack, a process's end.
    """
    found: dict[int, Compiled] = {}
    for program in programs:
        if id(program.parts) not in found:
            row = found[id(program.parts)] = compile_program(program, mesh)
            progress.say(f"compiled: {program.name}, {row.seconds:.0f} s")
    return [dataclasses.replace(found[id(p.parts)], program=p) for p in programs]


def table(rows: Sequence[Compiled], found: Topology) -> Table:
    """A line a program."""
    title = f"One of each on {found.name}, per device, in GB"
    made = Table(box=box.SIMPLE_HEAD, title=title, collapse_padding=True, pad_edge=False)
    made.add_column("", no_wrap=True)
    for heading in (
        "held", "beside", "working", "in all", "TFLOP", "moved", "received", "time", "bound by",
    ):  # fmt: skip
        made.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        bounds = row.bounds(found.chip, len(found.devices))
        slowest = max(bounds, key=bounds.get)
        over = " !" if row.total > found.chip.hbm else ""
        made.add_row(
            row.program.name,
            *(f"{x / 1e9:.2f}" for x in (row.held, row.program.beside, row.temporary)),
            f"{row.total / 1e9:.2f}{over}",
            _short(row.program.flops / len(found.devices) / 1e12),
            *(_short(x / 1e9) for x in (row.moved, sum(row.received.values()))),
            _seconds(bounds[slowest]),
            slowest,
        )
    return made


def memory_table(rows: Sequence[Compiled], found: Topology) -> Table:
    """What stands in memory, by kind, and how much of a device's that is; a line a program."""
    room = found.chip.hbm
    title = f"Of the {room / 1e9:.1f} GB of a device"
    made = Table(box=box.SIMPLE_HEAD, title=title, collapse_padding=True, pad_edge=False)
    made.add_column("", no_wrap=True)
    for heading in (*rows[0].kinds(), "of all"):
        made.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        sizes = (f"{x / 1e9:.2f}" for x in row.kinds().values())
        made.add_row(row.program.name, *sizes, f"{row.total / room:.0%}")
    return made


def links(rows: Sequence[Compiled]) -> list[str]:
    """What each program receives along which axes, where it is 0.1 MB or more."""
    lines = []
    for row in rows:
        parts = [
            f"{size / 1e9:.3g} along {' and '.join(axes) or 'none'}"
            + (" (network)" if "slice" in axes else "")
            for axes, size in sorted(row.received.items(), key=lambda item: -item[1])
            if size > 1e5
        ]
        if parts:
            lines.append(f"  {row.program.name} receives, GB: {', '.join(parts)}")
    return lines


def _hours_table(stages: Sequence[Stage]) -> Table:
    made = Table(box=box.SIMPLE_HEAD, title="The run, at the least")
    for heading in ("stage", "time", "share", "most of it"):
        made.add_column(heading, no_wrap=True)
    total = sum(stage.seconds for stage in stages)
    for stage in stages:
        share = f"{stage.seconds / total:.0%}" if total else ""
        made.add_row(stage.name, _seconds(stage.seconds), share, stage.most)
    return made


def cost(stages: Sequence[Stage], found: Topology, price: float) -> list[str]:
    """The run's hours, chip-hours and price, in sentences."""
    total = sum(stage.seconds for stage in stages) / 3600
    chips = total * found.chips
    money = f", {chips * price:,.0f} at {price:g} a chip-hour" if price else ""
    return [
        f"{total:.2g} hours, {chips:.3g} chip-hours{money}: were each program as fast as its "
        "busiest resource allows at its published rate, and every sample as long as its limit.",
        "Compilation, evaluation, checkpoints and restarts are left out.",
    ]


def _short(value: float) -> str:
    return f"{value:.3g}" if value >= 5e-4 else "0"


def _seconds(value: float) -> str:
    if value < 1:
        return f"{_short(value * 1e3)} ms"
    return f"{value:.3g} s" if value < 600 else f"{value / 3600:.2g} h"
