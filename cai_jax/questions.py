"""The feedback model's questions as Scripts, one for each thing asked about a pair.

Choices between (A) and (B) are the paper's (prompts.py). The words of a rating, of a constitution
asked at once and of contrastive prompts are ours: the papers that they follow print none that fits
a principle of a constitution.
"""

from __future__ import annotations

import dataclasses
import hashlib

from cai_jax import paper_prompts, prompts
from cai_jax.conversation import Conversation, PaperFormat, Turn, render
from cai_jax.labels import RATINGS, TOGETHER
from cai_jax.principles import ComparisonPrinciple, Constitution
from cai_jax.prompts import CHOICES, Forces, Format
from cai_jax.records import Asked
from cai_jax.script import Choose, Force, Sample, Script

# "7/10" and not "7": no option is the beginning of another one, which would take its probability.
RATED = tuple(f" {rating}/10" for rating in RATINGS)
MY_RATING = "My rating is:"


@dataclasses.dataclass(frozen=True)
class Pair:
    """What is labelled: two responses to a prompt."""

    id: str
    prompt: Conversation
    response_a: str
    response_b: str

    @classmethod
    def drawn(cls, id: str, prompt: Conversation, better: str, worse: str) -> Pair:
        """Of responses of which one is known to be better; which is A, the id decides."""
        texts = better, worse
        if hashlib.sha256(id.encode()).digest()[0] % 2:
            texts = texts[::-1]
        return cls(id, prompt, *texts)


@dataclasses.dataclass(frozen=True)
class Questions:
    """What all questions of a run have in common.

    Attributes:
      mode: one of `labels.MODES`.
      form: how the feedback model reads.
      few_shots: how many of the constitution's examples stand before a choice; ratings and
        contrastive prompts have none, as the examples are of choices.
      chain_tokens, chain_temperature: of a chain of thought.
      seed: of the few-shots' principles and order.
    """

    mode: str
    form: Format
    constitution: Constitution
    few_shots: int
    chain_tokens: int
    chain_temperature: float
    seed: int

    def script(self, pair: Pair, asked: Asked, drawn: str) -> Script:
        """The Script that asks one question; its last segment is a Choose.

        Args:
          drawn: id of the principle drawn for the pair. What is asked under it has the same name,
            and so the same chain of thought, whether or not the others are asked too.
        """
        principle = self._principle(asked.principle)
        name = f"compare/{self.mode}/{pair.id}/{asked.shown}"
        name += f"/{asked.principle}" if asked.principle != drawn else ""
        name += f"/chain {asked.chain}" if asked.chain else ""
        if self.mode == "rating":
            response = pair.response_a if asked.shown == "A" else pair.response_b
            return Script((*rating(self.form, principle, pair.prompt, response),
                           Choose(RATED)), name)  # fmt: skip
        if self.mode == "contrastive":
            best = asked.shown == "best"
            options = tuple(text for text in replies(self.form, pair) if text)
            return Script((*contrast(self.form, principle, pair.prompt, best),
                           Choose(options)), name)  # fmt: skip
        responses = pair.response_a, pair.response_b
        if asked.shown == "BA":
            responses = responses[::-1]
        shown = (self.constitution, self.few_shots, self.seed, pair.prompt, principle, *responses)
        if self.mode == "multiple_choice":
            return Script((*prompts.comparison(self.form, *shown), Choose(CHOICES)), name)
        stops = prompts.reasoning_stops(self.form)
        return Script(
            (
                *prompts.reasoned_comparison(self.form, *shown),
                Sample(self.chain_tokens, stops, self.chain_temperature),
                *prompts.after_reasoning(self.form),
                Choose(CHOICES),
            ),
            name,
        )

    def _principle(self, name: str) -> ComparisonPrinciple:
        if name == TOGETHER:
            return together(self.constitution)
        return next(p for p in self.constitution.comparison if p.id == name)


def together(constitution: Constitution) -> ComparisonPrinciple:
    """The whole constitution as one principle."""
    lines = "".join(f"\n- {p.instruction}" for p in constitution.comparison)
    return ComparisonPrinciple(
        TOGETHER, f"Judge by all of the following together:{lines}\nWhich response is better?"
    )


def rating(
    form: Format, principle: ComparisonPrinciple, conversation: Conversation, response: str
) -> Forces:
    """Everything up to where one response is rated, as one of RATED (2309.00267, section 3.2)."""
    question = (
        f"Consider the following conversation between a human and an assistant:"
        f"{render(conversation).removesuffix(paper_prompts.ASSISTANT)}\n\n"
        f"The assistant responds: [[[{response}]]]\n\n"
        f"Responses are judged by this: {principle.instruction}\n\n"
        "Rate the response by that alone, from 1/10 (the worst) to 10/10 (the best)."
    )
    if isinstance(form, PaperFormat):
        return (Force(f"\n\n{question}\n\n{MY_RATING}"),)
    return (*form.prompt(Conversation().human(question)), Force(MY_RATING))


def contrast(
    form: Format, principle: ComparisonPrinciple, conversation: Conversation, best: bool
) -> Forces:
    """Everything up to a response, under a prompt that keeps to a principle or breaks it.

    The two prompts differ in one word (2307.12950, section 3), so that all else in a response's
    likelihood cancels. A plain-text model has no system turn and reads the words before the
    conversation.
    """
    words = (
        f"An assistant's responses are judged by this: {principle.instruction} "
        f"The assistant always gives the {'best' if best else 'worst'} response by that."
    )
    if isinstance(form, PaperFormat):
        return (Force(f"\n\n{words}"), *form.prompt(conversation))
    turns = conversation.turns
    if turns[0].role == "system":
        words, turns = f"{words}\n\n{turns[0].text}", turns[1:]
    return form.prompt(Conversation((Turn("system", words), *turns)))


def replies(form: Format, pair: Pair) -> tuple[str, str]:
    """Both responses as the feedback model would have written them."""
    return form.reply(pair.response_a).text, form.reply(pair.response_b).text
