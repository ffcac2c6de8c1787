"""The verbs without a config that read or fetch files: fetch, data, constitution."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from cai_jax import constitution as constitutions
from cai_jax.constitution import Constitution
from cai_jax.datasets import catalog, files, measure
from cai_jax.principles import NOUNS
from cai_jax.weights import fetch as weights


class ToolError(ValueError):
    """A command that cannot be done; the message says why and what to do."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ToolError(f"{self.prog}: {message}; `{self.prog} --help` lists what it takes.")


def fetch(arguments: list[str]) -> None:
    """Downloads a known model or data set if the cache lacks it; says where it is."""
    data_sets = catalog.datasets()
    known = [*sorted(weights.SOURCES), *(name for name, d in data_sets.items() if d.files)]
    parser = tool_parser("fetch", f"Models and data sets: {', '.join(known)}.")
    parser.add_argument("name", nargs="?", default="smollm2-135m-instruct")
    name = parser.parse_args(arguments).name
    if name in data_sets:
        for _, file in data_sets[name].files:
            print(files.fetch(file, data_sets[name].home, say))
        return
    file = weights.fetch(name, say)
    print(f"{name}\n  file    {file}\n  size    {file.stat().st_size:,} bytes")
    print(f"  sha256  {weights.sha256(file)}")


def data(arguments: list[str]) -> None:
    """Lists the public data sets, or prints one's card and what its files at hand hold.

    Raises:
      ValueError: an unknown name, or a bad row of a file.
    """
    parser = tool_parser("data", "List the data sets, or describe one and count its files at hand.")
    parser.add_argument("name", nargs="?", help="of a data set; all of them are listed without it")
    parser.add_argument(
        "--manual_dir", type=Path, metavar="DIR",
        help="with the publisher's files, else what `fetch` got; for your own data, the file",
    )  # fmt: skip
    parser.add_argument("--against", type=Path, metavar="FILE", help="count prompts it shares")
    options = parser.parse_args(arguments)
    if options.name is None:
        for known in catalog.datasets().values():
            print(measure.at_hand(known, options.manual_dir or known.home))
        return
    dataset = catalog.dataset(options.name)
    print(measure.card(dataset, options.manual_dir or dataset.home, options.against))


def constitution(arguments: list[str]) -> None:
    """check FILE, diff FILE FILE, import --from=DIR --to=FILE.

    Raises:
      ConstitutionError: a constitution that cannot be used, with file, line and field.
      ToolError: the file to write exists.
    """
    parser = tool_parser("constitution", "Check, compare and import constitutions.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="check|diff|import")
    check = verbs.add_parser("check", help="check a constitution and list its principles")
    check.add_argument("file", type=Path)
    differ = verbs.add_parser("diff", help="what changes from one constitution to another")
    differ.add_argument("old", type=Path)
    differ.add_argument("new", type=Path)
    importer = verbs.add_parser("import", help="make one from the paper's published JSON files")
    importer.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR")
    importer.add_argument("--to", type=Path, required=True, metavar="FILE.yaml")
    importer.add_argument("--force", action="store_true", help="replace FILE.yaml")
    options = parser.parse_args(arguments)
    if options.verb == "check":
        print(describe(constitutions.load(options.file)))
    elif options.verb == "diff":
        print(constitutions.diff(constitutions.load(options.old), constitutions.load(options.new)))
    else:
        if options.to.exists() and not options.force:
            raise ToolError(f"{options.to} exists; give another --to, or --force to replace it.")
        made = constitutions.import_paper(options.source)
        constitutions.save(made, options.to)
        print(f"{describe(made)}\nwritten to {options.to}")


def describe(made: Constitution) -> str:
    """Name, hash and counts of a constitution, and a line for each principle."""
    lines = [f"{made.name}  ({made.hash})"]
    for section, noun in NOUNS.items():
        entries = getattr(made, section)
        lines.append(f"{len(entries)} {noun}{'' if len(entries) == 1 else 's'}")
        if section == "critique":
            lines += [f"  {p.id}: {_short(p.critique_request)}" for p in entries]
        elif section == "comparison":
            lines += [f"  {p.id}: {_short(p.instruction)}" for p in entries]
    return "\n".join(lines)


def _short(text: str, width: int = 72) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3].rsplit(" ", 1)[0] + "..."


def tool_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """Of a verb's own flags; what it does not understand raises ToolError."""
    return _Parser(prog=f"cai-jax {verb}", description=description, allow_abbrev=False)


def say(line: str) -> None:
    """Reports on standard error, which leaves standard output to results."""
    print(line, file=sys.stderr, flush=True)
