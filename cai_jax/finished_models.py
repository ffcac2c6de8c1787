"""The models that a finished run leaves in its workdir."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax

from cai_jax.mesh import place
from cai_jax.saved_params import load_params
from cai_jax.weights.load import Model, load_model
from cai_jax.workdir import digest, rl_stage

STAGES = ("ppo", "dpo", "finetune")  # that leave a language model, the last ones first


class RunError(ValueError):
    """A folder without the model that is asked for; the message says what to do."""


def model_of_run(
    workdir: Path, stage: str | None, report: Callable[[str], None]
) -> tuple[Model, str]:
    """A run's model after a stage (the last finished one if None), and what the run began with.

    Raises:
      RunError: the folder is no run, is damaged, or the stage is not finished.
    """
    config = workdir / "config.json"
    if not config.is_file():
        raise RunError(f"{workdir} is no run: it has no config.json; give a run's --workdir.")
    finished = [s for s in STAGES if (workdir / s / "done.json").exists()]
    if not finished or (stage and stage not in finished):
        raise RunError(
            f"{workdir} has no finished '{stage or 'finetune'}'; run `cai-jax run` with it first."
        )
    start, dtype = _noted(config, "model", "dtype")
    if not stage:  # where both were tried, RL-CAI is the config's
        stage = chosen if (chosen := rl_stage(workdir)) in finished else finished[0]
    model = load_model(start, dtype, report=report)
    params = load_params(workdir / stage / "params")[0]
    shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in (model.params, params)]
    if shapes[0] != shapes[1]:
        raise RunError(
            f"{workdir / stage / 'params'} is of another shape than {start}, which the run says "
            "it began with; put that model back."
        )
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    return dataclasses.replace(model, params=params, name=f"{start} after {stage}"), start


def start_of_run(workdir: Path, report: Callable[[str], None]) -> Model:
    """The model that a run began with.

    Raises:
      RunError: the folder is no run, or is damaged.
    """
    start, dtype = _noted(workdir / "config.json", "model", "dtype")
    return load_model(start, dtype, report=report)


def preference_model_of_run(
    workdir: Path, mesh: jax.sharding.Mesh | None, report: Callable[[str], None]
) -> Model:
    """The preference model of a run, or of people's comparisons alone (`human-preferences`).

    That is the model it began with, the trained trunk and scalar head in it. The fingerprint is
    that of what it was made from.

    Raises:
      RunError: the folder is neither, is damaged, or its preference model is not finished.
    """
    folder = workdir / "preference_model"
    if not (folder / "done.json").exists():
        raise RunError(
            f"{workdir} has no finished 'preference_model'; run `cai-jax train-pm`, or `cai-jax "
            "human-preferences`, with it first."
        )
    start, dtype = _noted(workdir / "config.json", "model", "dtype")
    judge = json.loads((workdir / "config.json").read_text("utf-8")).get("feedback_model")
    model = load_model(judge or start, dtype, mesh, report)
    return dataclasses.replace(
        model,
        params=place(load_params(folder / "params")[0], mesh),
        name=f"preference model of {workdir}",
        fingerprint=digest([model.fingerprint, (folder / "inputs.json").read_text("utf-8")]),
    )


def _noted(config: Path, *keys: str) -> list[str]:
    """Values of a run's config.json."""
    try:
        settings = json.loads(config.read_text("utf-8"))
        return [settings[key] for key in keys]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{config} is damaged; run `cai-jax run` with this workdir again.") from (
            error
        )
