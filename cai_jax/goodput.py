"""Where a run's wall time went: its stages, compilation, and processes that did not end.

The first host keeps WORKDIR/wall_time.jsonl: a row when a process starts, when a stage ends, when
the command ends. Nothing in it is read by the run itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from cai_jax import growing, hosts
from cai_jax.decoding.stats import Stats
from cai_jax.training import metrics

FILE = "wall_time.jsonl"
_COMPILES = "/jax/core/compile/backend_compile_duration"
PARTS = ("rollout", "scoring", "update", "reshard", "checkpoint")  # of perf.jsonl, in seconds


class Ledger:
    """Notes of one process, from its start.

    Args:
      workdir: of the run.
      launched: seconds since the epoch when the process began.
    """

    def __init__(self, workdir: Path, launched: float):
        self._path, self.launched = workdir / FILE, launched
        growing.begin(self._path)
        self._compiled, self._compiles = 0.0, []
        self._began = time.time()
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self._note({"event": "start"})

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Notes how long a stage took, unless it is cut short."""
        began, compiled = time.time(), self._compiled
        yield
        taken = {"seconds": time.time() - began, "compile_seconds": self._compiled - compiled}
        self._note({"event": "stage", "stage": name, **taken})

    def end(self, first_step: float | None) -> None:
        """Notes that the command ended, and when its first step was done, if it did any.

        Args:
          first_step: in seconds since the epoch.
        """
        row: dict = {"event": "end", "first_step_seconds": None}
        if first_step is not None:
            row["first_step_seconds"] = first_step - self.launched
            before = sum(seconds for at, seconds in self._compiles if at <= first_step)
            row["before_first_step"] = {
                "starting": self._began - self.launched,
                "compiling": before,
            }
        self._note(row)

    def _listen(self, event: str, seconds: float, **_) -> None:
        if event == _COMPILES:
            self._compiled += seconds
            self._compiles.append((time.time(), seconds))

    def _note(self, row: dict) -> None:
        if not hosts.first():
            return
        row = {"launched": self.launched, "at": time.time(), **row}
        growing.append(self._path, json.dumps(row) + "\n")
        growing.put_all()  # a row is rare, and the only trace of a process that ends early


@dataclasses.dataclass(frozen=True)
class WallTime:
    """A run's wall time, in seconds.

    Attributes:
      total: of processes, with the time between one that was stopped and the next.
      processes: how many there were.
      first_step: from the last process's start to its first step; None where it did none.
      before_first_step: what that time went to: "starting", until the first stage; "compiling".
      stages: of the process that finished each, by name.
      compiling: in finished stages.
      parts: of finished training, by PARTS, and "input", waiting for a batch.
      unfinished: the rest: starts, processes that were stopped, and the time between them. Part of
        it was kept in shards and checkpoints, so it is no less than what restarts cost.
    """

    total: float
    processes: int
    first_step: float | None
    before_first_step: dict[str, float]
    stages: dict[str, float]
    compiling: float
    parts: dict[str, float]

    @property
    def unfinished(self) -> float:
        return max(0.0, self.total - sum(self.stages.values()))


def wall_time(workdir: Path) -> WallTime:
    """What a run's notes and its stages' perf.jsonl add up to, without lines that are not whole.

    Raises:
      OSError: there are no notes.
    """
    rows = []
    for line in (workdir / FILE).read_text("utf-8").splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    stages: dict[str, float] = {}
    for row in rows:
        if row["event"] == "stage":
            stages[row["stage"]] = stages.get(row["stage"], 0.0) + row["seconds"]
    parts = dict.fromkeys((*PARTS, "input"), 0.0)
    for log in sorted(workdir.glob("*/perf.jsonl")):
        for row in metrics.read(log):
            for part in PARTS:
                parts[part] += row.get(f"perf/{part}_seconds") or 0.0
            share = row.get("perf/wait_share") or 0.0
            parts["input"] += share * (row.get("perf/step_seconds") or 0.0)
    launched = sorted({row["launched"] for row in rows})
    total = 0.0
    for began, following in zip(launched, [*launched[1:], None], strict=True):
        own = [row for row in rows if row["launched"] == began]
        stopped = following is not None and all(row["event"] != "end" for row in own)
        total += (following if stopped else max(row["at"] for row in own)) - began
    ends = [row for row in rows if row["event"] == "end" and row["launched"] == launched[-1]]
    return WallTime(
        total=total,
        processes=len(launched),
        first_step=ends[-1]["first_step_seconds"] if ends else None,
        before_first_step=ends[-1].get("before_first_step", {}) if ends else {},
        stages=stages,
        compiling=sum(row.get("compile_seconds", 0.0) for row in rows),
        parts=parts,
    )


def sentences(found: WallTime, decoded: Stats) -> list[str]:
    """What the run says at its end, of its time and of what decoding did in it."""

    def shares(named: dict[str, float]) -> str:
        return ", ".join(f"{name} {value / found.total:.0%}" for name, value in named.items())

    minutes, seconds = divmod(round(found.total), 60)
    processes = f"{found.processes} processes" if found.processes > 1 else "one process"
    first = "" if found.first_step is None else f", the first step after {found.first_step:.0f} s"
    if found.before_first_step:
        before = dict(found.before_first_step)
        before["loading and running"] = max(0.0, found.first_step - sum(before.values()))
        first += f" ({', '.join(f'{name} {seconds:.0f}' for name, seconds in before.items())})"
    spent = {name: value for name, value in found.parts.items() if value}
    training = f"; in training {shares(spent)}" if spent else ""
    return [
        f"wall time {minutes}:{seconds:02d} in {processes}{first}: {shares(found.stages)}, "
        f"starts and restarts {found.unfinished / found.total:.0%}",
        f"  of it compiling {found.compiling / found.total:.0%}{training}",
        *([_of_decoding(decoded)] if decoded.seconds else []),
    ]


def _of_decoding(decoded: Stats) -> str:
    parts = {
        "reading": decoded.read_seconds,
        "sampling": decoded.sample_seconds,
        "choosing": decoded.score_seconds,
    }
    spent = ", ".join(f"{name} {part / decoded.seconds:.0%}" for name, part in parts.items())
    return (
        f"decoding {decoded.seconds:.0f} s: {spent}; {decoded.sampled:,} tokens sampled, "
        f"{decoded.tokens_per_second:.0f} a second, slots {decoded.occupancy:.0%} busy; of "
        f"{decoded.read + decoded.shared + decoded.forked:,} tokens to read {decoded.spared:.0%} "
        "were there already"
    )
