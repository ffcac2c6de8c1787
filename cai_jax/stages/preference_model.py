"""The preference model: one score for a prompt and a response, trained on soft comparisons.

Section 4.1 with 2204.05862: AI labels for harmlessness and people's for helpfulness, mixed; the
score is read at the end token, and P(A better) = sigmoid(score_a - score_b).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp

from cai_jax import rng
from cai_jax.batch import ComparisonBatch, comparison_batch
from cai_jax.datasets.splits import split_of
from cai_jax.encoding import example
from cai_jax.losses import soft_bradley_terry
from cai_jax.models import heads, lora
from cai_jax.models.config import ModelConfig
from cai_jax.models.lora import NONE, Lora
from cai_jax.models.scoring import WIDTH, places
from cai_jax.models.transformer import Params, hidden_states
from cai_jax.prompts import Format
from cai_jax.records import Comparison
from cai_jax.tokenizer import Tokenizer
from cai_jax.training.fit import fit
from cai_jax.training.optimizer import OptimizerConfig

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    epochs: 1 in the paper.
    batch_size: pairs a step, over all devices.
    microbatches: that a batch goes through the model in, one after the other: less memory, and the
      update is still the whole batch's.
    length: tokens of a prompt and a response; longer pairs are left out and counted.
    ai_weight: loss weight of AI comparisons; the companion paper's is 1 to 10 on harmlessness.
    human_weight: loss weight of human comparisons.
    held_out: share of the prompts whose comparisons are not trained on but test the model.
    members: preference models trained alike but for the order of the comparisons, an ensemble whose
      members PPO scores with; the first stands for all elsewhere.
    halves: whether the comparisons are split by prompt, to train the model that RL optimises on one
      half and, in the same way, a second one on the other, which RL is watched with.
    save_every: steps between checkpoints.
    remat: what the backward pass recomputes, a key of models.transformer.REMAT.
    compute_dtype: of activations and matrix products, "float32" or "bfloat16"; params, gradients
      and the optimiser's arithmetic are float32.
    optimizer: the companion paper's learning rate is 0.01 of pretraining.
    """

    epochs: int
    batch_size: int
    microbatches: int
    length: int
    ai_weight: float
    human_weight: float
    held_out: float
    members: int
    halves: bool
    save_every: int
    remat: str
    compute_dtype: str
    optimizer: OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Example:
    """A comparison in tokens. Attributes: a, b, prompt and response with end token; prob_a that a
    is better; weight in the loss."""

    a: list[int]
    b: list[int]
    prob_a: float
    weight: float


def examples(
    settings: Settings, tokenizer: Tokenizer, form: Format, comparisons: Sequence[Comparison]
) -> list[Example]:
    """Comparisons in tokens; those longer than `settings.length` are left out."""
    weights = {"ai": settings.ai_weight, "human": settings.human_weight}
    found = [
        Example(
            example(tokenizer, form, c.prompt, c.response_a)[0],
            example(tokenizer, form, c.prompt, c.response_b)[0],
            c.prob_a,
            weights[c.source],
        )
        for c in comparisons
    ]
    kept = [e for e in found if max(len(e.a), len(e.b)) <= settings.length]
    if not kept:
        raise ValueError(
            f"none of {len(found)} comparisons fits preference_model.length "
            f"({settings.length} tokens); raise it."
        )
    return kept


def make_loss(config: ModelConfig, remat: str, dtype: str = "float32"):
    """loss(params, ComparisonBatch) -> (soft Bradley-Terry, metrics).

    Args:
      dtype: of activations and matrix products.
    """

    def loss_fn(params: Params, batch: ComparisonBatch):
        tokens = batch.tokens.reshape(-1, batch.tokens.shape[-1])
        mask = batch.mask.reshape(tokens.shape)
        hidden = hidden_states(
            config, params, tokens, places(mask), mask.astype(jnp.int32),
            dtype=dtype, remat=remat,
        )  # fmt: skip
        scores = heads.scalar(params, heads.last_token(hidden, mask)).reshape(-1, 2)
        a, b = scores[:, 0], scores[:, 1]
        loss, count = soft_bradley_terry(a, b, batch.prob_a, batch.weight)
        agree = ((a > b) == (batch.prob_a > 0.5)) & (batch.weight > 0)
        accuracy = agree.sum() / jnp.maximum((batch.weight > 0).sum(), 1)
        return loss, {"count": count, "pm/accuracy": accuracy, "pm/gap": jnp.abs(a - b).mean()}

    return loss_fn


