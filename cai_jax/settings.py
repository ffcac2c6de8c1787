"""From a run's ConfigDict to the frozen settings that stages take: every key known, typed, present.

The ConfigDict goes no further than this.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from cai_jax.evaluation import snapshots
from cai_jax.stages import ai_feedback, critique_revision, ppo, preference_model, supervised

T = TypeVar("T")


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key and the remedy."""


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Attributes:
    red_team, helpful, held_out_red_team, held_out_helpful: files of prompts; empty takes those
      that ship with the project.
    *_limit: the first so many of each list; 0 takes all.
    """

    red_team: str
    helpful: str
    held_out_red_team: str
    held_out_helpful: str
    red_team_limit: int
    helpful_limit: int
    held_out_red_team_limit: int
    held_out_helpful_limit: int
    helpful_comparisons_limit: int
    label_pairs_limit: int


@dataclasses.dataclass(frozen=True)
class EngineSize:
    """Attributes: slots, Scripts in progress; max_length, tokens of one."""

    slots: int
    max_length: int


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Attributes: sizes of the mesh axes; -1 takes what is left."""

    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """A whole run; see experiments/common.py for what each key means."""

    seed: int
    constitution: str
    model: str
    feedback_model: str
    dtype: str
    prompts: Prompts
    engine: EngineSize
    mesh: MeshShape
    revise: critique_revision.Settings
    finetune: supervised.Settings
    compare: ai_feedback.Settings
    preference_model: preference_model.Settings
    ppo: ppo.Settings
    evaluate: snapshots.Settings


def build(cls: type[T], config: Mapping[str, Any], where: str = "config") -> T:
    """The frozen dataclass `cls` from a config of the same keys, nested ones too.

    Raises:
      ConfigError: an unknown or missing key, or a value of another type.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}
    given = dict(config.items())
    if unknown := sorted(set(given) - fields):
        raise ConfigError(
            f"{where}.{unknown[0]} is not a setting; known here: {', '.join(sorted(fields))}."
        )
    if missing := sorted(fields - set(given)):
        raise ConfigError(f"{where}.{missing[0]} is missing; experiments/common.py has a default.")
    values = {
        name: _value(hints[name], given[name], f"{where}.{name}") for name in hints if name in given
    }
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping) and not hasattr(value, "items"):
            raise ConfigError(f"{where} is {value!r}; it must be a group of settings.")
        return build(hint, value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise ConfigError(f"{where} is {value!r}; it must be a tuple.")
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} is {value!r}; it must be of type {hint.__name__}.")
    return value


_AT_LEAST_ONE = {
    "engine": "slots max_length",
    "revise": "rounds response_tokens critique_tokens revision_tokens helpful_samples shard_size",
    "finetune": "epochs batch_size length save_every",
    "compare": "response_tokens chain_tokens shard_size",
    "preference_model": "epochs batch_size length save_every",
    "ppo": "updates batch_size prompt_tokens response_tokens epochs minibatches save_every",
    "evaluate": "samples response_tokens batch_size resamples",
}


def run_settings(config: Mapping[str, Any]) -> RunSettings:
    """A checked run, fields against each other too.

    Raises:
      ConfigError: naming the key.
    """
    settings = build(RunSettings, config)
    for group, names in _AT_LEAST_ONE.items():
        for name in names.split():
            value = getattr(getattr(settings, group), name)
            if value < 1:
                raise ConfigError(f"config.{group}.{name} is {value}; it must be at least 1.")
    for group in ("revise", "compare", "evaluate"):
        part = getattr(settings, group)
        if not 0 < part.top_p <= 1:
            raise ConfigError(f"config.{group}.top_p is {part.top_p}; it must be in (0, 1].")
        if part.temperature < 0:
            raise ConfigError(
                f"config.{group}.temperature is {part.temperature}; it must be at least 0."
            )
    if settings.dtype not in ("float32", "bfloat16"):
        raise ConfigError(
            f"config.dtype is '{settings.dtype}'; it must be 'float32' or 'bfloat16'."
        )
    return settings
