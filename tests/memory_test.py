"""Huge pages are asked for once; what a stage freed goes back to the operating system."""

import ctypes
import subprocess
import sys

import pytest

from cai_jax import memory

MEBIBYTE = 2**20
# Blocks below malloc's mmap threshold, all freed but the last, which holds the heap's top.
FREED = """
import ctypes
from cai_jax.memory import give_back
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
    ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p])
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
blocks = [libc.malloc(64 * 1024) for _ in range(2048)]
for block in blocks:
    ctypes.memset(block, 1, 64 * 1024)
for block in blocks[:-1]:
    libc.free(block)
kept = resident()
give_back()
print(kept - resident())
"""


def test_freed_memory_is_given_back():
    try:
        ctypes.CDLL("libc.so.6").malloc_trim  # noqa: B018
    except (OSError, AttributeError):
        pytest.skip("malloc is not glibc's here; there is nothing to ask it")
    said = subprocess.run(
        [sys.executable, "-c", FREED], capture_output=True, text=True, check=True
    ).stdout
    assert int(said) > 100 * MEBIBYTE


@pytest.mark.parametrize("offered", ["always [madvise] never", "always madvise [never]", None])
def test_huge_pages_are_asked_for_where_linux_offers_them(monkeypatch, tmp_path, offered):
    file = tmp_path / "enabled"
    if offered:
        file.write_text(offered)
    monkeypatch.setattr(memory, "Path", lambda _: file)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    setting = memory.huge_pages()
    assert bool(setting) == (offered == "always [madvise] never")
    # A process that has the setting, or another of its user's, is left alone.
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert memory.huge_pages() == {}
