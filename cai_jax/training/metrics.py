"""Metrics as JSON lines that a killed and continued run writes as an uninterrupted one would."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cai_jax import growing, hosts, storage


class MetricsLog:
    """Appends rows {"step": int, name: value, ...}, one a step; of several hosts the first does.

    Metrics named perf/... depend on the machine and the moment; they go to `perf.jsonl` beside
    `path`, so that `path` itself is the same from run to run. A last line half written by a killed
    process is dropped when the log is opened again.

    Args:
      path: such as WORKDIR/STAGE/metrics.jsonl; its folder is created if absent.
    """

    def __init__(self, path: str | Path):
        self.path = storage.path(path)
        self.perf_path = self.path.with_name("perf.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for log in (self.path, self.perf_path):
            growing.begin(log)
        self.truncate(math.inf)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one row, on disk when the first host returns (past a kill of its process).

        In a bucket it is by the next checkpoint, or a minute later; see `cai_jax.growing`.

        Args:
          step: optimiser steps done, the one described included.
          metrics: name to a number (also a NumPy or jax scalar); one that is not finite is
            written as null, which JSON has.
        """
        if not hosts.first():
            return
        values = {name: _number(value) for name, value in sorted(metrics.items())}
        perf = {name: value for name, value in values.items() if name.startswith("perf/")}
        rest = {name: value for name, value in values.items() if name not in perf}
        for path, row in ((self.path, rest), (self.perf_path, perf)):
            if row:
                growing.append(path, json.dumps({"step": int(step), **row}) + "\n")

    def truncate(self, step: float) -> None:
        """Drops the rows past `step`, which a run continued from there will write again."""

        def keep() -> None:
            for path in (self.path, self.perf_path):
                _keep_steps(path, step)

        hosts.once(keep)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `path`, in order; all hosts call it at the same place."""
        hosts.once(growing.put_all)  # what was written before is there
        return read(self.path)


def read(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a log, in order, without changing it: it may still be written to."""
    return [row for row, _ in _read(path)]


def _number(value: Any) -> int | float | None:
    if isinstance(value, (int, np.integer)):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else None


def _read(path: Path) -> list[tuple[dict[str, Any], str]]:
    """The whole lines of a log with what they say; it ends at the first that is not whole."""
    found = []
    for line in growing.read(path).splitlines(keepends=True):
        try:
            row = json.loads(line)
            whole = line.endswith("\n") and isinstance(row["step"], int)
        except (ValueError, TypeError, KeyError):
            whole = False
        if not whole:
            break
        found.append((row, line))
    return found


def _keep_steps(path: Path, last: float) -> None:
    text = "".join(line for row, line in _read(path) if row["step"] <= last)
    if text != growing.read(path):
        growing.replace(path, text)
