"""RL-CAI without reinforcement learning: SL-CAI finetuned by DPO on the soft comparisons.

Rafailov et al. 2305.18290 take the place of section 4.2's PPO: the comparisons that train the
preference model train the policy directly, and the label is the target as it is there, so where the
feedback model is unsure the policy is told to be. The reference is SL-CAI, which sampled the pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cai_jax import rng
from cai_jax.batch import ComparisonBatch, comparison_batch
from cai_jax.encoding import example
from cai_jax.logprobs import chunked_token_logprobs
from cai_jax.losses import dpo_loss
from cai_jax.mesh import shard_batch
from cai_jax.models import lora
from cai_jax.models.config import ModelConfig
from cai_jax.models.lora import NONE, Lora
from cai_jax.models.scoring import CHUNK, WIDTH, jitted, places
from cai_jax.models.transformer import Params, hidden_states, unembedding
from cai_jax.prompts import Format
from cai_jax.records import Comparison
from cai_jax.shards import Shards
from cai_jax.tokenizer import Tokenizer
from cai_jax.training.fit import fit
from cai_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    epochs: passes over the comparisons.
    batch_size: pairs a step, over all devices.
    microbatches: that a batch goes through the model in, one after the other: less memory, and the
      update is still the whole batch's.
    length: tokens of a prompt and a response; longer pairs are left out and counted.
    beta: strength of the pull to SL-CAI; 0.1 in Rafailov et al.
    ai_weight: loss weight of AI comparisons.
    human_weight: loss weight of human comparisons.
    save_every: steps between checkpoints.
    remat: what the backward pass recomputes, a key of models.transformer.REMAT.
    compute_dtype: of activations and matrix products, "float32" or "bfloat16"; params, gradients
      and the optimiser's arithmetic are float32.
    optimizer: Rafailov et al. take a learning rate of 1e-6.
    """

    epochs: int
    batch_size: int
    microbatches: int
    length: int
    beta: float
    ai_weight: float
    human_weight: float
    save_every: int
    remat: str
    compute_dtype: str
    optimizer: OptimizerConfig

    def __post_init__(self):
        if self.beta <= 0:
            raise ValueError(
                f"dpo.beta is {self.beta}; it must be above 0, or nothing is learnt of a pair."
            )


@dataclasses.dataclass(frozen=True)
class Example:
    """A comparison in tokens. Attributes: prompt_tokens, how many tokens of `a` and of `b` are the
    prompt; prob_a that a is better; weight in the loss."""

    id: str
    prompt_tokens: int
    a: list[int]
    b: list[int]
    prob_a: float
    weight: float


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the reference says of a pair. Attributes: log-probabilities of the two responses, each
    summed over its tokens, in nats; float32 in full, where records keep six digits."""

    id: str
    logprob_a: float
    logprob_b: float


@flax.struct.dataclass
class Batch:
    """Pairs. Attributes: prompt_tokens int32[B], how many tokens of both texts are the prompt;
    ref_logprobs float32[B, 2], of the reference, summed over a response's tokens."""

    comparisons: ComparisonBatch
    prompt_tokens: jax.Array
    ref_logprobs: jax.Array

    @property
    def real(self) -> jax.Array:
        """bool[B, 2, T], True on what is neither padding nor only fills the batch."""
        return self.comparisons.real


def examples(
    settings: Settings,
    tokenizer: Tokenizer,
    form: Format,
    comparisons: Sequence[Comparison],
    cut_off: Collection[tuple[str, str]],
) -> list[Example]:
    """Comparisons in tokens; those longer than `settings.length` are left out.

    Args:
      cut_off: (id, response) of those whose sampling met its limit: they have no end token, since
        the reference did not choose to stop there.

    Raises:
      ValueError: none is left.
    """
    weights = {"ai": settings.ai_weight, "human": settings.human_weight}
    found = []
    for c in comparisons:
        (a, mask), (b, _) = (
            example(tokenizer, form, c.prompt, text, whole=(c.id, text) not in cut_off)
            for text in (c.response_a, c.response_b)
        )
        found.append(Example(c.id, mask.count(False), a, b, c.prob_a, weights[c.source]))
    kept = [e for e in found if max(len(e.a), len(e.b)) <= settings.length]
    if not kept:
        raise ValueError(
            f"none of {len(found)} comparisons fits dpo.length ({settings.length} tokens); "
            "raise it."
        )
    return kept


def response_logprobs(
    config: ModelConfig,
    params: Params,
    batch: Batch,
    remat: str = "none",
    dtype: str = "float32",
) -> jax.Array:
    """Log-probabilities float32[B, 2] of both responses, summed over their tokens, in nats."""
    tokens = batch.comparisons.tokens.reshape(-1, batch.comparisons.tokens.shape[-1])
    mask = batch.comparisons.mask.reshape(tokens.shape)
    hidden = hidden_states(
        config, params, tokens, places(mask), mask.astype(jnp.int32), dtype=dtype, remat=remat
    )
    # Targets are shifted and not the hidden states, which a mesh may split by tokens.
    logprobs, _ = chunked_token_logprobs(
        hidden, unembedding(params), jnp.roll(tokens, -1, 1), 1.0, CHUNK, config.logits_softcap
    )
    starts = jnp.repeat(batch.prompt_tokens, 2)[:, None]
    response = mask[:, 1:] & (jnp.arange(1, tokens.shape[1]) >= starts)
    return jnp.where(response, logprobs[:, :-1], 0.0).sum(-1).reshape(-1, 2)


