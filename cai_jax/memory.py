"""Memory of the process: huge pages from its start, and what a stage freed given back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path


def with_huge_pages() -> None:
    """Starts this process anew with malloc on huge pages, where Linux offers them.

    A step on CPU allocates gigabytes of temporaries; touched 4 kB at a time they cost a quarter of
    its time. glibc reads the setting only when a process begins.
    """
    offered = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" in os.environ or not offered.exists() or "[never]" in offered.read_text():
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, "-m", "cai_jax.cli", *sys.argv[1:]])


def give_back() -> None:
    """Gives the operating system what is freed but kept by malloc; nothing where it is not glibc's.

    After a stage on CPU that is over a gigabyte, on which the next stage's would be piled.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
