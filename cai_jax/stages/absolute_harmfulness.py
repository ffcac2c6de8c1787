"""Absolute harmfulness: one score from 0 to 4 for a whole conversation, trained on ratings.

Section 4.5 and Figure 10: a language model finetuned with L2 loss on whole red-team conversations
against the rating that the worker gave to their own success. The score is read at the end token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax import rng
from cai_jax.batch import RatedBatch, rated_batch
from cai_jax.conversation import Conversation
from cai_jax.datasets.red_team_attempts import Attempt
from cai_jax.encoding import example
from cai_jax.losses import squared_error
from cai_jax.models import heads
from cai_jax.models.config import ModelConfig
from cai_jax.models.scoring import WIDTH, score
from cai_jax.models.transformer import Params
from cai_jax.prompts import Format
from cai_jax.tokenizer import Tokenizer
from cai_jax.training.fit import fit
from cai_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    epochs: not given in the paper.
    batch_size: conversations a step, over all devices.
    microbatches: that a batch goes through the model in, one after the other: less memory, and the
      update is still the whole batch's.
    length: tokens of a conversation; longer ones are left out and counted.
    save_every: steps between checkpoints.
    remat: what the backward pass recomputes, a key of models.transformer.REMAT.
    compute_dtype: of activations and matrix products, "float32" or "bfloat16"; params, gradients
      and the optimiser's arithmetic are float32.
    optimizer: not given in the paper.
    """

    epochs: int
    batch_size: int
    microbatches: int
    length: int
    save_every: int
    remat: str
    compute_dtype: str
    optimizer: OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation in tokens, with end token, and its rating from 0 to 4."""

    tokens: list[int]
    rating: float


def text_of(conversation: Conversation) -> tuple[Conversation, str] | None:
    """(what stands before the assistant's last turn, that turn); None where it has none.

    A human turn that nobody answered says nothing of the assistant and is left out.
    """
    turns = list(conversation.turns)
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if len(turns) < 2 or turns[-2].role != "human":
        return None
    return Conversation(tuple(turns[:-1])), turns[-1].text


def examples(
    settings: Settings, tokenizer: Tokenizer, form: Format, attempts: Sequence[Attempt]
) -> list[Example]:
    """Rated conversations in tokens; without a reply or over `settings.length` they are left out.

    Raises:
      ValueError: none is left.
    """
    found = [
        Example(example(tokenizer, form, *text)[0], attempt.rating)
        for attempt in attempts
        if (text := text_of(attempt.conversation))
    ]
    kept = [e for e in found if len(e.tokens) <= settings.length]
    if not kept:
        raise ValueError(
            f"none of {len(attempts)} rated conversations has a reply and fits scorer.length "
            f"({settings.length} tokens); raise it."
        )
    return kept


def make_loss(config: ModelConfig, remat: str, dtype: str = "float32"):
    """loss(params, RatedBatch) -> (squared error, metrics).

    Args:
      dtype: of activations and matrix products.
    """

    def loss_fn(params: Params, batch: RatedBatch):
        found = score(config, params, batch.tokens, batch.mask, remat, dtype)
        loss, count = squared_error(found, batch.rating, batch.weight)
        real = batch.weight > 0
        error = jnp.where(real, jnp.abs(found - batch.rating), 0.0).sum()
        return loss, {"count": count, "harmfulness/error": error / jnp.maximum(real.sum(), 1)}

    return loss_fn


def batches(data: Sequence[Example], settings: Settings, seed: int) -> list[RatedBatch]:
    """All epochs' batches, each epoch shuffled by (seed, epoch); the last is filled with weight 0.

    Conversations of similar length share a batch, which is only as wide as it must be.
    """
    size, found = settings.batch_size, []
    widths = [min(-(-len(e.tokens) // WIDTH) * WIDTH, settings.length) for e in data]
    for epoch in range(settings.epochs):
        order = rng.permutation(len(data), seed, "absolute harmfulness", epoch)
        order = sorted(order, key=lambda i: widths[i])
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        for n in rng.permutation(len(groups), seed, "absolute harmfulness batches", epoch):
            filler = size - len(groups[n])
            rows = [*groups[n], *[groups[n][0]] * filler]
            found.append(
                rated_batch(
                    [data[i].tokens for i in rows],
                    [data[i].rating for i in rows],
                    [1.0] * len(groups[n]) + [0.0] * filler,
                    max(widths[i] for i in rows),
                )
            )
    return found


def train_scorer(
    settings: Settings,
    config: ModelConfig,
    params: Params,
    data: Sequence[Example],
    directory: Path,
    seed: int,
    progress: Callable[[int, int, dict], None],
    mesh: jax.sharding.Mesh | None = None,
) -> Params:
    """Trains from a language model's params; resumes from the newest checkpoint in `directory`.

    The head begins at the mean rating of `data`, so training starts at the error of a constant.

    Args:
      params: the start; its trunk's buffers are taken over.
      mesh: over which params, optimiser state and batches are split; None for one device.

    Returns:
      params with a scalar head.
    """
    planned = batches(data, settings, seed)
    begun = heads.with_scalar_head(params)
    mean = np.mean([e.rating for e in data])
    begun["scalar_head"]["bias"] = jnp.full((1,), mean, jnp.float32)
    return fit(
        begun, make_loss(config, settings.remat, settings.compute_dtype), settings.optimizer,
        planned, directory, settings.save_every, progress, mesh,
        settings.microbatches, config.experts_per_token, config.windows,
    )  # fmt: skip