jit_response_logprobs = jitted(response_logprobs)


def reference_logprobs(
    settings: Settings,
    config: ModelConfig,
    params: Params,
    data: Sequence[Example],
    directory: Path,
    progress: Callable[[int, int], None],
    mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
    """What the reference says of all pairs, float32[N, 2], once for the whole of training.

    Kept in `directory`/reference, a shard for every `save_every` batches; shards that are there
    are not made again.

    Args:
      params: of the reference.
      progress: called with (pairs done, pairs in all).
    """
    size, order = settings.batch_size, _by_width(range(len(data)), data, settings.length)
    rows = size * settings.save_every
    shards = Shards(directory / "reference", -(-len(data) // rows))
    for number in range(shards.count):
        if number not in shards.done():
            made: list[Reference] = []
            part = order[number * rows : (number + 1) * rows]
            for start in range(0, len(part), size):
                found = [data[i] for i in part[start : start + size]]
                batch = shard_batch(_batch(found, np.zeros((len(found), 2)), settings), mesh)
                sums = np.asarray(
                    jit_response_logprobs(config, params, batch, dtype=settings.compute_dtype)
                )
                made += [
                    Reference(e.id, float(a), float(b))
                    for e, (a, b) in zip(found, sums[: len(found)], strict=True)
                ]
                progress(number * rows + len(made), len(data))
            shards.write(number, made)
        progress(min((number + 1) * rows, len(data)), len(data))
    found = np.zeros((len(data), 2), np.float32)
    found[order] = [(r.logprob_a, r.logprob_b) for r in shards.read(Reference)]
    return found


def make_loss(config: ModelConfig, settings: Settings):
    """loss(params, Batch) -> (soft DPO, metrics)."""

    def loss_fn(params: Params, batch: Batch):
        logprobs = response_logprobs(config, params, batch, settings.remat, settings.compute_dtype)
        pairs = batch.comparisons
        return dpo_loss(
            *logprobs.T, *batch.ref_logprobs.T, pairs.prob_a, pairs.weight, settings.beta
        )

    return loss_fn


def batches(
    data: Sequence[Example], reference: np.ndarray, settings: Settings, seed: int
) -> list[Batch]:
    """All epochs' batches, each epoch shuffled by (seed, epoch); the last is filled with weight 0.

    Pairs of similar length share a batch, and a batch is only as wide as it must be.
    """
    size, found = settings.batch_size, []
    for epoch in range(settings.epochs):
        order = rng.permutation(len(data), seed, "dpo", epoch)
        order = _by_width(order, data, settings.length)
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        for n in rng.permutation(len(groups), seed, "dpo batches", epoch):
            rows = groups[n]
            found.append(_batch([data[i] for i in rows], reference[rows], settings))
    return found


def train_dpo(
    settings: Settings,
    config: ModelConfig,
    params: Params,
    data: Sequence[Example],
    reference: np.ndarray,
    directory: Path,
    seed: int,
    progress: Callable[[int, int, dict], None],
    mesh: jax.sharding.Mesh | None = None,
    adapters: Lora = NONE,
) -> Params:
    """Trains the policy; resumes from the newest checkpoint in `directory`.

    Args:
      params: the start, SL-CAI; its buffers are taken over, unless adapters are trained in its
        place.
      reference: float32[N, 2], from `reference_logprobs` of the same start.
      mesh: over which params, optimiser state and batches are split; None for one device.

    Returns:
      RL-CAI's params.
    """
    planned = batches(data, reference, settings, seed)
    return fit(
        lora.adapted(params, adapters, seed, "dpo"), make_loss(config, settings),
        settings.optimizer, planned, directory, settings.save_every, progress, mesh,
        settings.microbatches, config.experts_per_token, config.windows,
    )  # fmt: skip


def _batch(rows: Sequence[Example], reference: np.ndarray, settings: Settings) -> Batch:
    """At most `batch_size` pairs, filled up with the first at weight 0."""
    filler = settings.batch_size - len(rows)
    weights = [e.weight for e in rows] + [0.0] * filler
    rows = [*rows, *[rows[0]] * filler]
    return Batch(
        comparison_batch(
            [(e.a, e.b) for e in rows],
            [e.prob_a for e in rows],
            weights,
            max(_width(e, settings.length) for e in rows),
        ),
        np.array([e.prompt_tokens for e in rows], np.int32),
        np.concatenate([reference, reference[:1].repeat(filler, 0)]).astype(np.float32),
    )


def _by_width(order: Sequence[int], data: Sequence[Example], length: int) -> list[int]:
    return sorted(order, key=lambda i: _width(data[i], length))


def _width(example: Example, length: int) -> int:
    """A multiple of WIDTH that holds both texts, or `length`: few shapes are compiled."""
    longest = max(len(example.a), len(example.b))
    return min(-(-longest // WIDTH) * WIDTH, length)
