"""The machine: whether it is idle, how fast it is, the least time that a workload can take on it.

The bound takes every distinct token as computed once, with nothing padded, at the rate of the same
compiler's matrix product; reading costs its operations, writing the larger of its operations and
its bytes. Nothing here knows how an engine works.

python benchmarks/machine.py      prints the rates as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path

import numpy as np
from workloads import Workload, common_length

from cai_jax.models.config import ModelConfig

BUSY = 0.05  # share of the CPU time that others may use


class BusyError(RuntimeError):
    """The machine stayed busy with something else."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """Attributes: floating-point operations a second of a product with many rows and with 32, and
    bytes a second read from memory."""

    large: float
    small: float
    read: float


@dataclasses.dataclass(frozen=True)
class Work:
    """What a workload needs at the least.

    Attributes:
      reading: operations to read every distinct token once.
      writing: operations of the steps that write.
      bytes: that the steps that write have to fetch.
    """

    reading: float
    writing: float
    bytes: float


def cpu_times() -> tuple[float, float]:
    """(busy, total) CPU seconds of all cores since the machine started."""
    hundredths = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = hundredths[3] + hundredths[4]  # waiting for a disk is idle
    return (sum(hundredths) - idle) / 100, sum(hundredths) / 100


def busy_share(seconds: float = 1.0) -> float:
    """Share of the CPU time that is used while this process sleeps."""
    before = cpu_times()
    time.sleep(seconds)
    busy, total = (b - a for a, b in zip(before, cpu_times(), strict=True))
    return busy / max(total, 1e-9)


def wait_until_idle(patience: float = 120.0, most: float = BUSY) -> None:
    """Returns once a second has passed in which the machine had nothing else to do.

    Args:
      patience: seconds to wait for it.
      most: share of the CPU time that others may use.

    Raises:
      BusyError: that second did not come within `patience` seconds.
    """
    until = time.monotonic() + patience
    while (share := busy_share()) > most:
        if time.monotonic() > until:
            raise BusyError(
                f"the machine is {share:.0%} busy with something else, so nothing measured now "
                "would mean anything; stop it, or give a longer --patience."
            )


def measure() -> Rates:
    """The machine's rates, by XLA and numpy, the best of a few tries each."""
    import jax
    import jax.numpy as jnp

    key = jax.random.key(0)
    weights = [jax.random.normal(k, (576, 1536), jnp.float32) for k in jax.random.split(key, 48)]

    @jax.jit
    def products(x, weights):
        return [x @ w for w in weights]

    def rate(rows: int) -> float:
        x = jnp.ones((rows, 576), jnp.float32)
        operations = 2.0 * rows * 576 * 1536 * len(weights)
        return operations / _best(lambda: jax.block_until_ready(products(x, weights)))

    return Rates(large=rate(1024), small=rate(32), read=_read_rate())


def _read_rate(threads: int = 2, megabytes: int = 256) -> float:
    parts = [np.ones(megabytes * 2**18, np.float32) for _ in range(threads)]

    def read() -> None:
        jobs = [threading.Thread(target=np.dot, args=(part, part)) for part in parts]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()

    return sum(part.nbytes for part in parts) / _best(read)


def _best(run, tries: int = 5) -> float:
    run()
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def work(workload: Workload, config: ModelConfig) -> Work:
    """Counts operations and bytes, float32.

    Raises:
      ValueError: the workload's texts depend on what is sampled, so nothing can be counted.
    """
    if workload.name == "W5":
        raise ValueError("what W5 reads depends on what it wrote; it has no bound")
    body, head = matrix_sizes(config)
    attend = 4.0 * config.layers * config.heads * config.head_dim  # a token to one before it
    reads = [item.tokens + option[:-1] for item in workload.items for option in item.options]
    reads = reads or [item.tokens for item in workload.items]
    tokens, pairs = distinct(reads)
    predictions = len(reads) if workload.items[0].limit else distinct_choices(workload)
    reading = 2.0 * body * tokens + attend * pairs + 2.0 * head * predictions
    cache = 2.0 * 4 * config.layers * config.kv_heads * config.head_dim  # bytes of a token
    common, writing, fetched = workload.common, 0.0, 0.0
    # The last token written is not read again, and the first needs no step of its own.
    steps = np.sort([item.limit - 1 for item in workload.items])
    for item in workload.items:
        lengths = len(item.tokens) + 1 + np.arange(max(item.limit - 1, 0))
        writing += float(np.sum(2.0 * (body + head) + attend * lengths))
        fetched += float(np.sum(cache * (lengths - common)))
    # Full slots: as many steps as the tokens fill, and at least the longest item's.
    count = max(steps.clip(0).sum() / workload.slots, steps.max(initial=0))
    fetched += float(count) * (4.0 * (body + head) + cache * common)
    return Work(reading, writing, fetched)


def seconds(work: Work, rates: Rates, small: bool) -> float:
    """The bound; `small` takes the steps at the rate of a product with 32 rows."""
    rate = rates.small if small else rates.large
    return work.reading / rates.large + max(work.writing / rate, work.bytes / rates.read)


def matrix_sizes(config: ModelConfig) -> tuple[int, int]:
    """Numbers in (all layers' matrices, the output matrix)."""
    heads = 2 * config.heads + 2 * config.kv_heads
    layer = config.embed * (config.head_dim * heads + 3 * config.mlp)
    return config.layers * layer, config.embed * config.vocab_size


def distinct(sequences: list[tuple[int, ...]]) -> tuple[int, int]:
    """Nodes of the sequences' prefix tree, and the sum of their depths.

    That is how many tokens have to be read, and how many pairs of tokens have to be attended to.
    """
    tokens = pairs = 0
    before: tuple[int, ...] = ()
    for sequence in sorted(set(sequences)):
        known, length = common_length([before, sequence]), len(sequence)
        tokens += length - known
        pairs += (length * (length + 1) - known * (known + 1)) // 2
        before = sequence
    return tokens, pairs


def distinct_choices(workload: Workload) -> int:
    """How many different contexts a next token's probability is asked after."""
    contexts = {
        (item.tokens, option[:n])
        for item in workload.items
        for option in item.options
        for n in range(len(option))
    }
    return len(contexts)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(measure())))
