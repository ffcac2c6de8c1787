"""The models that a finished run leaves in its workdir."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax

from cai_jax.mesh import place
from cai_jax.models import heads, lora, transformer
from cai_jax.models.config import ModelConfig
from cai_jax.models.transformer import Params
from cai_jax.saved_params import load_params
from cai_jax.training.checkpoint import trained_params
from cai_jax.weights.load import Model, load_model, open_model, opened_as
from cai_jax.weights.saved import Saved
from cai_jax.weights.stored import Stored
from cai_jax.workdir import digest, rl_stage

STAGES = ("ppo", "dpo", "finetune")  # that leave a language model, the last ones first
PREFERENCE_MODEL = "preference_model"


class RunError(ValueError):
    """A folder without the model that is asked for; the message says what to do."""


def model_of_run(
    workdir: Path, stage: str | None, report: Callable[[str], None]
) -> tuple[Model, str]:
    """A run's model after a stage (the last finished one if None), and what the run began with.

    Raises:
      RunError: the folder is no run, is damaged, or the stage is not finished.
    """
    stage = stage or last_stage(workdir)
    start, dtype = _noted(workdir / "config.json", "model", "dtype")
    if not (workdir / stage / "done.json").exists():
        raise _unfinished(workdir, stage)
    opened = open_model(start, report)
    params = load_params(workdir / stage / "params")[0]
    check_trained(params, opened.config, workdir / stage / "params", start)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    return opened_as(opened, params, f"{start} after {stage}"), start


def last_stage(workdir: Path) -> str:
    """The run's last finished stage that leaves a language model, of STAGES.

    Raises:
      RunError: the folder is no run, is damaged, or no stage is finished.
    """
    _noted(workdir / "config.json")
    finished = [s for s in STAGES if (workdir / s / "done.json").exists()]
    if not finished:
        raise _unfinished(workdir, "finetune")
    # Where both were tried, RL-CAI is the config's.
    return chosen if (chosen := rl_stage(workdir)) in finished else finished[0]


def check_trained(
    params: Params, config: ModelConfig, where: Path, start: str, scores: bool = False
) -> None:
    """Raises RunError unless params are those of a model, or where it `scores` of its scorer."""
    trunk = jax.eval_shape(functools.partial(transformer.init, config), jax.random.key(0))
    tree = jax.eval_shape(heads.with_scalar_head, trunk) if scores else trunk
    shapes = [jax.tree.map(lambda x: x.shape, found) for found in (tree, params)]
    if shapes[0] != shapes[1]:
        raise RunError(
            f"{where} is of another shape than {start}, which the run says it began with; put "
            "that model back."
        )


def trained_in_run(
    workdir: Path, stage: str, step: int | None, report: Callable[[str], None]
) -> tuple[Stored | Saved, Params, str]:
    """What a stage of a run has trained, finished or not, in the dtype it is kept in: float32.

    Args:
      stage: one of STAGES, or PREFERENCE_MODEL, also of a `human-preferences` workdir.
      step: of the checkpoint to take while the stage is underway; None for the finished stage.

    Returns:
      (the model that the stage began as, params, that model's name); of the preference model the
      params have a scalar head and no output matrix.

    Raises:
      RunError: the folder is no run, is damaged, or the stage is not finished and no step is given.
      CheckpointError: there is no checkpoint of that step.
    """
    (start,) = _noted(workdir / "config.json", "model")
    scores = stage == PREFERENCE_MODEL
    if scores:
        judge = json.loads((workdir / "config.json").read_text("utf-8")).get("feedback_model")
        start = judge or start
    folder = workdir / stage
    where = folder / "params" if step is None else folder / "checkpoints"
    if step is None and not (folder / "done.json").exists():
        raise _unfinished(workdir, stage)
    opened = open_model(start, report)
    params = load_params(where)[0] if step is None else trained_params(where, step)
    if not scores:  # PPO's policy may have its value function on the same trunk
        params = heads.without_scalar_head(params)
    check_trained(params, opened.config, where, start, scores)
    return opened, params, start


def adapters_of_run(
    workdir: Path, stage: str, report: Callable[[str], None]
) -> tuple[Stored | Saved, list[Params], str]:
    """The adapters of a finished stage, behind those of the stages that it starts from.

    Returns:
      (the model that the run began with, `lora.adapters` of each stage, that model's name).

    Raises:
      RunError: the folder is no run, is damaged, the stage is not finished or trained no adapters.
    """
    (start,) = _noted(workdir / "config.json", "model")
    found = []
    for name in dict.fromkeys(("finetune", stage)):
        folder = workdir / name
        if not (folder / "done.json").exists():
            raise _unfinished(workdir, name)
        if stage == PREFERENCE_MODEL or not (folder / lora.FOLDER).exists():
            raise RunError(
                f"{workdir} has no adapters of '{stage}' that stand alone; export it whole, "
                "without --adapters."
            )
        found.append(load_params(folder / lora.FOLDER)[0])
    return open_model(start, report), found, start


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
    folder = workdir / PREFERENCE_MODEL
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


def _unfinished(workdir: Path, stage: str) -> RunError:
    underway = (workdir / stage / "checkpoints").is_dir()
    more = ", or `cai-jax export-weights --step=N` with one of its checkpoints" if underway else ""
    return RunError(f"{workdir} has no finished '{stage}'; run `cai-jax run` with it first{more}.")


def _noted(config: Path, *keys: str) -> list[str]:
    """Values of a run's config.json."""
    if not config.is_file():
        raise RunError(f"{config.parent} is no run: it has no config.json; give a run's --workdir.")
    try:
        settings = json.loads(config.read_text("utf-8"))
        return [settings[key] for key in keys]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{config} is damaged; run `cai-jax run` with this workdir again.") from (
            error
        )
