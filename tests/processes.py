"""Environments of processes on this machine that are one run of jax.distributed."""

import socket


def two() -> list[dict[str, str]]:
    """What each of two adds to its environment."""
    return several(2)


def several(count: int) -> list[dict[str, str]]:
    """What each of `count` adds to its environment."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    return [
        {
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": f"{count}",
            "JAX_PROCESS_ID": f"{rank}",
        }
        for rank in range(count)
    ]
