"""Memory of the process: huge pages from its start, and what a stage freed given back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path


def with_huge_pages() -> None:
    """Starts this process anew with malloc on huge pages, where Linux offers them."""
    if setting := huge_pages():
        os.environ |= setting
        os.execv(sys.executable, [sys.executable, "-m", "cai_jax.cli", *sys.argv[1:]])


def huge_pages() -> dict[str, str]:
    """The environment in which a process begins with malloc on huge pages; empty where it does
    already or Linux offers none.

    A step on CPU allocates gigabytes of temporaries; touched 4 kB at a time they cost a quarter of
    its time. glibc reads the setting only when a process begins.
    """
    offered = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" in os.environ or not offered.exists() or "[never]" in offered.read_text():
        return {}
    return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def give_back() -> None:
    """Gives the operating system what is freed but kept by malloc; nothing where it is not glibc's.

    After a stage on CPU that is over a gigabyte, on which the next stage's would be piled.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
