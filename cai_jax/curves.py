"""The verbs `tensorboard` and `wandb`: the curves of a run, finished or not, for other viewers.

metrics.jsonl and perf.jsonl are the source of truth; nothing here is called while training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cai_jax import event_file, storage
from cai_jax.tools import ToolError, tool_parser
from cai_jax.training.metrics import read
from cai_jax.workdir import digest

EVENTS = "events.out.tfevents.0000000000.cai_jax"

# (time in seconds since 1970, step, name to number)
Row = tuple[float, int, dict[str, float]]


def tensorboard(arguments: list[str]) -> None:
    """Writes the curves of a workdir's stages as event files, a folder each; replaces former ones.

    Raises:
      ToolError: the workdir has no metrics.
      OSError: a file cannot be written.
    """
    parser = tool_parser("tensorboard", "Write a run's curves as TensorBoard event files.")
    parser.add_argument("--to", metavar="DIR", help="WORKDIR/tensorboard if left out")
    workdir, options = _parsed(parser, arguments)
    to = storage.path(options.to) if options.to else workdir / "tensorboard"
    for stage, rows in curves(workdir).items():
        event_file.write(to / stage / EVENTS, rows)
        print(f"{stage}: {len(rows)} steps")
    print(f"written; look at them with: tensorboard --logdir={to}")


def wandb(arguments: list[str]) -> None:
    """Sends the curves of a workdir's stages to Weights & Biases, a run each.

    Given again, it adds the steps that are new: a stage keeps its id.

    Raises:
      ToolError: the workdir has no metrics, or wandb is not installed.
    """
    parser = tool_parser("wandb", "Send a run's curves to Weights & Biases.")
    parser.add_argument("--project", default="cai_jax", help="of Weights & Biases")
    workdir, options = _parsed(parser, arguments)
    found = curves(workdir)
    try:
        import wandb as client
    except ImportError as error:
        raise ToolError("wandb is not installed; `pip install wandb` brings it.") from error
    where = str(workdir if storage.in_bucket(workdir) else workdir.resolve())
    file = workdir / "config.json"
    config = json.loads(file.read_text("utf-8")) if file.exists() else {}
    for stage, rows in found.items():
        made_from = json.loads((workdir / stage / "inputs.json").read_text("utf-8"))
        sent = client.init(
            project=options.project,
            id=digest([where, stage, made_from]),
            group=workdir.name,
            name=f"{workdir.name} {stage}",
            config=config,
            resume="allow",
        )
        for _, step, scalars in rows:
            sent.log(scalars, step=step)
        sent.finish()
        print(f"{stage}: {len(rows)} steps")


def curves(workdir: Path) -> dict[str, list[Row]]:
    """Stage to its rows, metrics and perf of a step in one.

    A log does not say when a row was written: the last one of a stage is taken to be as old as its
    file, and those before it by perf/step_seconds older, where there are such.

    Raises:
      ToolError: there is no stage with metrics.
    """
    found = {}
    for path in sorted(workdir.glob("*/metrics.jsonl")):
        perf = {row["step"]: row for row in read(path.with_name("perf.jsonl"))}
        seconds, rows = storage.modified(path), []
        for row in reversed(read(path)):
            row = perf.get(row["step"], {}) | row
            scalars = {k: v for k, v in row.items() if k != "step" and v is not None}
            rows.append((seconds, row["step"], scalars))
            seconds -= row.get("perf/step_seconds") or 0.0
        if rows:
            found[path.parent.name] = rows[::-1]
    if not found:
        raise ToolError(f"{workdir} has no stage with a metrics.jsonl; give a run's --workdir.")
    return found


def _parsed(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[Path, argparse.Namespace]:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of a run")
    options = parser.parse_args(arguments)
    return storage.path(options.workdir), options
