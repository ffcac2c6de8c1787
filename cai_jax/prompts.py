"""What is asked of a model at each step of the method, in its own format.

A plain-text model (PaperFormat) reads the paper's prompts byte for byte. A chat model reads the
same words as turns of a conversation: a request is a human turn, a critique or a revision an
assistant turn. Few-shots are Forces of their own, so that many Scripts share them as a prefix.
"""

from __future__ import annotations

from cai_jax import paper_prompts
from cai_jax.chat_template import ChatFormat
from cai_jax.conversation import Conversation, PaperFormat, Turn, parse, render
from cai_jax.principles import (
    ComparisonExample,
    ComparisonPrinciple,
    Constitution,
    CritiqueExample,
    CritiquePrinciple,
    ReasonedExample,
    draw,
)
from cai_jax.script import Force

Format = PaperFormat | ChatFormat
Forces = tuple[Force, ...]

CHOICES = paper_prompts.CHOICES
STEP_BY_STEP = "Let's think step by step:"
ANSWER = "The answer is:"
SO_THE_ANSWER = "\n\nSo the answer is:"


def critique(
    form: Format,
    examples: tuple[CritiqueExample, ...],
    conversation: Conversation,
    response: str,
    principle: CritiquePrinciple,
) -> Forces:
    """Everything up to where the critique of `response` is written (section 3.1)."""
    if isinstance(form, PaperFormat):
        few_shots = "".join(map(paper_prompts.render_critique_example, examples))
        live = f"{render(conversation)} {response}"
        live += paper_prompts.critique_request(principle.critique_request)
        return _plain(few_shots, live)
    turns: list[Turn] = []
    for example in examples:
        shown = _conversation(example.prompt).assistant(example.response)
        shown = shown.human(example.critique_request).assistant(example.critique)
        turns += shown.human(example.revision_request).assistant(example.revision).turns
    live = conversation.assistant(response).human(principle.critique_request)
    return form.prompt(_joined(turns, live))


def revision(form: Format, principle: CritiquePrinciple) -> Forces:
    """What follows a sampled critique, up to where the revision is written."""
    if isinstance(form, PaperFormat):
        return (Force(paper_prompts.revision_request(principle.revision_request)),)
    return form.after_reply(Conversation().human(principle.revision_request))


def direct_revision(
    form: Format,
    examples: tuple[CritiqueExample, ...],
    conversation: Conversation,
    response: str,
    principle: CritiquePrinciple,
) -> Forces:
    """Everything up to where `response` is revised without a critique (figure 7).

    The paper does not print its prompt for this. Ours is the critiqued one with each critique and
    its request left out, of the few-shots too, so that the two differ in nothing else.
    """
    if isinstance(form, PaperFormat):
        few_shots = "".join(map(paper_prompts.render_direct_example, examples))
        live = f"{render(conversation)} {response}"
        return _plain(few_shots, live + paper_prompts.revision_request(principle.revision_request))
    turns: list[Turn] = []
    for example in examples:
        shown = _conversation(example.prompt).assistant(example.response)
        turns += shown.human(example.revision_request).assistant(example.revision).turns
    live = conversation.assistant(response).human(principle.revision_request)
    return form.prompt(_joined(turns, live))


def step_stops(form: Format) -> tuple[str, ...]:
    """Strings that end a critique or a revision."""
    if isinstance(form, PaperFormat):
        return (*form.stop, paper_prompts.CRITIQUE_REQUEST, paper_prompts.REVISION_REQUEST)
    return form.stop


def comparison(
    form: Format,
    constitution: Constitution,
    few_shots: int,
    seed: int,
    conversation: Conversation,
    principle: ComparisonPrinciple,
    response_a: str,
    response_b: str,
) -> Forces:
    """Everything up to the choice between CHOICES, without chain of thought (section 4.1).

    Each few-shot has a principle of its own, drawn once a run so that all questions share it.
    """
    examples = constitution.comparison_examples[:few_shots]
    shown: list[tuple[str, str]] = []
    for n, example in enumerate(examples):
        instruction, (a, b), answer = _few_shot(constitution, example, seed, n)
        text = paper_prompts.conversation_text(example.prompt)
        shown.append((paper_prompts.render_comparison(text, instruction, a, b), answer))
    question = paper_prompts.render_comparison(
        render(conversation), principle.instruction, response_a, response_b
    )
    if isinstance(form, PaperFormat):
        return _plain("".join(q + a for q, a in shown), question)
    turns = [
        turn for q, a in shown for turn in (Turn("human", _asked(q)), Turn("assistant", ANSWER + a))
    ]
    return (*form.prompt(_joined(turns, Conversation().human(_asked(question)))), Force(ANSWER))


