"""The most memory that this process has held since it was last asked to forget."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path


def forget() -> None:
    """From here on counts; where the system does not let go, what was before counts too."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes of resident memory at the most."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
