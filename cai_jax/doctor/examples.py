"""A prompt taken through every stage, and what came of it in tokens.

The stages' own code does it, through an engine that remembers what it was asked; so what is shown
is what a run does.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cai_jax.batch import Rollout
from cai_jax.datasets.prompts import LabelPair, PromptRow
from cai_jax.decoding import Engine
from cai_jax.decoding.respond import Reply, respond
from cai_jax.decoding.schedule import compile_script
from cai_jax.principles import Constitution
from cai_jax.questions import Pair
from cai_jax.records import Comparison, Provenance, Response, Revision
from cai_jax.script import Sample, Script, Transcript
from cai_jax.settings import RunSettings
from cai_jax.stages import ai_feedback, critique_revision, dpo, preference_model, supervised
from cai_jax.tokenizer import Tokenizer
from cai_jax.training.rollout import Models, make_rollout
from cai_jax.weights.load import Model

WIDTH = 100
READS, WRITES, CHOICE, LEARNS, SCORED = "reads", "writes", "choice", "learns", "scored"


@dataclasses.dataclass(frozen=True)
class Example:
    """One example in tokens.

    Attributes:
      stage: the stage's verb.
      title: what the example is.
      model: whose tokens they are.
      tokens: ids.
      marks: for each token READS (context), WRITES (sampled), CHOICE (of an option), LEARNS (a
        target of the loss) or SCORED (where the preference model's score is read).
    """

    stage: str
    title: str
    model: Model
    tokens: tuple[int, ...]
    marks: tuple[str, ...]

    def part(self, *marks: str) -> tuple[int, ...]:
        """The tokens with one of these marks."""
        return tuple(t for t, m in zip(self.tokens, self.marks, strict=True) if m in marks)


class RememberingEngine(Engine):
    """An engine that keeps every Script it ran, with its Transcript."""

    def __init__(self, model: Model, slots: int, max_length: int):
        super().__init__(model, slots, max_length)
        self.ran: list[tuple[Script, Transcript]] = []

    def run(self, scripts, seed=0, progress=None):
        transcripts = super().run(scripts, seed, progress)
        self.ran += zip(scripts, transcripts, strict=True)
        return transcripts


def revise(
    settings: RunSettings, model: Model, constitution: Constitution, rows: list[PromptRow]
) -> tuple[list[Example], list[Revision]]:
    """The first prompt's response, its critique and revision, and the records of all prompts.

    Args:
      rows: two where there are two, as engine.max_length leaves out what Scripts share.
    """
    engine = RememberingEngine(model, 2, settings.engine.max_length)
    once = dataclasses.replace(settings.revise, rounds=1, shard_size=len(rows))
    with tempfile.TemporaryDirectory() as folder:
        records = critique_revision.revise(
            once, engine, model.format, constitution, rows, Path(folder), settings.seed,
            _provenance(settings), lambda *_: None,
        )  # fmt: skip
    critiqued = settings.revise.critique
    titles = ("a response", "a critique and a revision" if critiqued else "a direct revision")
    return [
        Example("revise", title, model, *_of_run(*ran, model.tokenizer))
        for title, ran in zip(titles, engine.ran[:: len(rows)], strict=True)
    ], records


def finetune(
    settings: RunSettings, model: Model, row: PromptRow, revisions: list[Revision], pair: LabelPair
) -> Example:
    """The prompt's revision as a training example, or a given text where the model cut it off.

    One that was cut off has no end of turn to look at.
    """
    given = Response(
        id=row.id, kind=row.kind, prompt=row.conversation, response=pair.better, tokens=(),
        stop_reason="end", sample=0, provenance=_provenance(settings),
    )  # fmt: skip
    tokens, mask = supervised.examples(
        settings.finetune,
        model.tokenizer,
        model.format,
        [r for r in revisions if r.id == row.id and r.steps[0].revision_stop_reason != "length"],
        [given],
    )[0]
    marks = tuple(LEARNS if target else READS for target in mask)
    return Example("finetune", "a revision", model, tuple(tokens), marks)


def compare(
    settings: RunSettings, judge: Model, constitution: Constitution, pairs: Sequence[LabelPair]
) -> Example:
    """What the feedback model reads about the first pair, and the options it chooses between."""
    engine = RememberingEngine(judge, 2, settings.engine.max_length)
    asked = [Pair(p.id, p.prompt, p.better, p.worse) for p in pairs]
    ai_feedback.label_pairs(
        settings.compare, engine, judge.format, constitution, asked, settings.seed
    )
    title = f"a question, {settings.compare.mode.replace('_', ' ')}"
    return Example("compare", title, judge, *_of_run(*engine.ran[0], judge.tokenizer))


def score(settings: RunSettings, judge: Model, pairs: Sequence[LabelPair]) -> Example:
    """The better text of the first pair that fits, as the preference model reads it."""
    found = preference_model.examples(
        settings.preference_model, judge.tokenizer, judge.format, _comparisons(settings, pairs)
    )[0]
    marks = (READS,) * (len(found.a) - 1) + (SCORED,)
    return Example("train-pm", "one of two texts", judge, tuple(found.a), marks)


def prefer(settings: RunSettings, model: Model, pairs: Sequence[LabelPair]) -> Example:
    """The better text of the first pair that fits, as DPO raises it."""
    found = dpo.examples(
        settings.dpo, model.tokenizer, model.format, _comparisons(settings, pairs), ()
    )[0]
    marks = (READS,) * found.prompt_tokens + (LEARNS,) * (len(found.a) - found.prompt_tokens)
    return Example("train-rl", "the better of two texts", model, tuple(found.a), marks)


def _comparisons(settings: RunSettings, pairs: Sequence[LabelPair]) -> list[Comparison]:
    return [
        Comparison(
            id=pair.id, kind="red_team", prompt=pair.prompt, response_a=pair.better,
            response_b=pair.worse, prob_a=1.0, principle="", labeler="", mode="human",
            option_logprobs=(), swapped_prob_a=None, source="human",
            provenance=_provenance(settings),
        )
        for pair in pairs
    ]  # fmt: skip


def rollout(settings: RunSettings, model: Model, row: PromptRow) -> tuple[Rollout, Reply, Example]:
    """A PPO rollout of one response, read by the code that reads rollouts; without a score."""
    s, form = settings.ppo, model.format
    engine = Engine(model, 1, settings.engine.max_length)
    ((reply,),) = respond(
        engine, form, [("doctor", row.conversation)], stream="ppo", seed=settings.seed, samples=1,
        max_new_tokens=s.response_tokens, temperature=s.temperature,
    )  # fmt: skip
    made = make_rollout(
        model.config, Models(model.params, model.params, None), model.tokenizer, form,
        [row.conversation], [reply], np.zeros(1, np.float32), prompt_tokens_limit=s.prompt_tokens,
        response_tokens_limit=s.response_tokens, temperature=s.temperature,
    )  # fmt: skip
    prompt = np.asarray(made.prompt)[np.asarray(made.prompt_mask)].tolist()
    response = np.asarray(made.response)[np.asarray(made.mask)].tolist()
    marks = (READS,) * len(prompt) + (LEARNS,) * len(response)
    example = Example("train-rl", "a rollout", model, (*prompt, *response), marks)
    return made, reply, example


def _of_run(
    script: Script, transcript: Transcript, tokenizer: Tokenizer
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(tokens, marks) of what a model read, wrote and was asked to choose from."""
    program = compile_script(script, tokenizer)
    tokens: list[int] = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    marks = [READS] * len(tokens)
    for segment, result, ids in zip(
        script.segments, transcript.segments, program.tokens, strict=True
    ):
        if result.option_logprobs:
            new, mark = [token for option in ids for token in option], CHOICE
        else:
            new, mark = result.tokens, WRITES if isinstance(segment, Sample) else READS
        tokens += new
        marks += [mark] * len(new)
    return tuple(tokens), tuple(marks)


def _provenance(settings: RunSettings) -> Provenance:
    return Provenance(model="doctor", constitution="", seed=settings.seed, commit="")


def render(example: Example) -> str:
    """An example for a person to read: a block for each run of one mark, "|" between tokens."""
    counts = {mark: example.marks.count(mark) for mark in dict.fromkeys(example.marks)}
    summary = ", ".join(f"{mark} {count}" for mark, count in counts.items())
    lines = [f"{example.stage}: {example.title} ({len(example.tokens)} tokens; {summary})"]
    pairs = zip(example.marks, example.tokens, strict=True)
    for mark, run in itertools.groupby(pairs, key=lambda pair: pair[0]):
        line = f"  {mark:<7}|"
        for _, token in run:
            piece = token_text(example.model.tokenizer, token) + "|"
            if len(line) + len(piece) > WIDTH and len(line) > 10:
                lines.append(line)
                line = " " * 9 + "|"
            line += piece
        lines.append(line)
    return "\n".join(lines)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token on one line: control tokens as [name], line breaks and broken UTF-8 escaped."""
    names = {number: name for name, number in tokenizer.control_tokens.items()}
    if token in names:
        return f"[{names[token]}]"
    if token >= tokenizer.vocab_size:
        return f"[#{token}]"
    text = tokenizer.token_bytes(token).decode("utf-8", errors="backslashreplace")
    return text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
