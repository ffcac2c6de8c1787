"""What changed: initial, SL-CAI and RL-CAI on the same held-out prompts; the best of n answers."""

from __future__ import annotations

import dataclasses
import math
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
    best_of: answers of SL-CAI of which the PM chooses one; 1 is off.
    batch_size: texts scored at a time.
    resamples: bootstrap draws of the intervals.
    """

    samples: int
    response_tokens: int
    temperature: float
    top_p: float
    best_of: int
    batch_size: int
    resamples: int

    def __post_init__(self):
        if self.best_of > 1 and self.temperature == 0:
            raise ValueError(
                f"evaluate.best_of is {self.best_of} and evaluate.temperature 0, at which all "
                "answers to a prompt are the same; raise the temperature, or leave best_of at 1."
            )


@dataclasses.dataclass(frozen=True)
class Answer(Record):
    """A snapshot's response to a held-out prompt. Attributes: snapshot, "initial", "sl_cai",
    "rl_cai" or "best_of"; kl, nats from the initial model summed over the response."""

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


@dataclasses.dataclass(frozen=True)
class Candidate(Record):
    """One of the n responses that the PM chose from; `score` is its score."""

    id: str
    kind: Kind
    prompt: Conversation
    response: str
    stop_reason: str
    sample: int
    score: float
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
    stream: str = "evaluate",
) -> list[Answer]:
    """Samples a snapshot's answers and measures how far each is from the initial model.

    The random numbers depend on `stream`, not on the snapshot: equal models give equal answers.
    """
    answers = respond(
        engine,
        form,
        [(row.id, row.conversation) for row in rows],
        stream=stream,
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


def best_of(
    candidates: Sequence[Answer], scores: Sequence[float], n: int
) -> tuple[list[Answer], list[Candidate]]:
    """Of every n answers in a row the one that scores highest, and all of them with their scores.

    To choose takes the sampler's distribution at most `best_of_kl(n)` further; the KL of an answer
    is its log-ratio before the choice with that added.

    Args:
      candidates: a multiple of n of them, each n to one prompt.
    """
    chosen = []
    for start in range(0, len(candidates), n):
        best = candidates[max(range(start, start + n), key=lambda i: scores[i])]
        kl = best.kl + best_of_kl(n)
        chosen.append(dataclasses.replace(best, sample=best.sample // n, kl=kl))
    scored = [
        Candidate(a.id, a.kind, a.prompt, a.response, a.stop_reason, a.sample, s, a.provenance)
        for a, s in zip(candidates, scores, strict=True)
    ]
    return chosen, scored


def best_of_kl(n: int) -> float:
    """log n - (n - 1) / n nats, the most that the best of n is from what it was chosen from.

    Equal where no two candidates are the same (Stiennon et al. 2009.01325); never more (Beirami et
    al. 2401.01879).
    """
    return math.log(n) - (n - 1) / n


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
