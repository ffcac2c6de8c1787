"""Training on planned batches with checkpoints and metrics in a folder: all stages but PPO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cai_jax.mesh import layout, place, shard_batch
from cai_jax.models import lora
from cai_jax.models.lora import Adapted
from cai_jax.models.transformer import Params
from cai_jax.saved_params import save_params
from cai_jax.training import flops, optimizer, state
from cai_jax.training.checkpoint import Checkpoints
from cai_jax.training.loop import train
from cai_jax.training.metrics import MetricsLog
from cai_jax.training.optimizer import OptimizerConfig


def fit(
    start: Params | Adapted,
    loss_fn: Callable[..., Any],
    config: OptimizerConfig,
    batches: Sequence[Any],
    directory: Path,
    save_every: int,
    progress: Callable[[int, int, dict], None],
    mesh: jax.sharding.Mesh | None = None,
    microbatches: int = 1,
    experts_per_token: int = 0,
    windows: tuple[int | None, ...] = (),
) -> Params:
    """Trains a step on each batch; resumes from the newest checkpoint in `directory`.

    Args:
      start: params, whose buffers are taken over; or with adapters, which are trained in their
        place.
      loss_fn: of (params, batch), as `state.make_step` takes it.
      batches: all of them, numpy arrays, in order; `real` of each is bool[..., T], True on the
        tokens that it trains on.
      save_every: steps between checkpoints.
      mesh: over which params, optimiser state and batches are split; None for one device.
      microbatches: that each batch goes through the model in; the update is the whole batch's.
      experts_per_token, windows: of the model's config, for its FLOPs.

    Returns:
      the trained params, float32, adapters merged; these alone are then in
      `directory`/adapters.

    Raises:
      TrainingError, CheckpointError, Terminated: as `loop.train`.
    """
    opt = optimizer.make(config, len(batches))
    adapted = start if isinstance(start, Adapted) else None
    if adapted is not None:
        loss_fn = adapted.loss(loss_fn)
    shape = flops.shape_of(adapted.joined(adapted.trained) if adapted else start, experts_per_token)
    first = place(state.create(adapted.trained if adapted else start, opt), mesh)
    checkpoints = Checkpoints(directory / "checkpoints", keep=2)
    peak = flops.peak_flops(jax.devices()[0].device_kind)
    peak = peak and peak * (mesh.size if mesh else 1)

    def rates(step: int, seconds: float) -> dict[str, float]:
        real = np.asarray(batches[step - 1].real)
        return flops.rates(shape, int(real.sum()), real.shape[-1], seconds, peak, windows)

    final = train(
        first,
        state.make_step(loss_fn, opt, microbatches, layout(first)),
        lambda n: shard_batch(batches[n], mesh),
        len(batches),
        checkpoints,
        save_every,
        MetricsLog(directory / "metrics.jsonl"),
        (adapted.base,) if adapted else (),
        progress,
        rates=rates,
    )
    checkpoints.close()
    if not adapted:
        return final.params
    joined = adapted.joined(final.params)
    save_params(directory / lora.FOLDER, lora.adapters(joined), {})
    return lora.merged(joined)