def apart(comparisons: Sequence[T], share: float) -> tuple[list[T], list[T]]:
    """Comparisons to train on, and those of about `share` of all prompts, to test on.

    Args:
      comparisons: or any rows with a Conversation as their `prompt` or `conversation`.

    Raises:
      ValueError: there are none to train on.
    """
    where = [split_of(c, share, "held-out comparisons ") for c in comparisons]
    train, test = (
        [c for c, side in zip(comparisons, where, strict=True) if side == name]
        for name in ("train", "test")
    )
    if not train:
        raise ValueError(
            f"preference_model.held_out ({share}) leaves none of {len(comparisons)} comparisons to "
            "train on; lower it, or give more prompts."
        )
    return train, test


def half(rows: Sequence[T], which: Literal["train", "test"]) -> list[T]:
    """The rows of one half of all prompts: a prompt's half follows from its first human turn alone.

    2204.05862 splits 50/50 for its study of robustness.

    Args:
      rows: each with a Conversation as its `prompt` or `conversation`.

    Raises:
      ValueError: there are none.
    """
    found = [row for row in rows if split_of(row, 0.5) == which]
    if not found:
        raise ValueError(
            f"preference_model.halves: all {len(rows)} comparisons have prompts of the same half, "
            "and each half trains a preference model; give more prompts, or halves=False."
        )
    return found


def batches(
    data: list[Example], settings: Settings, seed: int, stream: str = "preference model"
) -> list[ComparisonBatch]:
    """All epochs' batches, shuffled by (seed, stream, epoch); the last is filled with weight 0.

    Pairs of similar length share a batch, and a batch is only as wide as it must be. Which response
    stands first is drawn too, so the position says nothing.
    """
    size, found = settings.batch_size, []
    for epoch in range(settings.epochs):
        order = rng.permutation(len(data), seed, stream, epoch)
        swap = rng.permutation(len(data), seed, f"{stream} order", epoch) % 2 == 1
        order = sorted(order, key=lambda i: _width(data[i], settings.length))
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        for n in rng.permutation(len(groups), seed, f"{stream} batches", epoch):
            group = groups[n]
            filler = size - len(group)
            part = [(data[i], swap[i]) for i in [*group, *[group[0]] * filler]]
            found.append(
                comparison_batch(
                    [(e.b, e.a) if s else (e.a, e.b) for e, s in part],
                    [1 - e.prob_a if s else e.prob_a for e, s in part],
                    [data[i].weight for i in group] + [0.0] * filler,
                    max(_width(e, settings.length) for e, _ in part),
                )
            )
    return found


def _width(example: Example, length: int) -> int:
    """A multiple of WIDTH that holds both texts, or `length`: few shapes are compiled."""
    longest = max(len(example.a), len(example.b))
    return min(-(-longest // WIDTH) * WIDTH, length)


def train_preference_model(
    settings: Settings,
    config: ModelConfig,
    params: Params,
    data: list[Example],
    directory: Path,
    seed: int,
    progress: Callable[[int, int, dict], None],
    mesh: jax.sharding.Mesh | None = None,
    stream: str = "preference model",
    adapters: Lora = NONE,
) -> Params:
    """Trains from a language model's params; resumes from the newest checkpoint in `directory`.

    Args:
      params: the start; its trunk's buffers are taken over, unless adapters are trained in its
        place. The scalar head begins at zero.
      mesh: over which params, optimiser state and batches are split; None for one device.
      stream: of the random order of batches.

    Returns:
      params with a scalar head.
    """
    planned = batches(data, settings, seed, stream)
    return fit(
        lora.adapted(heads.with_scalar_head(params), adapters, seed, stream),
        make_loss(config, settings.remat, settings.compute_dtype),
        settings.optimizer, planned, directory, settings.save_every, progress, mesh,
        settings.microbatches, config.experts_per_token, config.windows,
    )  # fmt: skip
