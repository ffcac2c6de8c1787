"""`cai-jax label-ablation`: every label mode on the same pairs, side by side.

Modes that ask the same questions share the answers: those are asked once, kept in shards, and each
mode's labels are arithmetic on them. A mode that is added later asks only what is not yet known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai_jax import constitution as constitutions
from cai_jax.datasets import prompts as shipped
from cai_jax.datasets.dialogue_pairs import read_pairs
from cai_jax.datasets.prompts import LabelPair
from cai_jax.decoding import Engine
from cai_jax.evaluation.intervals import Interval
from cai_jax.evaluation.labels import (
    Labelled,
    LabelReport,
    label_report,
    labelled,
    more_accurate,
)
from cai_jax.labels import Raw, label, questions
from cai_jax.machine import engine_of, mesh_of_shape
from cai_jax.principles import Constitution
from cai_jax.progress import Progress, ResultRow, format_estimate
from cai_jax.prompts import Format
from cai_jax.questions import Pair
from cai_jax.records import Asked
from cai_jax.settings import ConfigError, EngineSize, MeshShape, build, check_machine, check_ranges
from cai_jax.shards import Shards
from cai_jax.stages import ai_feedback
from cai_jax.stages.ai_feedback import ask, drawn_principle
from cai_jax.weights.load import load_model
from cai_jax.workdir import Workdir, digest

# Settings that decide what is asked; modes that have them in common share answers.
ASKING = ("mode", "plain_text", "few_shots", "chain_tokens", "chain_temperature")


@dataclasses.dataclass(frozen=True)
class Settings:
    """An ablation; see experiments/label_ablation.py.

    Attributes:
      pairs: a file of {"chosen", "rejected"} dialogues; empty takes the shipped clear-cut pairs.
      limit: the first so many pairs; 0 takes all.
      compare: what every mode starts from.
    """

    seed: int
    constitution: str
    feedback_model: str
    dtype: str
    engine: EngineSize
    mesh: MeshShape
    compare: ai_feedback.Settings
    pairs: str
    limit: int


def settings_of(config: Mapping[str, Any]) -> tuple[Settings, dict[str, ai_feedback.Settings]]:
    """Checked settings, and those of each mode by its name, in order.

    Raises:
      ConfigError: naming the key.
    """
    given = dict(config.items())
    if "modes" not in given:
        raise ConfigError(
            "config.modes is missing; use experiments/label_ablation.py, or a config like it."
        )
    rows = given.pop("modes")
    settings = build(Settings, given)
    compare = dataclasses.asdict(settings.compare)
    modes: dict[str, ai_feedback.Settings] = {}
    for number, row in enumerate(rows):
        where = f"config.modes[{number}]"
        if not hasattr(row, "items") or not isinstance(row.get("name"), str):
            raise ConfigError(f"{where} must be a group of settings with a name.")
        changes = {key: value for key, value in row.items() if key != "name"}
        if row["name"] in modes:
            raise ConfigError(f"{where}: the name '{row['name']}' stands twice; change one.")
        modes[row["name"]] = build(ai_feedback.Settings, {**compare, **changes}, where)
        check_ranges(dataclasses.replace(settings, compare=modes[row["name"]]))
    check_machine(settings)
    if not modes:
        raise ConfigError("config.modes is empty; name at least one mode.")
    if settings.limit < 0:
        raise ConfigError(f"config.limit is {settings.limit}; it must be at least 0.")
    return settings, modes


def run(config: Mapping[str, Any], workdir: Workdir, progress: Progress) -> None:
    """Asks what is not yet known, writes results.json, and prints the tables.

    Raises:
      ValueError: a setting, file or pair that cannot be used; before any compute.
    """
    settings, modes = settings_of(config)
    constitution = constitutions.load(settings.constitution)
    known, left_out = _pairs(settings)
    if left_out:
        progress.say(f"{left_out} rows of {settings.pairs} cannot be compared and are left out")
    pairs = [Pair.drawn(p.id, p.prompt, p.better, p.worse) for p in known]
    mesh = mesh_of_shape(settings.mesh)
    judge = load_model(settings.feedback_model, settings.dtype, mesh, progress.say)
    size = settings.engine
    engine = engine_of(size, judge)
    inputs = {
        "seed": settings.seed,
        "dtype": settings.dtype,
        "engine": {"slots": size.slots, "max_length": size.max_length},
        "constitution": constitution.hash,
        "feedback_model": judge.fingerprint,
        "pairs": digest([dataclasses.asdict(pair) for pair in pairs]),
        "shard_size": settings.compare.shard_size,
    }
    workdir.prepare(settings, 0)
    answers: dict[str, dict[str, Raw]] = {}
    for folder, named in _sharing(modes).items():
        alike = list(named.values())
        workdir.begin(folder, {**inputs, **_asking(alike[0])})
        answers[folder] = _answers(
            alike, engine, judge.format, constitution, pairs, settings.seed,
            workdir.path / folder, progress,
        )  # fmt: skip
    everywhere = set.intersection(*map(set, answers.values()))
    if not everywhere:
        raise ConfigError("no pair fits; raise config.engine.max_length or lower few_shots.")
    if len(everywhere) < len(pairs):
        progress.say(
            f"{len(pairs) - len(everywhere)} of {len(pairs)} pairs are too long for "
            "engine.max_length or the model's context in some mode, and are left out of all"
        )
    ids = [p.id for p in constitution.comparison]
    kept = [(p, k) for p, k in zip(pairs, known, strict=True) if p.id in everywhere]
    labels: dict[str, list[Labelled]] = {name: [] for name in modes}
    for folder, named in _sharing(modes).items():
        for name, mode in named.items():
            for pair, row in kept:
                made = label(mode, answers[folder][pair.id], ids)
                texts = pair.response_a, pair.response_b
                labels[name].append(labelled(mode, made, ids, texts, texts[0] == row.better))
    reports = {name: label_report(rows, settings.seed) for name, rows in labels.items()}
    first, *others = modes
    gains = {name: more_accurate(labels[name], labels[first], settings.seed) for name in others}
    workdir.write_json(
        "results.json",
        {
            name: {
                "settings": dataclasses.asdict(mode),
                "report": dataclasses.asdict(reports[name]),
                "accuracy_over_first": (dataclasses.asdict(gains[name]) if name in gains else None),
            }
            for name, mode in modes.items()
        },
    )
    tables(reports, gains, progress)


def _pairs(settings: Settings) -> tuple[list[LabelPair], int]:
    """The pairs with their known better responses, and how many rows of the file are no pair."""
    if settings.pairs:
        found, left_out = read_pairs(settings.pairs)
    else:
        found, left_out = shipped.label_pairs(), 0
    return found[: settings.limit or None], left_out


def _asking(mode: ai_feedback.Settings) -> dict[str, Any]:
    chains = mode.mode == "chain_of_thought"
    return {name: getattr(mode, name) for name in (ASKING if chains else ASKING[:3])}


def _sharing(
    modes: Mapping[str, ai_feedback.Settings],
) -> dict[str, dict[str, ai_feedback.Settings]]:
    """Modes that share answers, by the folder of those answers."""
    found: dict[str, dict[str, ai_feedback.Settings]] = {}
    for name, mode in modes.items():
        folder = f"answers-{mode.mode}-{digest(_asking(mode))[:6]}"
        found.setdefault(folder, {})[name] = mode
    return found


def _answers(
    modes: Sequence[ai_feedback.Settings],
    engine: Engine,
    form: Format,
    constitution: Constitution,
    pairs: Sequence[Pair],
    seed: int,
    folder: Path,
    progress: Progress,
) -> dict[str, Raw]:
    """All that `modes` need of each pair that fits, by the pair's id; asks what is missing."""
    size = modes[0].shard_size
    parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    shards = Shards(folder, len(parts))
    found = {raw.id: raw for raw in shards.read(Raw)}
    ids = [p.id for p in constitution.comparison]
    missing: list[list[tuple[Pair, list[Asked]]]] = []
    for part in parts:
        missing.append([])
        for pair in part:
            drawn = drawn_principle(constitution, seed, pair)
            wanted = dict.fromkeys(a for mode in modes for a in questions(mode, drawn, ids))
            known = found[pair.id].asked if pair.id in found else ()
            if new := [asked for asked in wanted if asked not in known]:
                missing[-1].append((pair, new))
    total = sum(len(new) for part in missing for _, new in part)
    title = modes[0].mode.replace("_", " ") + (", plain text" if modes[0].plain_text else "")
    with progress.stage(title, total, "questions") as bar:
        for number, (part, lacking) in enumerate(zip(parts, missing, strict=True)):
            if not lacking:
                continue
            before = bar.done

            def asked(done: int, _: int, before=before) -> None:
                bar.advance(before + done - bar.done)

            raws = ask(
                modes[0], engine, form, constitution, lacking, seed, asked,
                refused=lambda error: None,
            )  # fmt: skip
            for raw in raws:
                if raw is not None:
                    found[raw.id] = _joined(found.get(raw.id), raw)
            shards.write(number, [found[pair.id] for pair in part if pair.id in found])
            asked(sum(len(new) for _, new in lacking), 0)
    return found


