"""The verbs without a config, but for those of weights: chat, fetch, data, constitution."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from cai_jax import constitution as constitutions
from cai_jax import storage
from cai_jax.constitution import Constitution
from cai_jax.conversation import Conversation
from cai_jax.datasets import catalog, files, measure
from cai_jax.decoding import Engine
from cai_jax.decoding.respond import respond
from cai_jax.encoding import prompt_tokens
from cai_jax.finished_models import STAGES, model_of_run
from cai_jax.principles import NOUNS
from cai_jax.weights import fetch as weights
from cai_jax.weights.load import Model, load_model

LONGEST_CHAT = 2048  # tokens of history that a chat keeps, the reply counted


class ToolError(ValueError):
    """A command that cannot be done; the message says why and what to do."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ToolError(f"{self.prog}: {message}; `{self.prog} --help` lists what it takes.")


def chat(arguments: list[str]) -> None:
    """Talks to a model, or to what a run made of it: a line in, a reply out, until /quit.

    Works in a pipe too: only replies go to stdout, everything else to stderr.

    Raises:
      ToolError: neither or both of --model and --workdir, or an option without meaning.
      ValueError: the model or the run cannot be loaded.
    """
    parser = tool_parser("chat", "Talk to a model. /reset forgets the conversation, /quit ends it.")
    _source_options(parser)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not 0 <= options.temperature < float("inf"):
        raise ToolError(f"--temperature is {options.temperature}; it must be 0 or more.")
    if options.max_new_tokens < 1:
        raise ToolError(f"--max_new_tokens is {options.max_new_tokens}; it must be at least 1.")
    model = _model(options)
    length = min(model.config.context, LONGEST_CHAT)
    if options.max_new_tokens >= length:
        raise ToolError(
            f"--max_new_tokens is {options.max_new_tokens}; it must be below {length}, which is "
            "what a chat with this model holds."
        )
    say(f"{model.name}: type a message; /reset forgets the conversation, /quit ends it.")
    engine, talk = Engine(model, 1, length), Conversation()
    for number, line in enumerate(_lines()):
        if line == "/quit":
            break
        if line == "/reset":
            talk = Conversation()
            say("(the conversation is forgotten)")
            continue
        asked = talk.human(line)
        kept, cut = cut_from_front(model, asked, length - options.max_new_tokens)
        if kept is None:
            say(f"(this message alone is too long for {length} tokens; it was left out)")
            continue
        if cut:
            say(f"(the conversation is too long: its first {cut} turns are forgotten)")
        ((reply,),) = respond(
            engine,
            model.format,
            [(str(number), kept)],
            stream="chat",
            seed=options.seed,
            samples=1,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
        )
        print(reply.text, flush=True)
        if reply.stop_reason == "length":
            say(f"(cut off after {options.max_new_tokens} tokens)")
        talk = kept.assistant(reply.text)


def cut_from_front(model: Model, talk: Conversation, limit: int) -> tuple[Conversation | None, int]:
    """The newest turns of `talk` that fit into `limit` tokens, beginning with a human turn.

    Returns:
      (conversation, number of turns left out); (None, 0) if the last turn alone is too long.
    """
    for first in range(0, len(talk.turns), 2):
        kept = Conversation(talk.turns[first:])
        # Stop strings may bring a few tokens back; the engine keeps room for 8.
        if len(prompt_tokens(model.tokenizer, model.format, kept)) + 8 <= limit:
            return kept, first
    return None, 0


def _lines() -> Iterator[str]:
    """Lines that a person types or a pipe brings, empty ones left out."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


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


def _source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="a name, a .gguf or a directory")
    parser.add_argument("--workdir", metavar="DIR", help="of a run")
    _stage_option(parser)


def _stage_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", choices=STAGES, help="of --workdir; the last finished one")


def _model(options: argparse.Namespace) -> Model:
    if (options.model is None) == (options.workdir is None):
        raise ToolError("give either --model=NAME_OR_PATH or --workdir=DIR of a run.")
    if options.model is not None:
        if options.stage:
            raise ToolError("--stage belongs to --workdir; leave it out, or give --workdir=DIR.")
        return load_model(options.model, report=say)
    return model_of_run(storage.path(options.workdir), options.stage, say)[0]


def say(line: str) -> None:
    """Reports on standard error, which leaves standard output to results."""
    print(line, file=sys.stderr, flush=True)
