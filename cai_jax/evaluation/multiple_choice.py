"""Published multiple-choice questions put to a model or a preference model (Figures 4, 11, 12).

A comparison (`HHHQuestion`, two responses to a conversation) is asked as the feedback model is
asked (arXiv 2212.08073, section 4.1): without few-shots its prompt is the published string byte for
byte. A question about a whole conversation is asked as published too; the paper does not print
the few-shots that its Figure 12 had, so ours are questions of the same file, which are not scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cai_jax import prompts
from cai_jax.conversation import Conversation, PaperFormat, Turn
from cai_jax.datasets.cai_paper import HHHQuestion, Question
from cai_jax.decoding.engine import Engine
from cai_jax.paper_prompts import ASSISTANT, HUMAN
from cai_jax.principles import ComparisonPrinciple, Constitution, draw
from cai_jax.prompts import ANSWER, STEP_BY_STEP, Format
from cai_jax.records import Provenance, Record
from cai_jax.script import Choose, Force, Sample, Script
from cai_jax.shards import Shards

ASKED = ("zero_shot", "few_shot", "chain_of_thought")
PREFERENCE_MODEL = "preference_model"  # scores both responses instead of being asked


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    few_shots: worked examples before the question, in the modes that have any.
    chains: chains of thought of each question; their probabilities are averaged.
    chain_tokens: limit of a chain of thought.
    chain_temperature: of a chain of thought.
    shard_size: questions that are done, or after a kill done again, together.
    """

    few_shots: int
    chains: int
    chain_tokens: int
    chain_temperature: float
    shard_size: int


@dataclasses.dataclass(frozen=True)
class Choice(Record):
    """What one system said to one question.

    Attributes:
      evaluation: "hhh", "harmful_vs_ethical", "harm_classes", or the name of a file of questions.
      id: the question's.
      mode: one of ASKED, or "preference_model".
      correct: index of the right option.
      option_logprobs: for each chain of thought (one where there are none) the log-probability in
        nats of each option; with a preference model, the score of each option's text.
      reasoning: the chains of thought.
      system: name of what was asked.
    """

    evaluation: str
    id: str
    mode: str
    correct: int
    option_logprobs: tuple[tuple[float, ...], ...]
    reasoning: tuple[str, ...]
    system: str
    provenance: Provenance

    def chain_probs(self) -> np.ndarray:
        """Probability of each option under each chain, float64[chains, options], rows sum to 1."""
        logits = np.asarray(self.option_logprobs, float)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)

    def probs(self) -> np.ndarray:
        """Probability of each option, float64[options], averaged over the chains."""
        return self.chain_probs().mean(0)


def ask(
    settings: Settings,
    mode: str,
    engine: Engine,
    form: Format,
    constitution: Constitution,
    questions: Sequence[Question],
    directory: Path,
    seed: int,
    system: str,
    provenance: Provenance,
    progress: Callable[[float, int], None],
) -> list[Choice]:
    """Asks a model all questions that the mode's few-shots do not give away, shard by shard.

    A question that does not fit the engine is left out, so there can be fewer records than
    questions. With chains of thought, one of several chains that does not fit leaves out all.

    Raises:
      ValueError: not one question fits the engine.
    """
    shots, asked = parted(settings, mode, constitution, questions, seed)
    parts = _parts(asked, settings.shard_size)
    shards = Shards(directory, len(parts))
    done = shards.done()
    for number, part in enumerate(parts):
        if number not in done:
            before, n = number * settings.shard_size, len(part)

            def so_far(done: int, total: int, before=before, n=n) -> None:
                progress(before + n * done / total, len(asked))

            chains = settings.chains if mode == "chain_of_thought" else 1
            scripts = [
                _script(settings, mode, form, constitution, shots, question, chain, seed)
                for question in part
                for chain in range(chains)
            ]
            answers = iter(engine.run(scripts, seed, so_far, refused=lambda error: None))
            found = []
            for question in part:
                transcripts = [next(answers) for _ in range(chains)]
                if all(transcripts):
                    sampled = [s for t in transcripts for s in t.segments if s.stop_reason]
                    found.append(
                        Choice(
                            evaluation=question.id.rpartition("-")[0],
                            id=question.id,
                            mode=mode,
                            correct=question.correct,
                            option_logprobs=tuple(
                                t.segments[-1].option_logprobs for t in transcripts
                            ),
                            reasoning=tuple(s.text.strip() for s in sampled),
                            system=system,
                            provenance=provenance,
                        )
                    )
            shards.write(number, found)
        progress(min((number + 1) * settings.shard_size, len(asked)), len(asked))
    records = shards.read(Choice)
    if not records:
        raise ValueError(
            f"not one of {len(asked)} questions fits the engine or the model's context "
            f"({mode.replace('_', ' ')}); raise engine.max_length or lower few_shots."
        )
    return records


