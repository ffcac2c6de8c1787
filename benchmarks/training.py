"""Our training steps beside TRL's and tunix's, on this machine, with the same weights and tokens.

python benchmarks/training.py --work SL,PM,PPO --rounds 3 --json F.json --log F.log --trl-ppo DIR

Every peer has a process of its own. For a piece of work all of them are started and warmed, one
after the other; then each round measures a step of each of them, so that ratios are of neighbours
in time. Before each measurement the machine has to be idle. Needs `pip install -e '.[bench]'`, and
for PPO a folder with the last TRL that had it:

pip install --no-deps --target DIR trl==1.9.2
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

import jax
import machine
import tables
import training_memory
import training_work
from decode import made_on, matches, note, script, timed
from peers import Setup
from peers.entries import Entry
from training_work import Work
from worker import Job, Worker, WorkerError

from cai_jax.chat_template import ChatFormat
from cai_jax.weights.safetensors import read_directory

LIBRARIES = ("jax", "torch", "transformers", "trl", "google-tunix")
ENTRIES = {
    "SL": (
        Entry("ours", "peers.ours_training:SL"),
        Entry("TRL", "peers.trl_training:SL"),
        Entry("tunix", "peers.tunix_training:SL"),
    ),
    "PM": (Entry("ours", "peers.ours_training:PM"), Entry("TRL", "peers.trl_training:PM")),
    "PPO": (Entry("ours", "peers.ours_training:PPO"), Entry("TRL 1.9.2", "peers.trl_ppo:PPO")),
}
TARGETS = {
    ("SL", "TRL"): 2.0, ("SL", "tunix"): 1.3, ("PM", "TRL"): 1.5, ("PPO", "TRL 1.9.2"): 2.5,
}  # fmt: skip


def main() -> None:
    """Measures what the command line asks for; prints the table as it grows."""
    options = parse()
    with open(options.log or "/dev/stderr", "a") as log:
        folder = Path(script("prepare.py", log, "--model", options.model).strip().split("\n")[-1])
        config, params, tokenizer, template = read_directory(folder / "hugging_face")
        parameters = sum(x.size for x in jax.tree.leaves(params))
        del params
        form = ChatFormat.for_tokenizer(template, tokenizer)
        machine.wait_until_idle(options.patience, options.busy)
        rates = machine.Rates(**json.loads(script("machine.py", log).strip().split("\n")[-1]))
        rows: list[tables.Measured] = []
        least: dict[str, int] = {}
        for name in options.work:
            work = training_work.build(name, config.vocab_size, tokenizer, form, options.trl_ppo)
            entries = [e for e in ENTRIES[name] if not options.peers or matches(e, options.peers)]
            rows += measure(work, entries, folder, options, log)
            print(tables.training(rows, TARGETS), flush=True)
            if name == "PPO":
                count = len(work.rows)
                least = training_memory.minimum(
                    config, parameters, count, count // work.minibatches, work.longest,
                    work.response,
                )  # fmt: skip
                print(memory(least, rows), flush=True)
            if options.json:
                write(options, rates, least, rows)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=lambda text: text.split(","), default=list(training_work.NAMES)
    )
    parser.add_argument("--peers", type=lambda text: text.split(","), help="parts of their labels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl-ppo", type=Path, metavar="DIR", help="with TRL 1.9.2")
    parser.add_argument("--model", default="smollm2-135m-instruct", metavar="NAME")
    parser.add_argument("--patience", type=float, default=120, help="seconds to wait for idleness")
    parser.add_argument("--busy", type=float, default=machine.BUSY, help="share for others")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    if unknown := set(options.work) - set(training_work.NAMES):
        parser.error(f"unknown work {min(unknown)}; known: {', '.join(training_work.NAMES)}")
    return options


def measure(
    work: Work, entries: list[Entry], folder: Path, options: argparse.Namespace, log
) -> list[tables.Measured]:
    """All entries on one piece of work: started and warmed in turn, then timed in rounds."""
    rows = [tables.Measured(work.name, e.label, work.unit, 1, 1) for e in entries]
    with contextlib.ExitStack() as stack:
        running: list[tuple[tables.Measured, Worker]] = []
        for entry, row in zip(entries, rows, strict=True):
            note(f"{work.name} {entry.label}: warming", log)
            try:
                setup = Setup.of(folder, entry.dtype, options.threads)
                worker = Worker(Job(entry.peer, setup, work), log)
                stack.callback(worker.close)
                row.first = worker.ask("warm")
            except WorkerError as error:
                row.failure = str(error)
                note(row.failure, log)
                continue
            running.append((row, worker))
        for seed in range(1, options.rounds + 1):
            for row, worker in running:
                machine.wait_until_idle(options.patience, options.busy)
                answer = timed(worker, seed, row)
                row.rates.append(work.size / answer["seconds"])
                row.details = answer["details"] | {"peak_bytes": answer["peak_bytes"]}
                note(f"{work.name} {row.peer}: {row.seconds[-1]:.4g} s", log)
    return rows


def memory(least: dict[str, int], rows: list[tables.Measured]) -> str:
    """What a PPO iteration held at the most, and what it cannot do without."""
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in least.items() if name != "least")
    peaks = ", ".join(
        f"{row.peer} {row.details['peak_bytes'] / 1e9:.2f}"
        for row in rows
        if row.workload == "PPO" and row.details
    )
    return (
        f"\nMemory of a PPO iteration, GB: least {least['least'] / 1e9:.2f} ({parts}; the cache or "
        f"gradients with activations, whichever is more); at the most, of the whole process: "
        f"{peaks}."
    )


def write(
    options: argparse.Namespace,
    rates: machine.Rates,
    least: dict[str, int],
    rows: list[tables.Measured],
) -> None:
    """Everything measured so far, as JSON."""
    content = made_on(options, LIBRARIES, rates, rows) | {"least_bytes": least}
    options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
