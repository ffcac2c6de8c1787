"""What a run of the engine did, in tokens."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Stats:
    """Counts of one run.

    Attributes:
      sampled: tokens drawn.
      rows_computed: tokens that the bursts had room for; the rest fell to idle rows.
      read: forced tokens whose keys and values were computed.
      read_padded: the same with the padding of the calls.
      shared: tokens not read because the run's common prefix is read once.
      forked: tokens not read because another slot held them.
    """

    sampled: int = 0
    rows_computed: int = 0
    read: int = 0
    read_padded: int = 0
    shared: int = 0
    forked: int = 0

    @property
    def occupancy(self) -> float:
        """Share of the bursts' rows that drew a token."""
        return self.sampled / max(self.rows_computed, 1)
