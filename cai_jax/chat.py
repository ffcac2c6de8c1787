"""`cai-jax chat`: talk to a model or to two side by side; have an answer criticised and revised.

Works in a pipe too: only what models write goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cai_jax import constitution as constitutions
from cai_jax import prompts, storage
from cai_jax.chat_screen import Pipe, Screen, Terminal
from cai_jax.conversation import Conversation
from cai_jax.decoding import Engine
from cai_jax.decoding.respond import respond
from cai_jax.decoding.schedule import ScriptError
from cai_jax.encoding import prompt_tokens
from cai_jax.finished_models import STAGES, model_of_run, start_of_run
from cai_jax.principles import Constitution, ConstitutionError, CritiquePrinciple, draw
from cai_jax.script import Force, Sample, Script
from cai_jax.tools import ToolError, say, tool_parser
from cai_jax.weights.load import Model, load_model
from cai_jax.workdir import rl_stage

LONGEST_CHAT = 2048  # tokens of history that a chat keeps, the reply counted
INITIAL, RL = "initial", "rl"  # besides STAGES: what the run began with, and its own RL stage
COMMANDS = """/critique [PRINCIPLE]  criticise the last answer by a principle, or by a drawn one
/revise [PRINCIPLE]    rewrite it after that critique, or else a fresh one; show what changed, and
                       go on from there
/reset                 forget the conversation
/quit                  end"""


@dataclasses.dataclass
class Speaker:
    """One model of a chat.

    Attributes:
      title: what it is called on the screen.
      talk: what was said so far, its own replies in it.
      critique: (principle, text as it was sampled) of its last reply, where there is one.
    """

    title: str
    model: Model
    engine: Engine
    talk: Conversation = dataclasses.field(default_factory=Conversation)
    critique: tuple[CritiquePrinciple, str] | None = None


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Of every reply. Attributes: length, tokens of history and reply together."""

    seed: int
    temperature: float
    max_new_tokens: int
    length: int


def chat(arguments: list[str]) -> None:
    """A line in, a reply out, until /quit.

    Raises:
      ToolError: neither or both of --model and --workdir, or an option without meaning.
      ValueError: a model, run or constitution cannot be loaded.
    """
    options = _parser().parse_args(arguments)
    if not 0 <= options.temperature < float("inf"):
        raise ToolError(f"--temperature is {options.temperature}; it must be 0 or more.")
    if options.max_new_tokens < 1:
        raise ToolError(f"--max_new_tokens is {options.max_new_tokens}; it must be at least 1.")
    models = _models(options)
    length = min(LONGEST_CHAT, *(model.config.context for _, model in models))
    if options.max_new_tokens >= length:
        raise ToolError(
            f"--max_new_tokens is {options.max_new_tokens}; it must be below {length}, which is "
            "what a chat with this model holds."
        )
    sampling = Sampling(options.seed, options.temperature, options.max_new_tokens, length)
    speakers = [Speaker(title, model, Engine(model, 1, length)) for title, model in models]
    screen = Terminal() if sys.stdout.isatty() else Pipe()
    steps = _steps(options)
    names = " beside ".join(speaker.model.name for speaker in speakers)
    say(
        f"{names}: type a message; /reset forgets the conversation, /help says more, /quit ends it."
    )
    for number, line in enumerate(_lines()):
        command, _, rest = line.partition(" ")
        if line == "/quit":
            break
        if line == "/help":
            say(COMMANDS)
        elif line == "/reset":
            for speaker in speakers:
                speaker.talk, speaker.critique = Conversation(), None
            say("(the conversation is forgotten)")
        elif command in ("/critique", "/revise"):
            try:
                for speaker in speakers:
                    _take_step(command, rest.strip(), speaker, *steps(), number, sampling, screen)
            except (ToolError, ConstitutionError, ScriptError) as error:
                say(f"({error})")
        else:
            _answer(speakers, line, number, sampling, screen)


def _answer(
    speakers: Sequence[Speaker], line: str, number: int, sampling: Sampling, screen: Screen
) -> None:
    """Every speaker's reply to a message; all of them with the same random numbers."""
    with screen.replies([speaker.title for speaker in speakers]) as show:
        for place, speaker in enumerate(speakers):
            limit = sampling.length - sampling.max_new_tokens
            kept, cut = cut_from_front(speaker.model, speaker.talk.human(line), limit)
            if kept is None:
                most = sampling.length
                say(f"(this message alone is too long for {most} tokens; it was left out)")
                return
            if cut:
                say(f"(the conversation is too long: its first {cut} turns are forgotten)")
            ((reply,),) = respond(
                speaker.engine,
                speaker.model.format,
                [(str(number), kept)],
                stream="chat",
                seed=sampling.seed,
                samples=1,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                on_text=_underway(show, place),
            )
            show(place, reply.text, True)
            speaker.talk, speaker.critique = kept.assistant(reply.text), None
            if reply.stop_reason == "length":
                say(f"(cut off after {sampling.max_new_tokens} tokens)")


def _underway(show: Callable[[int, str, bool], None], place: int) -> Callable[[str, str], None]:
    return lambda _, text: show(place, text.lstrip(), False)


