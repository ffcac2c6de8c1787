"""One batch of PPO's experience: sampled responses and what the models say of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import numpy as np

from cai_jax import rng
from cai_jax.batch import Rollout
from cai_jax.conversation import Conversation
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding.engine import Engine
from cai_jax.decoding.respond import Reply, respond
from cai_jax.encoding import prompt_tokens
from cai_jax.mesh import shard_batch
from cai_jax.models.config import ModelConfig
from cai_jax.models.scoring import jit_reply_logprobs, jit_reply_values, score_texts
from cai_jax.models.transformer import Params
from cai_jax.prompts import Format
from cai_jax.records import Kind, Provenance, Record
from cai_jax.tokenizer import Tokenizer
from cai_jax.training.advantages import Minibatch

RETOKENIZED = 8  # tokens by which a reply's text may come out longer than its sampled tokens


@dataclasses.dataclass(frozen=True)
class Sampled(Record):
    """One response of a rollout.

    Attributes:
      update: from 0; -1 for SL-CAI's responses whose scores give the baseline.
      id: of the prompt.
      score: as the preference model gives it, or what its members agree on, or the rating in
        [-1, 1].
      kl: to the reference in nats, summed over the response (k1).
      held_out_score: of the preference model of the other half of the comparisons, where there is
        one.
      sample: which of the responses to the prompt.
      reward: what was optimised: the score, normalised, less all penalties; None of responses
        that give the baseline.
      principle: id of the principle that the response was rated by; None without a rating.
      member_scores: of the preference model's members, where it has several.
    """

    update: int
    id: str
    kind: Kind
    prompt: Conversation
    response: str
    stop_reason: str
    score: float
    kl: float
    provenance: Provenance
    held_out_score: float | None = None
    sample: int = 0
    reward: float | None = None
    principle: str | None = None
    member_scores: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Answer:
    """A sampled response. Attributes: name, the prompt's place in the stream; row, the prompt;
    sample, which of the responses to it; reply."""

    name: str
    row: PromptRow
    sample: int
    reply: Reply

    @property
    def truncated(self) -> bool:
        """Whether sampling met its limit."""
        return self.reply.stop_reason == "length"


@dataclasses.dataclass(frozen=True)
class Scores:
    """What responses are scored with.

    Attributes:
      values: float32[B].
      principles: ids of those that responses were rated by, or None of each.
      members: float32[M, B], the scores of the preference model's members; M is 0 for ratings.
    """

    values: np.ndarray
    principles: Sequence[str | None]
    members: np.ndarray


@flax.struct.dataclass
class Models:
    """Params: policy, reference (its frozen start), value, or None without a value function."""

    policy: Params
    reference: Params
    value: Params | None


def sample(
    engine: Engine,
    form: Format,
    prompts: Sequence[tuple[str, PromptRow]],
    *,
    stream: str,
    seed: int,
    samples: int,
    max_new_tokens: int,
    temperature: float,
) -> list[Answer]:
    """Responses of the engine's weights, those to one prompt together; it then lets them go."""
    replies = respond(
        engine,
        form,
        [(name, row.conversation) for name, row in prompts],
        stream=stream,
        seed=seed,
        samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )
    engine.params = None  # lets go of its own layout of the weights while these train
    return [
        Answer(name, row, number, reply)
        for (name, row), group in zip(prompts, replies, strict=True)
        for number, reply in enumerate(group)
    ]


