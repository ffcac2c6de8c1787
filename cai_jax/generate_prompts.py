"""`cai-jax generate-prompts`: new prompts of both kinds, filtered, in files that a run can take."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cai_jax import hosts
from cai_jax.datasets import prompts as shipped
from cai_jax.datasets.prompts import PromptRow
from cai_jax.machine import engine_of, mesh_of_shape
from cai_jax.pipeline import counter
from cai_jax.progress import Progress
from cai_jax.records import Kind, Provenance
from cai_jax.settings import ConfigError, EngineSize, MeshShape, build, check_machine, check_ranges
from cai_jax.shards import write_atomically
from cai_jax.stages import prompt_generation
from cai_jax.stages.prompt_generation import REASONS, Generated, drawn, listed, one_line
from cai_jax.weights.load import Model, load_model
from cai_jax.workdir import Workdir, commit, digest

KINDS: tuple[Kind, ...] = ("red_team", "helpful")
PRINTED = 8  # samples of each kind


@dataclasses.dataclass(frozen=True)
class Examples:
    """Attributes: files of prompts that are shown, and of prompts that are held out, of which no
    copy is kept; empty takes those that ship with the project."""

    red_team: str
    helpful: str
    held_out_red_team: str
    held_out_helpful: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """A generation of prompts; see experiments/generate_prompts.py."""

    seed: int
    model: str
    dtype: str
    engine: EngineSize
    mesh: MeshShape
    examples: Examples
    generate: prompt_generation.Settings
    filters: prompt_generation.Filters


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Checked settings.

    Raises:
      ConfigError: naming the key.
    """
    settings = build(Settings, config)
    check_ranges(settings)
    check_machine(settings)
    for name, value in (
        ("generate.top_p", settings.generate.top_p),
        ("filters.similarity", settings.filters.similarity),
    ):
        if value == 0:
            raise ConfigError(f"config.{name} is 0.0; it must be above 0.")
    if settings.filters.most_words < settings.filters.least_words:
        raise ConfigError(
            f"config.filters.most_words is {settings.filters.most_words}, less than least_words "
            f"({settings.filters.least_words}); raise it."
        )
    if not settings.generate.red_team + settings.generate.helpful:
        raise ConfigError("config.generate wants no prompt of either kind; raise one number.")
    return settings


def run(config: Mapping[str, Any], workdir: Workdir, progress: Progress) -> None:
    """Samples what is missing, filters everything, and prints counts and some of the prompts.

    Of each kind there are then KIND/samples/*.jsonl, all that was sampled; KIND/prompts.jsonl, what
    was kept, for config.prompts.KIND of a run; KIND/counts.json.

    Raises:
      ValueError: a setting, file, model or prompt that cannot be used; before any compute.
    """
    settings = settings_of(config)
    wanted = {kind: n for kind in KINDS if (n := getattr(settings.generate, kind))}
    examples = {kind: _rows(settings.examples, kind, "") for kind in wanted}
    held_out = {kind: _rows(settings.examples, kind, "held_out_") for kind in wanted}
    for kind, rows in examples.items():
        drawn(rows, settings.generate.shown, settings.seed, kind, 0)
    mesh = mesh_of_shape(settings.mesh)
    model = load_model(settings.model, settings.dtype, mesh, progress.say)
    size = settings.engine
    engine = engine_of(size, model)
    for kind, rows in examples.items():
        _check_length(settings, model, kind, rows)
    workdir.prepare(settings, 0)
    source = Provenance(f"{model.name}@{model.fingerprint}", "", settings.seed, commit())
    for kind, count in wanted.items():
        title = f"{kind.replace('_', '-')} prompts"
        sampling = dataclasses.asdict(settings.generate)
        inputs = {
            "seed": settings.seed,
            "dtype": settings.dtype,
            "engine": {"slots": size.slots, "max_length": size.max_length},
            "model": model.fingerprint,
            "examples": digest([dataclasses.asdict(row) for row in examples[kind]]),
            "count": count,
            "generate": {k: v for k, v in sampling.items() if k not in KINDS},
        }
        folder = workdir.path / kind / "samples"
        fresh = workdir.begin(kind, inputs)
        with progress.stage(title, count, "samples", done=0 if fresh else count) as bar:
            texts = prompt_generation.sample(
                settings.generate, engine, kind, count, examples[kind], folder, settings.seed,
                source, counter(bar),
            )  # fmt: skip
        found = prompt_generation.keep(settings.filters, texts, examples[kind], held_out[kind])
        _report(settings, workdir, progress, kind, texts, *found)
        if fresh:
            workdir.finish(kind, {"samples": len(texts)})


def _rows(examples: Examples, kind: Kind, which: str) -> list[PromptRow]:
    """Prompts to show, or held-out ones; longer dialogues are known by their first human turn."""
    path = getattr(examples, which + kind)
    if path:
        return shipped.read_prompts(path, kind)
    return shipped.prompts(kind, "test" if which else "train")


def _check_length(settings: Settings, model: Model, kind: Kind, rows: list[PromptRow]) -> None:
    """Refuses lists that might not fit: one of the longest examples does."""
    longest = sorted(rows, key=lambda row: len(model.tokenizer.encode(one_line(row))))
    shown = longest[-settings.generate.shown :]
    tokens = sum(len(model.tokenizer.encode(force.text)) for force in listed(kind, shown))
    tokens += 1 + settings.generate.prompt_tokens  # BOS
    limit = min(settings.engine.max_length, model.config.context)
    if tokens > limit:
        raise ConfigError(
            f"config.generate.shown: a list of the longest {kind} prompts and a new one have "
            f"{tokens} tokens, and engine.max_length or the model's context is {limit}; show "
            "fewer, leave long examples out, or raise engine.max_length."
        )


def _report(
    settings: Settings,
    workdir: Workdir,
    progress: Progress,
    kind: Kind,
    texts: list[Generated],
    kept: list[Generated],
    dropped: Counter[str],
) -> None:
    """Writes the prompts and the counts, and prints the counts and the first prompts."""
    lines = [
        json.dumps({"id": t.id, "prompt": t.text, "category": "generated"}, ensure_ascii=False)
        for t in kept
    ]
    path = workdir.path / kind / "prompts.jsonl"
    text = "".join(f"{line}\n" for line in lines)
    hosts.once(lambda: write_atomically(path, text.encode()))
    counts = {reason: dropped[reason] for reason in REASONS if dropped[reason]}
    workdir.write_json(
        f"{kind}/counts.json",
        {
            "sampled": len(texts),
            "kept": len(kept),
            "dropped": counts,
            "filters": dataclasses.asdict(settings.filters),
        },
    )
    reasons = ", ".join(f"{n} {reason}" for reason, n in counts.items())
    progress.say(f"  {len(texts)} sampled, {len(kept)} kept" + (f"; {reasons}" if reasons else ""))
    for text in kept[:PRINTED]:
        progress.say(f"  - {text.text}")
    progress.say(f"  {path}" if kept else f"  {path} is empty: no text passed config.filters")
