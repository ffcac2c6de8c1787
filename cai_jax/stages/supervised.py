"""SL-CAI: finetune on revisions and on the model's own helpful responses (section 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax import rng
from cai_jax.batch import TokenBatch, pack
from cai_jax.encoding import example
from cai_jax.logprobs import chunked_token_logprobs
from cai_jax.losses import cross_entropy
from cai_jax.models import lora
from cai_jax.models.config import ModelConfig
from cai_jax.models.lora import NONE, Lora
from cai_jax.models.scoring import CHUNK
from cai_jax.models.transformer import Params, hidden_states, unembedding
from cai_jax.prompts import Format
from cai_jax.records import Response, Revision
from cai_jax.tokenizer import Tokenizer
from cai_jax.training.fit import fit
from cai_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    revisions: "all" trains on every revision (section 3.1), "final" on the last of each chain.
    epochs: 1 in the paper.
    batch_size: rows of packed text, over all devices.
    microbatches: that a batch goes through the model in, one after the other: less memory, and the
      update is still the whole batch's.
    length: tokens in a row; longer examples are refused.
    save_every: steps between checkpoints.
    remat: what the backward pass recomputes, a key of models.transformer.REMAT.
    compute_dtype: of activations and matrix products, "float32" or "bfloat16"; params, gradients
      and the optimiser's arithmetic are float32.
    optimizer: the paper's learning rate is constant, half that of pretraining.
    """

    revisions: str
    epochs: int
    batch_size: int
    microbatches: int
    length: int
    save_every: int
    remat: str
    compute_dtype: str
    optimizer: OptimizerConfig

    def __post_init__(self):
        if self.revisions not in ("all", "final"):
            raise ValueError(
                f"finetune.revisions is '{self.revisions}'; it must be 'all' or 'final'."
            )


def examples(
    settings: Settings,
    tokenizer: Tokenizer,
    form: Format,
    revisions: list[Revision],
    helpful: list[Response],
) -> list[tuple[list[int], list[bool]]]:
    """Training examples: revisions and the model's own helpful responses, empty texts left out.

    One that was cut off at its limit has no end token.

    Raises:
      ValueError: no text is left.
    """
    texts = [
        (record.prompt, step.revision, step.revision_stop_reason)
        for record in revisions
        for step in (record.steps if settings.revisions == "all" else record.steps[-1:])
    ]
    texts += [(record.prompt, record.response, record.stop_reason) for record in helpful]
    if not any(text for _, text, _ in texts):
        raise ValueError("finetune has no examples: there are no revisions and no responses.")
    return [
        example(tokenizer, form, prompt, text, whole=reason != "length")
        for prompt, text, reason in texts
        if text
    ]


def epoch_batches(
    data: list[tuple[list[int], list[bool]]], settings: Settings, seed: int, epoch: int
) -> list[TokenBatch]:
    """One epoch's packed batches, shuffled by (seed, epoch)."""
    order = rng.permutation(len(data), seed, "finetune", epoch)
    return pack([data[i] for i in order], settings.length, settings.batch_size)


def make_loss(config: ModelConfig, remat: str, dtype: str = "float32"):
    """loss(params, TokenBatch) -> (mean cross-entropy in nats a target token, metrics).

    Args:
      dtype: of activations and matrix products.
    """

    def loss_fn(params: Params, batch: TokenBatch):
        hidden = hidden_states(
            config, params, batch.tokens, batch.positions, batch.segment_ids,
            dtype=dtype, remat=remat,
        )  # fmt: skip
        # Targets are shifted and not the hidden states, which a mesh may split by tokens.
        logprobs, _ = chunked_token_logprobs(
            hidden, unembedding(params), jnp.roll(batch.tokens, -1, 1), 1.0, CHUNK,
            config.logits_softcap,
        )  # fmt: skip
        loss, count = cross_entropy(logprobs[:, :-1], batch.loss_mask[:, 1:])
        return loss, {"count": count}

    return loss_fn


def finetune(
    settings: Settings,
    config: ModelConfig,
    params: Params,
    data: list[tuple[list[int], list[bool]]],
    directory: Path,
    seed: int,
    progress: Callable[[int, int, dict], None],
    mesh: jax.sharding.Mesh | None = None,
    adapters: Lora = NONE,
) -> Params:
    """Finetunes; resumes from the newest checkpoint in `directory`.

    Args:
      params: the start; its buffers are taken over, unless adapters are trained in its place.
      data: (tokens, loss mask) of each example.
      mesh: over which params, optimiser state and batches are split; None for one device.

    Returns:
      SL-CAI's params.
    """
    epochs = [epoch_batches(data, settings, seed, epoch) for epoch in range(settings.epochs)]
    batches = [jax.tree.map(np.asarray, batch) for epoch in epochs for batch in epoch]
    return fit(
        lora.adapted(params, adapters, seed, "finetune"),
        make_loss(config, settings.remat, settings.compute_dtype), settings.optimizer,
        batches, directory, settings.save_every, progress, mesh,
        settings.microbatches, config.experts_per_token, config.windows,
    )  # fmt: skip