def reasoned_comparison(
    form: Format,
    constitution: Constitution,
    few_shots: int,
    seed: int,
    conversation: Conversation,
    principle: ComparisonPrinciple,
    response_a: str,
    response_b: str,
) -> Forces:
    """Everything up to where the chain of thought is written (section 4.1)."""
    examples = constitution.reasoned_examples[:few_shots]
    instructions = [
        draw(constitution.comparison, seed, "reasoned few-shot", n).instruction
        for n in range(len(examples))
    ]
    question = paper_prompts.render_reasoned_comparison(
        render(conversation), principle.instruction, response_a, response_b
    )
    if isinstance(form, PaperFormat):
        shown = map(paper_prompts.render_reasoned_example, examples, instructions)
        return _plain("".join(shown), question)
    turns: list[Turn] = []
    for example, instruction in zip(examples, instructions, strict=True):
        asked = paper_prompts.render_reasoned_comparison(
            paper_prompts.conversation_text(example.prompt),
            instruction,
            example.response_a,
            example.response_b,
        )
        said = f"{STEP_BY_STEP} {example.reasoning.strip()}{SO_THE_ANSWER} ({example.answer})"
        turns += [Turn("human", _asked(asked)), Turn("assistant", said)]
    live = form.prompt(_joined(turns, Conversation().human(_asked(question))))
    return (*live, Force(STEP_BY_STEP))


def after_reasoning(form: Format) -> Forces:
    """What follows a sampled chain of thought, up to the choice between CHOICES.

    A chat model closes its own turn with the answer; the paper's probe is a human turn.
    """
    if isinstance(form, PaperFormat):
        return (Force(paper_prompts.ANSWER_PROBE),)
    return (Force(SO_THE_ANSWER),)


def reasoning_stops(form: Format) -> tuple[str, ...]:
    """Strings that end a chain of thought: the model answering by itself, or a new turn."""
    return (*form.stop, SO_THE_ANSWER.strip())


def _few_shot(
    constitution: Constitution, example: ComparisonExample, seed: int, n: int
) -> tuple[str, tuple[str, str], str]:
    """A few-shot's drawn instruction, its responses in their order, and the right choice.

    The right choice alternates from a drawn start: few-shots that all end in one letter teach it.
    """
    instruction = draw(constitution.comparison, seed, "few-shot principle", n).instruction
    chosen_first = (draw((0, 1), seed, "few-shot order") + n) % 2 == 0
    pair = (example.chosen, example.rejected)
    return instruction, pair if chosen_first else pair[::-1], CHOICES[not chosen_first]


def _plain(few_shots: str, live: str) -> Forces:
    return (Force(few_shots), Force(live)) if few_shots else (Force(live),)


def _asked(question: str) -> str:
    """A plain-text question as one human turn of a chat."""
    text = question.removesuffix(ANSWER).strip()
    text = text.removesuffix(paper_prompts.ASSISTANT.strip() + " " + STEP_BY_STEP)
    return text.removeprefix("Human:").strip()


def _conversation(prompt: str) -> Conversation:
    """An example's prompt field, one human turn or a whole plain-text conversation."""
    return parse(prompt) if paper_prompts.is_conversation(prompt) else Conversation().human(prompt)


def _joined(turns: list[Turn], live: Conversation) -> Conversation:
    """Few-shot turns before the live ones; a live system turn stays first."""
    system = [turn for turn in live.turns[:1] if turn.role == "system"]
    return Conversation((*system, *turns, *live.turns[len(system) :]))


__all__ = [
    "CHOICES",
    "Format",
    "ReasonedExample",
    "after_reasoning",
    "comparison",
    "critique",
    "direct_revision",
    "reasoned_comparison",
    "reasoning_stops",
    "revision",
    "step_stops",
]
