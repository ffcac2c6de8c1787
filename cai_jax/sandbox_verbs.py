"""`cai-jax sandbox`: makes the sandbox's texts and models; `cai-jax sandbox-scores`: the truth
about what a run's models answered."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from cai_jax.sandbox import texts
from cai_jax.tools import ToolError, tool_parser

MADE = "made.json"  # what a model was made from


def sandbox(arguments: list[str]) -> None:
    """Trains a size's two models from nothing, or with --texts writes the world's files."""
    from cai_jax.sandbox_models import SIZES, build, model_config, tokenizer

    parser = tool_parser("sandbox", "Train the sandbox's models, or write its texts.")
    parser.add_argument("--size", choices=tuple(SIZES), help="of the models to train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="where the models come")
    parser.add_argument("--texts", type=Path, metavar="DIR", help="write the world's files there")
    options = parser.parse_args(arguments)
    if options.texts:
        return texts.write(options.texts)
    if not (options.size and options.workdir):
        raise ToolError("give --size=SIZE and --workdir=DIR, or --texts=DIR.")
    from cai_jax.progress import Progress
    from cai_jax.weights.safetensors import WHOLE, write_directory
    from cai_jax.weights.words import write_json

    size = SIZES[options.size]
    made = {"size": options.size, "seed": options.seed, **dataclasses.asdict(size)}
    noted = options.workdir / MADE
    if noted.exists() and json.loads(noted.read_text("utf-8")) != made:
        raise ToolError(f"{options.workdir} is of another size or seed; give another --workdir.")
    options.workdir.mkdir(parents=True, exist_ok=True)
    write_json(noted, made)
    words = tokenizer(options.seed)
    with Progress() as progress:
        for name, params in build(size, words, options.workdir, options.seed, progress):
            folder = options.workdir / "models" / name
            write_directory(folder, model_config(size), params, words, None, dtype="bfloat16")
            digest = hashlib.sha256((folder / WHOLE).read_bytes()).hexdigest()
            write_json(folder / MADE, {**made, "model": name, "sha256": digest})
            progress.say(f"{folder} written")


def sandbox_scores(arguments: list[str]) -> None:
    """The oracle's verdict on runs: tables, figures, and evaluation/oracle.json in each workdir.

    Runs given together, with commas between, differ by seed; each --workdir is a group of them.
    """
    from cai_jax import sandbox_figures, sandbox_study
    from cai_jax.progress import Progress
    from cai_jax.sandbox_scores import verdicts
    from cai_jax.workdir import Workdir

    parser = tool_parser("sandbox-scores", "What is true of runs' answers.")
    parser.add_argument(
        "--workdir", action="append", required=True, metavar="[NAME=]DIR[,DIR...]",
        help="runs that differ by seed alone; again for other ones to set beside them",
    )  # fmt: skip
    parser.add_argument(
        "--figures", type=Path, metavar="DIR", help="else the first run's figures/oracle"
    )
    options = parser.parse_args(arguments)
    groups = dict(_group(given) for given in options.workdir)
    if len(groups) < len(options.workdir):
        raise ToolError("two groups of runs have one name; give each as --workdir=NAME=DIR.")
    found: dict[str, list[dict]] = {}
    for name, folders in groups.items():
        for folder in folders:
            if not (folder / "revise" / "done.json").exists():
                raise ToolError(
                    f"{folder} has no finished revisions; give the workdir of a run of "
                    "experiments/sandbox.py."
                )
            found.setdefault(name, []).append(verdicts(folder))
            Workdir(folder).write_json("evaluation/oracle.json", found[name][-1])
    first = next(iter(groups.values()))[0]
    with Progress() as progress:
        for title, (columns, rows) in sandbox_study.tables(found).items():
            progress.results_table(title, columns, rows)
        paths = sandbox_figures.draw(found, options.figures or first / "figures" / "oracle")
        progress.say("figures: " + ", ".join(str(p) for p in paths if p.suffix == ".png"))


def _group(given: str) -> tuple[str, list[Path]]:
    """(name, folders) of "NAME=DIR,DIR", or of "DIR,DIR", whose name is the first folder's."""
    name, equals, rest = given.partition("=")
    folders = [Path(folder) for folder in (rest if equals else given).split(",") if folder]
    if not folders:
        raise ToolError(f"--workdir={given} names no folder; give [NAME=]DIR[,DIR...].")
    return (name if equals else folders[0].name), folders
