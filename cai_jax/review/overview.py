"""A run in one screen, as plain values for a page: what, when, settings, results, figures."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cai_jax import constitution as constitutions
from cai_jax.evaluation.intervals import Interval
from cai_jax.evaluation.results import label_style
from cai_jax.goodput import FILE as WALL_TIME
from cai_jax.principles import ConstitutionError
from cai_jax.progress import format_estimate
from cai_jax.snapshot_answers import titles

STAGES = {
    "revise": "critique and revision",
    "finetune": "SL-CAI",
    "compare": "AI feedback",
    "preference_model": "preference model",
    "ppo": "RL-CAI by PPO",
    "dpo": "RL-CAI by DPO",
    "evaluation": "evaluation",
}


class ReviewError(ValueError):
    """A folder that holds no run; the message says what to do."""


def overview(workdir: Path) -> dict[str, Any]:
    """What is shown of a run before its rows; of one that goes on, as far as it is.

    Raises:
      ReviewError: the folder is no run, or its config is damaged.
    """
    config = _config(workdir)
    summary = _json(workdir / "summary.json") or {}
    environment = _json(workdir / "environment.json") or {}
    return {
        "name": workdir.name,
        "workdir": str(workdir),
        "when": _when(workdir),
        "stages": [
            [title, "finished" if (workdir / stage / "done.json").exists() else "not finished"]
            for stage, title in STAGES.items()
            if (workdir / stage).exists()
        ],
        "machine": _machine(environment),
        "settings": flat(config),
        "differences": (_json(workdir / "differences.json") or [])[1:],
        "principles": _principles(config),
        "tables": _tables(config, summary),
        "limits": summary.get("limits", []),
        "figures": [
            {"name": file.stem.replace("_", " "), "image": _image(file)}
            for file in sorted((workdir / "figures").glob("*.svg"))
        ],
    }


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as text by dotted name."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.dumps(value, ensure_ascii=False)
    return found


def _config(workdir: Path) -> dict[str, Any]:
    file = workdir / "config.json"
    if not file.is_file():
        raise ReviewError(f"{workdir} is no run: it has no config.json; give a run's --workdir.")
    config = _json(file)
    if not isinstance(config, dict):
        raise ReviewError(f"{file} is damaged; run `cai-jax run` with this workdir again.")
    return config


def _json(file: Path) -> Any:
    """A file's value; None where it is not there or no JSON."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _when(workdir: Path) -> dict[str, Any]:
    """Seconds since the epoch of the first start and the last end, and seconds by stage."""
    file = workdir / WALL_TIME
    lines = file.read_text("utf-8").split("\n")[:-1] if file.is_file() else []  # whole ones
    noted = [json.loads(line) for line in lines]
    stages: dict[str, float] = {}
    for row in noted:
        if row["event"] == "stage":
            stages[row["stage"]] = stages.get(row["stage"], 0.0) + row["seconds"]
    times = [row["at"] for row in noted]
    return {
        "started": min(times, default=None),
        "ended": max((row["at"] for row in noted if row["event"] == "end"), default=None),
        "stages": [[name, seconds] for name, seconds in stages.items()],
    }


def _machine(environment: Mapping[str, Any]) -> list[list[str]]:
    packages = environment.get("packages", {})
    devices = environment.get("devices", [])
    named = [f"{devices.count(kind)} {kind}" for kind in dict.fromkeys(devices)]
    found = {
        "commit": environment.get("commit", ""),
        "devices": ", ".join(named),
        "processes": str(environment.get("processes", "")),
        "platform": environment.get("platform", ""),
        "Python": environment.get("python", ""),
        **{name: packages[name] for name in ("jax", "flax", "optax") if name in packages},
    }
    return [[name, value] for name, value in found.items() if value]


def _principles(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the constitution's principles by id; none where its file is not to be found."""
    try:
        constitution = constitutions.load(config["constitution"])
    except (KeyError, OSError, ConstitutionError):
        return {}
    critique = {p.id: f"{p.critique_request}\n{p.revision_request}" for p in constitution.critique}
    comparison = {f"comparison/{p.id}": p.instruction for p in constitution.comparison}
    return critique | comparison


def _tables(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The run's own tables as text."""
    if not summary:
        return []
    names = titles(config.get("evaluate", {}).get("best_of", 1))
    modes = list(summary["labels"])
    measures = list(dict.fromkeys(name for mode in modes for name in summary["labels"][mode]))
    return [
        _table(
            "Results on held-out prompts",
            list(names.values()),
            [(m["name"], [m["by_snapshot"].get(s) for s in names], m["style"])
             for m in summary["snapshots"]],
        ),
        _table(
            "The preference model's accuracy",
            ["accuracy"],
            [(name, [value], "share") for name, value in summary["preference_model"].items()],
        ),
        _table(
            "The feedback model's labels on clear-cut pairs",
            [mode.replace("_", " ") for mode in modes],
            [(name, [summary["labels"][mode].get(name) for mode in modes], label_style(name))
             for name in measures],
        ),
    ]  # fmt: skip


def _table(title: str, columns: list[str], lines: list[tuple]) -> dict[str, Any]:
    found = []
    for name, cells, style in lines:
        intervals = [None if cell is None else Interval(**cell) for cell in cells]
        found.append(
            {
                "name": name,
                "cells": [format_estimate(interval, style) for interval in intervals],
                "n": max((interval.n for interval in intervals if interval), default=0),
            }
        )
    return {"title": title, "columns": columns, "rows": found}


def _image(file: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode()
