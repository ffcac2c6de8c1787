"""Answers to prompts: the simplest use of the engine, shared by stages and evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from cai_jax.conversation import Conversation
from cai_jax.decoding.engine import Engine
from cai_jax.prompts import Format
from cai_jax.script import Sample, Script


@dataclasses.dataclass(frozen=True)
class Reply:
    """A sampled answer. Attributes: text, stripped; tokens, the end token included; logprobs;
    stop_reason "end", "stop" or "length"."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: str


def respond(
    engine: Engine,
    form: Format,
    prompts: Sequence[tuple[str, Conversation]],
    *,
    stream: str,
    seed: int,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    on_text: Callable[[str, str], None] | None = None,
) -> list[list[Reply]]:
    """Samples answers.

    Args:
      prompts: (id, conversation that ends with a human turn).
      stream: what the answers are for; two streams share no random numbers.
      samples: answers to each prompt.
      on_text: as in `Engine.run`; ids are STREAM/ID/SAMPLE.

    Returns:
      For each prompt its answers, in order.
    """
    sample = Sample(max_new_tokens, form.stop, temperature, top_p)
    scripts = [
        Script((*form.prompt(conversation), sample), id=f"{stream}/{name}/{n}")
        for name, conversation in prompts
        for n in range(samples)
    ]
    more = {} if on_text is None else {"on_text": on_text}
    replies = [
        Reply(last.text.strip(), last.tokens, last.logprobs, last.stop_reason)
        for last in (t.segments[-1] for t in engine.run(scripts, seed, progress, **more))
    ]
    return [replies[i : i + samples] for i in range(0, len(replies), samples)]
