"""Who is measured: each module holds one library's ways of answering a workload.

A peer is made from a Setup and a Workload and has `warm()`, which does what compiles, and
`run(greedy, seed)`, which answers the whole workload and returns an Answer.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Setup:
    """Where a peer finds the model, and what it may use.

    Attributes:
      directory: the model in Hugging Face layout, float32.
      gguf: the same as GGUF files, by dtype.
      dtype: in which the peer computes.
      threads: of the CPU.
      shared_by: how many items the whole workload has of which a peer is given a part; what it
        computes once for all is charged in this proportion.
    """

    directory: Path
    gguf: dict[str, Path]
    dtype: str
    threads: int
    shared_by: int

    @classmethod
    def of(cls, folder: Path, dtype: str, threads: int, shared_by: int = 1) -> Setup:
        """The setup of a folder that prepare.py wrote."""
        files = {kind: folder / f"model-{kind}.gguf" for kind in DTYPES}
        return cls(folder / "hugging_face", files, dtype, threads, shared_by)


@dataclasses.dataclass
class Answer:
    """What a run gave.

    Attributes:
      tokens: what was written for each item; in W5 the last revision.
      scores: for each item, log-probability of each option.
      shared_seconds: time spent on what is computed once for all items of the whole workload.
      details: whatever else is worth keeping, such as the slots' occupancy.
    """

    tokens: list[list[int]] = dataclasses.field(default_factory=list)
    scores: list[list[float]] = dataclasses.field(default_factory=list)
    shared_seconds: float = 0.0
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