def _take_step(
    command: str,
    principle: str,
    speaker: Speaker,
    constitution: Constitution,
    few_shots: int,
    number: int,
    sampling: Sampling,
    screen: Screen,
) -> None:
    """A critique or a revision of a speaker's last answer, by the prompts of the `revise` stage.

    Raises:
      ToolError: there is no answer, or no such principle.
      ScriptError: it does not fit the context.
    """
    if not speaker.talk.turns:
        raise ToolError("there is no answer yet; type a message first")
    *before, last = speaker.talk.turns
    form, asked = speaker.model.format, Conversation(tuple(before))
    examples = constitution.critique_examples[:few_shots]
    stops = prompts.step_stops(form)
    sample = Sample(sampling.max_new_tokens, stops, sampling.temperature)
    title = f"{speaker.title}, " if speaker.title else ""
    if command == "/critique" or speaker.critique is None:
        named = _principle(constitution, principle, sampling.seed, number)
        say(f"({title}principle {named.id}: {' '.join(named.critique_request.split())})")
        forced = prompts.critique(form, examples, asked, last.text, named)
        text = _sampled(
            speaker, (*forced, sample), f"critique {number}", sampling, screen, f"{title}critique"
        )
        speaker.critique = named, text
    if command == "/critique":
        return
    named, text = speaker.critique
    forced = prompts.critique(form, examples, asked, last.text, named)
    segments = (*forced, Force(text), *prompts.revision(form, named), sample)
    revised = _sampled(
        speaker, segments, f"revision {number}", sampling, screen, f"{title}revision"
    ).strip()
    if revised == last.text:
        say("(nothing changed)")
    else:
        screen.difference(last.text, revised)
    speaker.talk, speaker.critique = asked.assistant(revised), None


def _sampled(
    speaker: Speaker, segments: tuple, name: str, sampling: Sampling, screen: Screen, title: str
) -> str:
    """What the last segment says, shown as it is written."""
    with screen.replies([title]) as show:
        script = Script(segments, f"chat/{name}")
        (done,) = speaker.engine.run([script], sampling.seed, on_text=_underway(show, 0))
        show(0, done.segments[-1].text.strip(), True)
    return done.segments[-1].text


def _principle(constitution: Constitution, name: str, seed: int, number: int) -> CritiquePrinciple:
    if not name:
        return draw(constitution.critique, seed, "chat", number)
    for principle in constitution.critique:
        if principle.id == name:
            return principle
    known = ", ".join(p.id for p in constitution.critique)
    raise ToolError(f"there is no principle '{name}'; known are {known}")


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


def _parser() -> argparse.ArgumentParser:
    parser = tool_parser("chat", f"Talk to a model.\n\n{COMMANDS}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    stages = (INITIAL, *reversed(STAGES), RL)
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="a name, a .gguf or a directory")
    parser.add_argument("--workdir", metavar="DIR", help="of a run")
    parser.add_argument("--stage", choices=stages, help="of --workdir; the last finished one")
    parser.add_argument("--versus", choices=stages, help="a stage whose answers stand beside")
    parser.add_argument("--constitution", metavar="FILE.yaml", help="for /critique; the run's own")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _models(options: argparse.Namespace) -> list[tuple[str, Model]]:
    """(title, model) of one speaker, without a title, or of two."""
    if (options.model is None) == (options.workdir is None):
        raise ToolError("give either --model=NAME_OR_PATH or --workdir=DIR of a run.")
    if options.model is not None:
        for name in ("stage", "versus"):
            if getattr(options, name):
                raise ToolError(
                    f"--{name} belongs to --workdir; leave it out, or give --workdir=DIR."
                )
        return [("", load_model(options.model, report=say))]
    workdir = storage.path(options.workdir)
    if options.versus is None:
        return [("", _of_run(workdir, options.stage))]
    if options.stage is None or options.stage == options.versus:
        raise ToolError("--versus needs a --stage, and another one.")
    return [(stage, _of_run(workdir, stage)) for stage in (options.stage, options.versus)]


def _of_run(workdir: Path, stage: str | None) -> Model:
    if stage == INITIAL:
        return start_of_run(workdir, say)
    if stage == RL and (workdir / "config.json").is_file():
        stage = rl_stage(workdir)
    return model_of_run(workdir, stage, say)[0]


def _steps(options: argparse.Namespace) -> Callable[[], tuple[Constitution, int]]:
    """What gives the constitution and how many few-shots stand before a critique.

    The run's constitution is read when it is asked for, so that a chat needs none.
    """
    settings = {}
    if options.workdir is not None:
        config = storage.path(options.workdir) / "config.json"
        settings = json.loads(config.read_text("utf-8"))
    few_shots = settings.get("revise", {}).get("few_shots", 0)
    if options.constitution is not None:
        loaded = constitutions.load(options.constitution)
        return lambda: (loaded, few_shots)

    def of_run() -> tuple[Constitution, int]:
        if "constitution" not in settings:
            raise ToolError("start chat with --constitution=FILE.yaml, whose principles are asked")
        return constitutions.load(settings["constitution"]), few_shots

    return of_run
