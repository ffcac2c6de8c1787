"""What a config's `engine` and `mesh` come to on the devices that there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from cai_jax.decoding import Engine
from cai_jax.decoding.stats import Stats
from cai_jax.mesh import make_mesh, row_ways
from cai_jax.settings import ConfigError, EngineSize, MeshShape, RunSettings
from cai_jax.weights.load import Model


def engine_of(
    size: EngineSize, model: Model, report: Callable[[Stats], None] | None = None
) -> Engine:
    """An engine of the configured size for a model; `report` gets the counts of each run."""
    memory = int(size.memory_gb * 1e9) or None
    return Engine(model, size.slots, size.max_length, memory, size.few_sizes, report)


def mesh_of_shape(shape: MeshShape) -> jax.sharding.Mesh | None:
    """The configured mesh over all devices; None where there is one device alone.

    Raises:
      ValueError: the shape does not cover the devices.
    """
    mesh = make_mesh(dataclasses.asdict(shape))
    return mesh if mesh.size > 1 else None


def check_batch(name: str, rows: int, microbatches: int, mesh: jax.sharding.Mesh | None) -> None:
    """Refuses a batch that does not divide into microbatches, or they not over the mesh.

    Args:
      name: of the setting that says `rows`, without "config.".

    Raises:
      ConfigError: naming it.
    """
    group = name.split(".")[0]
    if rows % microbatches:
        raise ConfigError(
            f"config.{name} is {rows}, which does not divide into config.{group}.microbatches = "
            f"{microbatches}; change one of them."
        )
    ways = row_ways(mesh) if mesh else 1
    if rows // microbatches % ways:
        parts = f" in {microbatches} microbatches" if microbatches > 1 else ""
        raise ConfigError(
            f"config.{name} is {rows}{parts}, which does not divide over the mesh's slice x data "
            f"x fsdp = {ways} devices; change it or config.mesh."
        )


def check_batches(s: RunSettings, mesh: jax.sharding.Mesh | None) -> None:
    """Refuses batches that do not divide into microbatches and over the mesh.

    Raises:
      ConfigError: naming the setting.
    """
    groups = ["finetune", "preference_model"] + ["dpo"] * (s.algorithm == "dpo")
    for name in groups:
        group = getattr(s, name)
        check_batch(f"{name}.batch_size", group.batch_size, group.microbatches, mesh)
    if s.algorithm == "ppo":
        rows = s.ppo.batch_size // s.ppo.minibatches
        check_batch("ppo.batch_size / ppo.minibatches", rows, s.ppo.microbatches, mesh)
