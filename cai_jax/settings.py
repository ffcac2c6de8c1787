"""From a run's ConfigDict to the frozen settings that stages take: every key known, typed, present.

The ConfigDict goes no further than this.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from cai_jax.evaluation import snapshots
from cai_jax.models.lora import Lora
from cai_jax.models.transformer import COMPUTE_DTYPES, REMAT
from cai_jax.stages import ai_feedback, critique_revision, dpo, ppo, preference_model, supervised

T = TypeVar("T")
ALGORITHMS = ("ppo", "dpo")  # that make RL-CAI; each is named as its stage and its settings are


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key and the remedy."""


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Attributes:
    red_team, helpful, held_out_red_team, held_out_helpful: files of prompts; empty takes those
      that ship with the project.
    helpful_comparisons, held_out_comparisons: files of people's comparisons by helpfulness, and
      label_pairs, of clear-cut pairs; likewise.
    *_limit: the first so many of each list; 0 takes all.
    """

    red_team: str
    helpful: str
    held_out_red_team: str
    held_out_helpful: str
    helpful_comparisons: str
    held_out_comparisons: str
    label_pairs: str
    red_team_limit: int
    helpful_limit: int
    held_out_red_team_limit: int
    held_out_helpful_limit: int
    helpful_comparisons_limit: int
    label_pairs_limit: int


@dataclasses.dataclass(frozen=True)
class EngineSize:
    """Attributes: slots, Scripts in progress; max_length, tokens of one; memory_gb, what the cache
    and the logits may take on a device, 0 for most of what is free; few_sizes, whether to compile
    less and pad more."""

    slots: int
    max_length: int
    memory_gb: float
    few_sizes: bool


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Attributes: sizes of the mesh axes (`cai_jax.mesh`); -1 takes what is left."""

    slice: int
    data: int
    fsdp: int
    sequence: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """A whole run; see experiments/common.py for what each key means."""

    seed: int
    constitution: str
    model: str
    feedback_model: str
    dtype: str
    frozen_int8: bool
    algorithm: str
    lora: Lora
    prompts: Prompts
    engine: EngineSize
    mesh: MeshShape
    revise: critique_revision.Settings
    finetune: supervised.Settings
    compare: ai_feedback.Settings
    preference_model: preference_model.Settings
    ppo: ppo.Settings
    dpo: dpo.Settings
    evaluate: snapshots.Settings

    @property
    def rated(self) -> bool:
        """Whether RL-CAI is trained on the feedback model's ratings, by no preference model."""
        return self.algorithm == "ppo" and self.ppo.reward == "rating"


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


