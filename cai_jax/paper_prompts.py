"""The paper's plain-text prompts, byte for byte.

The published files are the authority where the paper's body prints something else (it writes
"Critique Request:" with a space, and "Options:" on a line of its own without brackets).
"""

from cai_jax.principles import CritiqueExample, ReasonedExample

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
CRITIQUE_REQUEST = "\n\nCritiqueRequest:"
REVISION_REQUEST = "\n\nRevisionRequest:"

# Appended to a reasoned comparison. It is in the published few-shots, not in the paper's appendix.
ANSWER_PROBE = "\n\nHuman:\nSo the answer is:"
CHOICES = (" (A)", " (B)")

_COMPARISON_HEADER = "\n\nConsider the following conversation between a human and an assistant:"
_REASONED_HEADER = (
    "\n\nHuman: Consider the following conversation between a human (H) and an assistant (A):"
)
_STEP_BY_STEP = "\n\nAssistant: Let's think step by step:"


def is_conversation(prompt: str) -> bool:
    """Whether a prompt field holds a whole conversation in plain text, not one human turn."""
    return prompt.startswith(HUMAN)


def conversation_text(prompt: str) -> str:
    """The conversation up to where the assistant writes, from a prompt field of either form."""
    return prompt if is_conversation(prompt) else f"{HUMAN} {prompt}{ASSISTANT}"


def critique_request(request: str) -> str:
    """What follows a response and asks for its critique (CritiqueRevisionInstructions.json)."""
    return f"{CRITIQUE_REQUEST} {request}\n\nCritique:"


def revision_request(request: str) -> str:
    """What follows a critique and asks for the revision (CritiqueRevisionInstructions.json)."""
    return f"{REVISION_REQUEST} {request}\n\nRevision:"


def comparison_instruction(instruction: str) -> str:
    """An instruction as RLMadisonInstructions.json spells it: on a new line, with "Options:"."""
    return f"\n{instruction} Options:"


def render_critique_example(example: CritiqueExample) -> str:
    """One critique and revision few-shot, from "\\n\\nHuman:" to the end of the revision.

    Few-shots are joined without a separator, and the live conversation follows in the same way:
    each begins with the "\\n\\nHuman:" that four of the five published strings end with.
    """
    return (
        f"{conversation_text(example.prompt)} {example.response}"
        f"{critique_request(example.critique_request)} {example.critique}"
        f"{revision_request(example.revision_request)} {example.revision}"
    )


def render_direct_example(example: CritiqueExample) -> str:
    """The same few-shot with its critique and the request for it left out."""
    return (
        f"{conversation_text(example.prompt)} {example.response}"
        f"{revision_request(example.revision_request)} {example.revision}"
    )


def render_comparison(
    conversation_text: str, instruction: str, response_a: str, response_b: str
) -> str:
    """The multiple-choice question without chain of thought, through "The answer is:".

    `conversation_text` is in the plain format and may end with the open "\\n\\nAssistant:", which
    this prompt leaves out. The answers to compare are CHOICES.
    """
    return (
        f"{_COMPARISON_HEADER}{conversation_text.removesuffix(ASSISTANT)}\n\n"
        f"{comparison_instruction(instruction)}{_options(response_a, response_b)}"
        "\n\nThe answer is:"
    )


def render_reasoned_comparison(
    conversation_text: str, instruction: str, response_a: str, response_b: str
) -> str:
    """The question with chain of thought, through "step by step:", where the model goes on.

    The sampled reasoning is followed by ANSWER_PROBE, and then CHOICES are compared.
    """
    turns = conversation_text.removesuffix(ASSISTANT)
    turns = turns.replace(HUMAN, "\n\nH:").replace(ASSISTANT, "\n\nA:")
    # The few-shots hold "{}" after a blank line; the published instruction put in its place brings
    # one more line break, as it does in the published comparisons without chain of thought.
    return (
        f"{_REASONED_HEADER}{turns}\n\n{comparison_instruction(instruction)}"
        f"{_options(response_a, response_b)}{_STEP_BY_STEP}"
    )


def render_reasoned_example(example: ReasonedExample, instruction: str) -> str:
    """One chain-of-thought few-shot with its answer, under the given principle's instruction."""
    question = render_reasoned_comparison(
        conversation_text(example.prompt), instruction, example.response_a, example.response_b
    )
    # One published chain starts on a new line; its text keeps that line break.
    space = "" if example.reasoning[:1].isspace() else " "
    return f"{question}{space}{example.reasoning}{ANSWER_PROBE} ({example.answer})"


def _options(response_a: str, response_b: str) -> str:
    return f"\n (A) [[[{response_a}]]]\n (B) [[[{response_b}]]]"