def _joined(old: Raw | None, new: Raw) -> Raw:
    """Former answers and new ones."""
    if old is None:
        return new
    return dataclasses.replace(
        old,
        asked=old.asked + new.asked,
        option_logprobs=old.option_logprobs + new.option_logprobs,
        chains=old.chains + new.chains if old.chains else (),
    )


def tables(
    reports: Mapping[str, LabelReport], gains: Mapping[str, Interval], progress: Progress
) -> None:
    """Prints how right, how calibrated and how biased each mode's labels are."""
    columns = {
        "accuracy": ("share", lambda name: reports[name].accuracy),
        "over the first": ("share", gains.get),
        "flips": ("share", lambda name: reports[name].flip_rate),
        "says (A)": ("share", lambda name: reports[name].says_a),
        "length bias": ("number", lambda name: reports[name].length_bias),
    }
    _table("Label modes on the same pairs", reports, columns, progress)
    columns = {
        "calibration error": ("number", lambda name: reports[name].calibration_error),
        "Brier": ("number", lambda name: reports[name].brier),
        "entropy in bits": ("number", lambda name: reports[name].entropy),
    }
    _table("Their calibration", reports, columns, progress)
    whole = next((n for n, r in reports.items() if r.principles[0].agreement), None)
    if whole is not None:
        principles = {p.id: p for p in reports[whole].principles}
        columns = {
            "accuracy": ("share", lambda name: principles[name].accuracy),
            "agrees with the others": ("share", lambda name: principles[name].agreement),
            "influence": ("number", lambda name: principles[name].influence),
        }
        _table(f"The principles in '{whole}'", principles, columns, progress)
    length = next(iter(reports.values())).length_of_better
    progress.say("  over the first: accuracy less the first mode's, pair by pair")
    progress.say("  length bias: rank correlation of the label with how much longer a response is;")
    if length is not None:
        progress.say(f"  that of the better responses is {format_estimate(length, 'number')}")


def _table(
    title: str,
    names: Iterable[str],
    columns: Mapping[str, tuple[str, Callable]],
    progress: Progress,
) -> None:
    styles = tuple(style for style, _ in columns.values())
    rows = [
        ResultRow(name, tuple(of(name) for _, of in columns.values()), styles) for name in names
    ]
    progress.results_table(title, tuple(columns), rows)