def score(
    questions: Sequence[HHHQuestion],
    scores: Callable[[list[tuple[Conversation, str]]], np.ndarray],
    directory: Path,
    system: str,
    provenance: Provenance,
) -> list[Choice]:
    """A preference model's scores of both responses to each comparison, as one shard of records.

    Args:
      scores: of (conversation, response) pairs, float[N].
    """
    shards = Shards(directory, 1)
    if 0 not in shards.done():
        texts = [(q.conversation, option) for q in questions for option in q.options]
        pairs = np.asarray(scores(texts), float).reshape(len(questions), 2)
        found = [
            Choice(
                evaluation=question.id.rpartition("-")[0],
                id=question.id,
                mode=PREFERENCE_MODEL,
                correct=question.correct,
                option_logprobs=(tuple(pair),),
                reasoning=(),
                system=system,
                provenance=provenance,
            )
            for question, pair in zip(questions, pairs.tolist(), strict=True)
        ]
        shards.write(0, found)
    return shards.read(Choice)


def parted(
    settings: Settings,
    mode: str,
    constitution: Constitution,
    questions: Sequence[Question],
    seed: int,
) -> tuple[list[Question], list[Question]]:
    """(questions shown with their answers, questions to ask).

    Comparisons are preceded by the constitution's worked examples, and those among the questions
    are not asked, whatever the number shown: the paper's six chains of thought are six of its 438
    comparisons. Of other questions, `few_shot` shows drawn ones, right options in turn.

    Raises:
      ValueError: as many questions would be shown as there are.
    """
    if questions and isinstance(questions[0], HHHQuestion):
        given_away = {
            "zero_shot": [],
            "few_shot": [{e.chosen, e.rejected} for e in constitution.comparison_examples],
            "chain_of_thought": [
                {e.response_a, e.response_b} for e in constitution.reasoned_examples
            ],
        }[mode]
        known = [{text.strip() for text in pair} for pair in given_away]
        return [], [q for q in questions if {text.strip() for text in q.options} not in known]
    if mode != "few_shot":
        return [], list(questions)
    if settings.few_shots >= len(questions):
        raise ValueError(
            f"choices.few_shots is {settings.few_shots}, and there are {len(questions)} questions "
            "to show and to ask; lower it or raise config.limit."
        )
    shown: list[Question] = []
    for n in range(settings.few_shots):
        left = [q for q in questions if q not in shown]
        rights = sorted({q.correct for q in left})
        right = rights[(draw((0, 1), seed, "few-shot answer") + n) % len(rights)]
        shown.append(draw([q for q in left if q.correct == right], seed, "few-shot question", n))
    return shown, [q for q in questions if q not in shown]


def _script(
    settings: Settings,
    mode: str,
    form: Format,
    constitution: Constitution,
    shots: Sequence[Question],
    question: Question,
    chain: int,
    seed: int,
) -> Script:
    name = f"{question.id}/{mode}/{chain}"
    chosen = Choose(question.choices)
    if mode == "chain_of_thought":
        sample = Sample(
            settings.chain_tokens, prompts.reasoning_stops(form), settings.chain_temperature
        )
        probe = prompts.after_reasoning(form)
        asked = _reasoned(settings, form, constitution, question, seed)
        return Script((*asked, sample, *probe, chosen), name)
    few_shots = settings.few_shots if mode == "few_shot" else 0
    if isinstance(question, HHHQuestion):
        shown = (constitution, few_shots, seed, question.conversation, _principle(question))
        return Script((*prompts.comparison(form, *shown, *question.options), chosen), name)
    if isinstance(form, PaperFormat):
        before = "".join(f"{q.prompt}{q.choices[q.correct]}\n\n" for q in shots)
        forces = [Force(text) for text in (before, question.prompt) if text]
        return Script((*forces, chosen), name)
    turns = [
        turn
        for q in shots
        for turn in (Turn("human", _body(q)), Turn("assistant", ANSWER + q.choices[q.correct]))
    ]
    live = Conversation((*turns, Turn("human", _body(question))))
    return Script((*form.prompt(live), Force(ANSWER), chosen), name)


def _reasoned(
    settings: Settings, form: Format, constitution: Constitution, question: Question, seed: int
) -> tuple[Force, ...]:
    """Everything up to where the chain of thought is written."""
    if isinstance(question, HHHQuestion):
        shown = (constitution, settings.few_shots, seed, question.conversation)
        return prompts.reasoned_comparison(form, *shown, _principle(question), *question.options)
    if isinstance(form, PaperFormat):
        return (Force(f"{HUMAN} {_body(question)}{ASSISTANT} {STEP_BY_STEP}"),)
    return (*form.prompt(Conversation().human(_body(question))), Force(STEP_BY_STEP))


def _principle(question: HHHQuestion) -> ComparisonPrinciple:
    return ComparisonPrinciple(question.id, question.instruction)


def _body(question: Question) -> str:
    """The question without the words that open its answer."""
    return question.prompt.removesuffix(ANSWER).strip()


def _parts(questions: Sequence[Question], size: int) -> list[list[Question]]:
    return [list(questions[i : i + size]) for i in range(0, len(questions), size)]