def preference_scores(
    config: ModelConfig,
    members: Sequence[Params],
    tokenizer: Tokenizer,
    form: Format,
    prompts: Sequence[Conversation],
    replies: Sequence[Reply],
    *,
    truncated_at: str,
    batch_size: int,
    length: int,
    mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
    """The score of each reply by each of M preference models, float32[M, B].

    They read texts, not the tokens that were sampled: as they were trained to, closed by the end
    token.

    Args:
      truncated_at: where they score a reply that met its limit: at the "end_token" too, or at the
        reply's "last_token".
      batch_size, length: see `score_texts`.
    """
    texts = [(p, r.text) for p, r in zip(prompts, replies, strict=True)]
    closed = [truncated_at == "end_token" or r.stop_reason != "length" for r in replies]
    return np.stack([
        score_texts(
            config, params, tokenizer, form, texts, batch_size=batch_size, length=length,
            closed=closed, mesh=mesh,
        )
        for params in members
    ])  # fmt: skip


def make_rollout(
    config: ModelConfig,
    models: Models,
    tokenizer: Tokenizer,
    form: Format,
    prompts: Sequence[Conversation],
    replies: Sequence[Reply],
    score: np.ndarray,
    *,
    prompt_tokens_limit: int,
    response_tokens_limit: int,
    temperature: float,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
) -> Rollout:
    """Pads the texts and lets policy, reference and value function say what they think of them.

    They read the very tokens that were sampled.

    Args:
      score: float32[B].
      prompt_tokens_limit, response_tokens_limit: P and R.
      temperature: at which the replies were sampled.
      dtype: of activations and matrix products, as in training.
    """
    prompt, prompt_mask = _padded(
        [prompt_tokens(tokenizer, form, p) for p in prompts], prompt_tokens_limit, left=True
    )
    response, mask = _padded([r.tokens for r in replies], response_tokens_limit, left=False)
    texts = shard_batch((prompt, prompt_mask, response, mask), mesh)
    logprobs, _ = jit_reply_logprobs(config, models.policy, *texts, temperature, dtype=dtype)
    ref_logprobs, _ = jit_reply_logprobs(config, models.reference, *texts, temperature, dtype=dtype)
    values = None
    if models.value is not None:
        values = jit_reply_values(config, models.value, *texts, dtype=dtype)
    return Rollout(
        prompt=prompt,
        prompt_mask=prompt_mask,
        response=response,
        mask=mask,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        score=score,
    )


def scored_length(prompt_tokens_limit: int, response_tokens_limit: int) -> int:
    """Tokens of the longest text of a rollout that a preference model reads."""
    return prompt_tokens_limit + response_tokens_limit + RETOKENIZED


def stream(
    rows: list[PromptRow], count: int, update: int, seed: int
) -> list[tuple[str, PromptRow]]:
    """The `count` prompts of one update, each under a name of its own: its place in the stream."""
    found = []
    for n in range(update * count, (update + 1) * count):
        epoch, i = divmod(n, len(rows))
        row = rows[rng.permutation(len(rows), seed, "ppo prompts", epoch)[i]]
        found.append((f"{n}/{row.id}", row))
    return found


def minibatches(
    data: Minibatch, count: int, epochs: int, seed: int, update: int
) -> list[Minibatch]:
    """Every epoch's `count` minibatches; the order is drawn for each update and epoch."""
    found = []
    for epoch in range(epochs):
        number = update * epochs + epoch
        order = rng.permutation(len(data.rollout.score), seed, "ppo minibatches", number)
        for rows in np.split(order, count):
            found.append(jax.tree.map(lambda x, rows=rows: x[rows], data))
    return found


def records(
    update: int,
    answers: Sequence[Answer],
    scores: Scores,
    provenance: Provenance,
    kl: np.ndarray,
    reward: Sequence[float] | Sequence[None],
    held_out: Sequence[float] | Sequence[None],
) -> list[Sampled]:
    """What is kept of responses; `kl`, `reward` and `held_out` have an entry for each."""
    return [
        Sampled(
            update=update,
            id=answer.row.id,
            kind=answer.row.kind,
            prompt=answer.row.conversation,
            response=answer.reply.text,
            stop_reason=answer.reply.stop_reason,
            score=float(scores.values[n]),
            kl=float(kl[n]),
            provenance=provenance,
            held_out_score=held_out[n],
            sample=answer.sample,
            reward=reward[n],
            principle=scores.principles[n],
            member_scores=tuple(scores.members[:, n].tolist()) if len(scores.members) > 1 else (),
        )
        for n, answer in enumerate(answers)
    ]


def _padded(rows: list, length: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        tokens[i, place], mask[i, place] = row, True
    return tokens, mask
