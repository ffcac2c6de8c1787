"""What changed: initial, SL-CAI and RL-CAI on the same held-out prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from cai_jax.batch import pad_tokens
from cai_jax.conversation import Conversation
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding.engine import Engine
from cai_jax.decoding.respond import respond
from cai_jax.encoding import example, prompt_tokens
from cai_jax.models.config import ModelConfig
from cai_jax.models.scoring import jit_reply_logprobs
from cai_jax.models.transformer import Params
from cai_jax.prompts import Format
from cai_jax.records import Kind, Provenance, Record
from cai_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    samples: responses to each held-out prompt.
    response_tokens: limit of a response.
    temperature: of the responses.
    top_p: of the responses.
    batch_size: texts scored at a time.
    resamples: bootstrap draws of the intervals.
    """

    samples: int
    response_tokens: int
    temperature: float
    top_p: float
    batch_size: int
    resamples: int


@dataclasses.dataclass(frozen=True)
class Answer(Record):
    """A snapshot's response to a held-out prompt. Attributes: snapshot, "initial", "sl_cai" or
    "rl_cai"; kl, nats from the initial model summed over the response; score, of the PM."""

    snapshot: str
    id: str
    kind: Kind
    prompt: Conversation
    response: str
    tokens: tuple[int, ...]
    stop_reason: str
    sample: int
    kl: float
    provenance: Provenance


def answer(
    settings: Settings,
    snapshot: str,
    engine: Engine,
    form: Format,
    initial: Params,
    rows: Sequence[PromptRow],
    seed: int,
    provenance: Provenance,
    progress: Callable[[int, int], None],
) -> list[Answer]:
    """Samples a snapshot's answers and measures how far each is from the initial model.

    The random numbers do not depend on the snapshot: equal models give equal answers.
    """
    answers = respond(
        engine,
        form,
        [(row.id, row.conversation) for row in rows],
        stream="evaluate",
        seed=seed,
        samples=settings.samples,
        max_new_tokens=settings.response_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        progress=progress,
    )
    texts = [
        (prompt_tokens(engine.tokenizer, form, row.conversation), reply.tokens)
        for row, replies in zip(rows, answers, strict=True)
        for reply in replies
    ]
    # The KL is that of the distributions that were sampled from; greedy answers have none.
    at = (engine.config, texts, settings.batch_size, settings.temperature or 1.0)
    start = response_logprobs(initial, *at)
    own = start if engine.params is initial else response_logprobs(engine.params, *at)
    drift = iter(float((a - b).sum()) for a, b in zip(own, start, strict=True))
    return [
        Answer(
            snapshot=snapshot,
            id=row.id,
            kind=row.kind,
            prompt=row.conversation,
            response=reply.text,
            tokens=reply.tokens,
            stop_reason=reply.stop_reason,
            sample=n,
            kl=next(drift),
            provenance=provenance,
        )
        for row, replies in zip(rows, answers, strict=True)
        for n, reply in enumerate(replies)
    ]


def response_logprobs(
    params: Params,
    config: ModelConfig,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_size: int,
    temperature: float,
) -> list[np.ndarray]:
    """Log-probabilities of each response's tokens, float32[n] in nats.

    Args:
      texts: (prompt tokens, response tokens).
    """
    width = _rounded(max(len(p) for p, _ in texts)), _rounded(max(len(r) for _, r in texts))
    found: list[np.ndarray] = []
    for start in range(0, len(texts), batch_size):
        part = list(texts[start : start + batch_size])
        part += part[:1] * (batch_size - len(part))
        prompt, prompt_mask = pad_tokens([p[::-1] for p, _ in part], width[0])
        reply, mask = pad_tokens([r for _, r in part], width[1])
        logprobs, _ = jit_reply_logprobs(
            config, params, prompt[:, ::-1], prompt_mask[:, ::-1], reply, mask, temperature
        )
        logprobs = np.asarray(logprobs)
        found += [logprobs[i, : len(reply)] for i, (_, reply) in enumerate(part)]
    return found[: len(texts)]


def perplexities(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    form: Format,
    texts: Sequence[tuple[Conversation, str]],
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean negative log-probability of each given reply, float32[N] in nats, and token counts."""
    split = []
    for conversation, text in texts:
        tokens, mask = example(tokenizer, form, conversation, text)
        cut = mask.index(True)
        split.append((tokens[:cut], tokens[cut:]))
    logprobs = response_logprobs(params, config, split, batch_size, 1.0)
    return np.array([-x.mean() for x in logprobs]), np.array([len(x) for x in logprobs])


def _rounded(n: int) -> int:
    """A multiple of 32, so that few shapes are compiled."""
    return -(-n // 32) * 32
