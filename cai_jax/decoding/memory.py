"""How many slots a device's free memory holds."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from cai_jax.models import kv_cache
from cai_jax.models.config import ModelConfig

SHARE = 0.8  # of the free memory; activations take the rest
COPIES = 2  # of a slot's keys and values: a burst works on a copy of what it reads
LOGITS = 6  # float32 arrays of a slot's logits that sampling holds


def free_bytes() -> int | None:
    """Free memory of a device, in bytes, the least of all hosts; None where it is not known."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats["bytes_in_use"]
    elif device.platform == "cpu" and Path("/proc/meminfo").exists():
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        return None
    if jax.process_count() > 1:  # all hosts must take the same number of slots
        free = int(multihost_utils.process_allgather(jnp.int32(free >> 20)).min()) << 20
    return free


def slot_bytes(config: ModelConfig, dtype: jnp.dtype, length: int) -> int:
    """What a slot of `length` tokens takes, in bytes, on a single device."""
    cache = COPIES * length * kv_cache.token_bytes(config, dtype)
    return cache + LOGITS * 4 * config.vocab_size


def slots_that_fit(wanted: int, each: int, available: int | None, devices: int = 1) -> int:
    """At most `wanted` slots of `each` bytes, in `available` bytes of each of several devices.

    Returns:
      Slots, fewer than wanted only in multiples of the devices; 0 where not one fits.
    """
    if available is None or wanted * each <= available * devices:
        return wanted
    return available // each * devices
