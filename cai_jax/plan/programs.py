"""Every program that a config will run on a mesh, in the run's order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
from jax.sharding import Mesh

from cai_jax.models.config import ModelConfig
from cai_jax.plan.decoding import Shapes, decoding_programs, relayout
from cai_jax.plan.program import Program
from cai_jax.plan.training import policy_of, scoring_programs, training_steps
from cai_jax.settings import RunSettings

ROLLOUT = "PPO, "  # before the names of what decodes while PPO holds its models


def programs_of(s: RunSettings, config: ModelConfig, mesh: Mesh) -> Iterator[Program]:
    """What the run decodes with, its training steps, and what PPO does between them.

    Raises:
      ValueError: a dimension that the mesh does not divide.
    """
    dtype = jnp.dtype(s.dtype)
    length = min(s.engine.max_length, config.context)
    shapes = Shapes(config, mesh, s.engine.slots, length, dtype)
    decoding = list(decoding_programs(shapes))
    yield from decoding
    steps = list(training_steps(s, config, mesh))
    yield from steps
    if s.algorithm != "ppo":
        return
    holds = next(x.held + x.beside for x in steps if x.group == "ppo")
    yield relayout(shapes, policy_of(s, config, mesh), holds)
    # The same programs beside more: they are compiled once.
    for program in decoding[:2]:
        yield dataclasses.replace(program, name=ROLLOUT + program.name, beside=holds)
    yield from scoring_programs(s, config, mesh, holds)