def differences(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """What a config changes: a heading, and a line a group with new values and (defaults).

    Args:
      config, defaults: nested dicts of the same keys.
    """
    lines = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            if found := _changed(value, defaults[name]):
                lines.append(f"  {name}: {', '.join(found)}")
        elif value != defaults[name]:
            lines.append(f"  {name}: {value} ({defaults[name]})")
    return ["settings, where they differ from their (defaults):", *lines] if lines else []


def _changed(config: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            found += _changed(value, defaults[name], f"{prefix}{name}.")
        elif value != defaults[name]:
            found.append(f"{prefix}{name} {value} ({defaults[name]})")
    return found


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping) and not hasattr(value, "items"):
            raise ConfigError(f"{where} is {value!r}; it must be a group of settings.")
        return build(hint, value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise ConfigError(f"{where} is {value!r}; it must be a tuple.")
        items = typing.get_args(hint)
        if len(value) != len(items):
            raise ConfigError(f"{where} is {value!r}; it must have {len(items)} entries.")
        pairs = enumerate(zip(items, value, strict=True))
        return tuple(_value(item, entry, f"{where}[{n}]") for n, (item, entry) in pairs)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint or value != value:  # NaN is of no use anywhere
        raise ConfigError(f"{where} is {value!r}; it must be of type {hint.__name__}.")
    return value


# Setting paths, and what their values must lie between.
_RANGES = (
    (
        """engine.slots engine.max_length
        revise.rounds revise.response_tokens revise.critique_tokens revise.revision_tokens
        revise.helpful_samples revise.shard_size
        finetune.epochs finetune.batch_size finetune.microbatches finetune.length
        finetune.save_every
        compare.response_tokens compare.chain_tokens compare.shard_size
        preference_model.epochs preference_model.batch_size preference_model.length
        preference_model.save_every preference_model.microbatches preference_model.members
        ppo.updates ppo.batch_size ppo.samples ppo.prompt_tokens ppo.response_tokens ppo.epochs
        ppo.minibatches ppo.microbatches ppo.kl_horizon ppo.save_every
        dpo.epochs dpo.batch_size dpo.microbatches dpo.length dpo.save_every
        evaluate.samples evaluate.response_tokens evaluate.batch_size evaluate.resamples
        evaluate.best_of
        generate.shown generate.prompt_tokens generate.shard_size
        filters.least_words filters.most_words filters.ngram""",
        (1, math.inf),
    ),
    (
        """engine.memory_gb
        prompts.red_team_limit prompts.helpful_limit prompts.held_out_red_team_limit
        prompts.held_out_helpful_limit prompts.helpful_comparisons_limit prompts.label_pairs_limit
        revise.principles revise.few_shots revise.temperature compare.few_shots compare.temperature
        compare.chain_temperature preference_model.ai_weight preference_model.human_weight
        ppo.deviations ppo.truncation_penalty ppo.baseline_responses ppo.stop_update_at_kl
        ppo.value_coefficient ppo.kl_coefficient ppo.kl_target ppo.clip ppo.value_clip
        ppo.stop_when_held_out_falls dpo.ai_weight dpo.human_weight evaluate.temperature
        generate.red_team generate.helpful generate.temperature lora.rank lora.alpha""",
        (0, math.inf),
    ),
    (
        """ppo.gamma ppo.lam revise.top_p compare.top_p evaluate.top_p generate.top_p
        preference_model.held_out filters.letters filters.similarity""",
        (0, 1),
    ),
)


def check_ranges(settings: Any) -> None:
    """Raises ConfigError where a number of one of the settings' groups is out of its range."""
    for names, (least, most) in _RANGES:
        for name in names.split():
            if not hasattr(settings, name.split(".")[0]):
                continue
            value = operator.attrgetter(name)(settings)
            if not least <= value <= most:
                wanted = f"at least {least}" if most == math.inf else f"in [{least}, {most}]"
                raise ConfigError(f"config.{name} is {value}; it must be {wanted}.")


def check_machine(settings: Any) -> None:
    """Raises ConfigError unless `mesh` and `dtype` are such as there are."""
    for axis, size in dataclasses.asdict(settings.mesh).items():
        if size < 1 and size != -1:
            raise ConfigError(f"config.mesh.{axis} is {size}; it must be at least 1, or -1.")
    if settings.dtype not in ("float32", "bfloat16"):
        raise ConfigError(
            f"config.dtype is '{settings.dtype}'; it must be 'float32' or 'bfloat16'."
        )


def check_compute(group: str, settings: Any) -> None:
    """Raises ConfigError unless a training stage's `remat` and `compute_dtype` are known."""
    for name, known in (("remat", REMAT), ("compute_dtype", COMPUTE_DTYPES)):
        if (value := getattr(settings, name)) not in known:
            raise ConfigError(
                f"config.{group}.{name} is '{value}'; it must be one of {', '.join(known)}."
            )


def run_settings(config: Mapping[str, Any]) -> RunSettings:
    """A checked run, fields against each other too.

    Raises:
      ConfigError: naming the key.
    """
    settings = build(RunSettings, config)
    check_ranges(settings)
    for group in ("revise", "compare", "evaluate"):
        if getattr(settings, group).top_p == 0:
            raise ConfigError(f"config.{group}.top_p is 0.0; it must be above 0.")
    if settings.algorithm not in ALGORITHMS:
        raise ConfigError(f"config.algorithm is '{settings.algorithm}'; it must be 'ppo' or 'dpo'.")
    for group in ("finetune", "preference_model", "ppo", "dpo"):
        check_compute(group, getattr(settings, group))
    if settings.ppo.stop_when_held_out_falls and not settings.preference_model.halves:
        raise ConfigError(
            f"config.ppo.stop_when_held_out_falls is {settings.ppo.stop_when_held_out_falls}, and "
            "no held-out preference model is trained; set config.preference_model.halves=True too."
        )
    if settings.rated and settings.preference_model.halves:
        raise ConfigError(
            "config.ppo.reward is 'rating', and config.preference_model.halves=True watches how a "
            "preference model is optimised; set one of them back."
        )
    if settings.ppo.deviations and settings.preference_model.members == 1:
        raise ConfigError(
            f"config.ppo.deviations is {settings.ppo.deviations}, and one preference model has "
            "nothing to disagree with; raise config.preference_model.members."
        )
    check_machine(settings)
    return settings
