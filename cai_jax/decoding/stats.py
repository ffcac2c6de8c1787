"""What a run of the engine did, in tokens and seconds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path

from cai_jax import growing, hosts

FILE = "decoding.jsonl"  # of a stage: a row a run of the engine


@dataclasses.dataclass
class Stats:
    """Counts of one run.

    Attributes:
      slots: Scripts in progress at a time.
      sampled: tokens drawn.
      rows_computed: rows that the bursts' steps went through.
      rows_used: those of them that drew a token. A reply's first token is drawn from what reading
        gave, and takes no row of a step.
      read: forced tokens whose keys and values were computed.
      read_padded: the same with the padding of the calls.
      shared: tokens not read because the run's common prefix is read once.
      forked: tokens not read because another slot held them.
      scored: tokens of options whose log-probabilities were computed.
      compiled: programs of a size that this engine had not called before.
      read_seconds, sample_seconds, score_seconds: what each took, compilation included.
    """

    slots: int = 0
    sampled: int = 0
    rows_computed: int = 0
    rows_used: int = 0
    read: int = 0
    read_padded: int = 0
    shared: int = 0
    forked: int = 0
    scored: int = 0
    compiled: int = 0
    read_seconds: float = 0.0
    sample_seconds: float = 0.0
    score_seconds: float = 0.0

    @property
    def occupancy(self) -> float:
        """Share of the rows that steps went through that drew a token."""
        return self.rows_used / max(self.rows_computed, 1)

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.read_seconds + self.sample_seconds + self.score_seconds

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens a second of the whole run."""
        return self.sampled / max(self.seconds, 1e-9)

    @property
    def spared(self) -> float:
        """Share of the forced tokens whose keys and values were there already."""
        spared = self.shared + self.forked
        return spared / max(spared + self.read, 1)


def keep(log: Path, stats: Stats) -> None:
    """Adds a run's counts to a log; of several hosts the first does."""
    if hosts.first():
        row = {"at": time.time(), **dataclasses.asdict(stats)}
        growing.append(log, json.dumps(row) + "\n")


def total(workdir: Path) -> Stats:
    """What the logs of all stages add up to, without lines that are not whole; slots are the most
    that there were."""
    found = Stats()
    for log in sorted(workdir.glob(f"*/{FILE}")):
        for line in growing.read(log).splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                for field in dataclasses.fields(Stats):
                    parts = getattr(found, field.name), row.get(field.name, 0)
                    setattr(found, field.name, max(parts) if field.name == "slots" else sum(parts))
    return found
