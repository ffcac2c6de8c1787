"""Who is measured on which workload, in which dtype, and on how many of its items if not all.

A peer that is slow on a workload gets its first items only; the table says so.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Entry:
    """Attributes: label in the table; module:class; dtype; items, 0 for all."""

    label: str
    peer: str
    dtype: str = "float32"
    items: int = 0


OURS = Entry("ours", "peers.ours:Ours")
_PLAIN = "peers.transformers_peer:Plain"

ENTRIES: dict[str, tuple[Entry, ...]] = {
    "W1": (
        OURS,
        Entry("transformers float32", _PLAIN),
        Entry("transformers bfloat16", _PLAIN, "bfloat16"),
        Entry("llama.cpp float32", "peers.llama_cpp_peer:Slots"),
        Entry("llama.cpp bfloat16", "peers.llama_cpp_peer:Slots", "bfloat16"),
        Entry("tunix float32", "peers.tunix_peer:Sampler"),
    ),
    "W2": (
        OURS,
        Entry("transformers continuous batching", "peers.transformers_batching:Continuous"),
        Entry("llama.cpp bfloat16, slots refilled", "peers.llama_cpp_peer:Slots", "bfloat16"),
    ),
    "W3": (
        OURS,
        Entry("transformers float32", _PLAIN, items=4),
        Entry("transformers float32, prefix cached", "peers.transformers_cached:Prefix", items=16),
        Entry("llama.cpp bfloat16, prefix copied", "peers.llama_cpp_peer:Slots", "bfloat16"),
    ),
    "W4": (
        OURS,
        Entry("transformers float32", _PLAIN, items=64),
        Entry("transformers float32, cached", "peers.transformers_cached:Options", items=64),
        Entry("transformers bfloat16", _PLAIN, "bfloat16"),
        Entry("llama.cpp bfloat16, shared", "peers.llama_cpp_choices:Choices", "bfloat16"),
    ),
    "W4b": (
        OURS,
        Entry("transformers float32", _PLAIN, items=64),
        Entry("transformers float32, cached", "peers.transformers_cached:Options", items=64),
        Entry("llama.cpp bfloat16, shared", "peers.llama_cpp_choices:Choices", "bfloat16"),
    ),
    "W5": (OURS, Entry("transformers float32, step by step", _PLAIN, items=4)),
}
