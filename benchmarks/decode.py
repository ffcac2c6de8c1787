"""Our decoding engine beside its peers, on this machine, with the same weights, prompts and limits.

python benchmarks/decode.py --workloads W1,W3 --rounds 3 --json F.json --log F.log \
    --paper-prompts DIR

Every peer has a process of its own. For a workload all of them are started and warmed, one after
the other; then each round measures each of them once, so that ratios are of neighbours in time.
Before each measurement the machine has to be idle. Needs `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import machine
import tables
import workloads
from peers import Setup
from peers.entries import ENTRIES, Entry
from worker import Job, Worker, WorkerError
from workloads import Workload

from cai_jax.chat_template import ChatFormat
from cai_jax.weights.safetensors import read_directory

HERE = Path(__file__).parent
LIBRARIES = ("jax", "torch", "transformers", "llama_cpp_python", "google-tunix")


def main() -> None:
    """Measures what the command line asks for; prints the table as it grows."""
    options = parse()
    with open(options.log or "/dev/stderr", "a") as log:
        folder = Path(script("prepare.py", log, "--model", options.model).strip().split("\n")[-1])
        config, _, tokenizer, template = read_directory(folder / "hugging_face")
        form = ChatFormat.for_tokenizer(template, tokenizer)
        machine.wait_until_idle(options.patience)
        rates = machine.Rates(**json.loads(script("machine.py", log).strip().split("\n")[-1]))
        rows: list[tables.Measured] = []
        bounds: dict[str, tuple[float, float]] = {}
        for name in options.workloads:
            workload = workloads.build(name, tokenizer, form, options.paper_prompts)
            workload = workload.first(options.items)
            if name in ("W1", "W3", "W4", "W4b"):
                work = machine.work(workload, config)
                seconds = (machine.seconds(work, rates, small) for small in (False, True))
                bounds[name] = tuple(workload.size / s for s in seconds)
            entries = [e for e in ENTRIES[name] if not options.peers or matches(e, options.peers)]
            rows += measure(workload, entries, folder, options, log)
            print(tables.markdown(rows, bounds), flush=True)
            if options.json:
                write(options, rates, bounds, rows)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--workloads", type=lambda text: text.split(","), default=list(workloads.NAMES)
    )
    parser.add_argument("--peers", type=lambda text: text.split(","), help="parts of their labels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=0, help="only so many of each workload")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--paper-prompts", type=Path, metavar="DIR", help="else our few-shots")
    parser.add_argument("--model", default="smollm2-135m-instruct", metavar="NAME")
    parser.add_argument("--patience", type=float, default=120, help="seconds to wait for idleness")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    if unknown := set(options.workloads) - set(workloads.NAMES):
        parser.error(f"unknown workload {min(unknown)}; known: {', '.join(workloads.NAMES)}")
    return options


def matches(entry: Entry, wanted: list[str]) -> bool:
    """Whether a label holds one of the wanted parts; ours always takes part. "-PART" leaves out."""
    out = [part[1:] for part in wanted if part.startswith("-")]
    wanted = [part for part in wanted if not part.startswith("-")]
    if entry.label == "ours":
        return True
    named = not wanted or any(part in entry.label for part in wanted)
    return named and not any(part in entry.label for part in out)


def script(name: str, log: TextIO, *arguments: str) -> str:
    """What another script of this folder prints."""
    command = [sys.executable, str(HERE / name), *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=log).stdout


def measure(
    workload: Workload,
    entries: list[Entry],
    folder: Path,
    options: argparse.Namespace,
    log: TextIO,
) -> list[tables.Measured]:
    """All entries on one workload: started, warmed and checked in turn, then timed in rounds."""
    rows = [
        tables.Measured(workload.name, e.label, workload.unit, len(part.items), len(workload.items))
        for e in entries
        for part in (workload.first(e.items),)
    ]
    with contextlib.ExitStack() as stack:
        running: list[tuple[tables.Measured, Workload, Worker, float]] = []
        ours: dict[str, Any] | None = None
        for entry, row in zip(entries, rows, strict=True):
            part = workload.first(entry.items)
            setup = Setup.of(folder, entry.dtype, options.threads, len(workload.items))
            note(f"{workload.name} {entry.label}: warming", log)
            try:
                worker = Worker(Job(entry.peer, setup, part), log)
                stack.callback(worker.close)
                warm, checked = worker.ask("warm"), worker.ask("check")
            except WorkerError as error:
                row.failure = str(error)
                note(row.failure, log)
                continue
            if entry.label == "ours":
                ours = checked
            elif ours:
                row.agreement = agreement(ours, checked)
            running.append((row, part, worker, warm))
        for seed in range(1, options.rounds + 1):
            for row, part, worker, warm in running:
                machine.wait_until_idle(options.patience)
                answer = timed(worker, seed, row)
                row.rates.append(rate(part, answer, len(part.items) / len(workload.items)))
                row.details = answer["details"]
                # A peer whose warm-up does nothing compiles nothing.
                row.first = max(0.0, warm - statistics.median(row.seconds)) if warm > 1 else 0.0
                note(f"{workload.name} {row.peer}: {row.rates[-1]:.4g} {row.unit}/s", log)
    return rows


def timed(worker: Worker, seed: int, row: tables.Measured) -> dict[str, Any]:
    """A worker's answer; its seconds, and what share of the CPU others took, are noted in `row`."""
    before = machine.cpu_times()
    answer = worker.ask(f"time {seed}")
    busy, total = (b - a for a, b in zip(before, machine.cpu_times(), strict=True))
    row.seconds.append(answer["seconds"])
    row.foreign.append(max(0.0, busy - answer["cpu_seconds"]) / total)
    return answer


def rate(part: Workload, answer: dict[str, Any], share: float) -> float:
    """Units a second; what is computed once for the whole workload counts by the share of it."""
    seconds = answer["seconds"] - answer["shared_seconds"] * (1 - share)
    return part.size / seconds


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Share of greedy tokens, or of choices, that are the same."""
    if theirs["scores"]:
        return tables.same_choices(ours["scores"], theirs["scores"])
    return tables.same_tokens(ours["tokens"], theirs["tokens"])


def note(line: str, log: TextIO) -> None:
    """A line of progress, to the terminal and to the log."""
    line = f"{time.strftime('%H:%M:%S')} {line}"
    print(line, file=sys.stderr, flush=True)
    if log.name != "/dev/stderr":
        print(line, file=log, flush=True)


def write(
    options: argparse.Namespace,
    rates: machine.Rates,
    bounds: dict[str, tuple[float, float]],
    rows: list[tables.Measured],
) -> None:
    """Everything measured so far, as JSON."""
    few_shots = "the paper's" if options.paper_prompts else "our own"
    content = made_on(options, LIBRARIES, rates, rows) | {"few_shots": few_shots, "bounds": bounds}
    options.json.write_text(json.dumps(content, indent=1) + "\n")


def made_on(
    options: argparse.Namespace,
    libraries: tuple[str, ...],
    rates: machine.Rates,
    rows: list[tables.Measured],
) -> dict[str, Any]:
    """What was measured and with what, for JSON."""
    versions = {}
    for library in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return {
        "rounds": options.rounds,
        "threads": options.threads,
        "python": platform.python_version(),
        "versions": versions,
        "rates": dataclasses.asdict(rates),
        "rows": [dataclasses.asdict(row) for row in rows],
    }


if __name__ == "__main__":
    main()
