"""One peer in a process of its own, driven by lines: it answers a workload again and again.

A Worker starts `worker.py FILE`, FILE being a pickled Job, and writes "warm", "check" or
"time SEED" to it; each is answered by one line of JSON.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

import peak
from peers import Setup
from training_work import Work
from workloads import Workload

from cai_jax.memory import huge_pages


class WorkerError(RuntimeError):
    """A peer that could not answer; the log says why."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Attributes: the peer as "module:class"; what it is made from."""

    peer: str
    setup: Setup
    workload: Workload | Work


class Worker:
    """The parent's side.

    Args:
      job: what to do.
      log: an open file, for what libraries print.
    """

    def __init__(self, job: Job, log: TextIO):
        self._peer, self._log = job.peer, log
        # Waiting threads must not spin: the other workers are being measured meanwhile.
        threads = {
            name: str(job.setup.threads)
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        quiet = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
        with tempfile.NamedTemporaryFile(suffix=".pickle", delete=False) as file:
            pickle.dump(job, file)
        self._file = Path(file.name)
        self._process = subprocess.Popen(
            [sys.executable, __file__, file.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | threads | quiet | huge_pages(),  # as `cai-jax` starts
        )
        self._answer()

    def ask(self, command: str) -> Any:
        """The worker's answer to a command.

        Raises:
          WorkerError: it ended instead.
        """
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._file.unlink(missing_ok=True)

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._file.unlink(missing_ok=True)
            raise WorkerError(f"{self._peer} ended with code {code}; see {self._log.name}")
        return json.loads(line)


def main(file: str) -> None:
    """Serves the job in `file` until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log
    job: Job = pickle.loads(Path(file).read_bytes())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.setup.threads])
    module, name = job.peer.split(":")
    peer = getattr(importlib.import_module(module), name)(job.setup, job.workload)
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        print(json.dumps(_do(peer, *line.split())), file=answers)


def _do(peer: Any, command: str, seed: str = "0") -> Any:
    peak.forget()
    began, used = time.perf_counter(), time.process_time()
    if command == "warm":
        peer.warm()
        return time.perf_counter() - began
    answer = dataclasses.asdict(peer.run(greedy=command == "check", seed=int(seed)))
    took, used = time.perf_counter() - began, time.process_time() - used
    return answer | {"seconds": took, "cpu_seconds": used, "peak_bytes": peak.peak()}


if __name__ == "__main__":
    # The module under the name that the pickled Job knows it by.
    from worker import main

    main(sys.argv[1])
