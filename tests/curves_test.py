"""Curves for other viewers: what is read of a workdir, and what TensorBoard and wandb are given."""

import json
import os
import sys
import types

import pytest
from event_file_test import read

from cai_jax import cli
from cai_jax.curves import curves
from cai_jax.training.metrics import MetricsLog


@pytest.fixture
def workdir(tmp_path):
    """Two stages with metrics, the second one underway, and a stage without."""
    folder = tmp_path / "run"
    for stage, steps in (("finetune", 3), ("ppo", 2)):
        log = MetricsLog(folder / stage / "metrics.jsonl")
        for step in range(1, steps + 1):
            perf = {"perf/step_seconds": 0.5 * step} if stage == "finetune" else {}
            log.write(step, {"train/loss": 1 / step, "odd": float("nan"), **perf})
        os.utime(log.path, (1000.0, 1000.0))
        (folder / stage / "inputs.json").write_text(json.dumps({"seed": 0}))
    (folder / "ppo" / "metrics.jsonl").open("a").write('{"step": 3, "train/lo')
    os.utime(folder / "ppo" / "metrics.jsonl", (2000.0, 2000.0))
    (folder / "revise").mkdir()
    (folder / "config.json").write_text(json.dumps({"seed": 7}))
    return folder


def test_rows_of_both_logs_and_their_times(workdir):
    found = curves(workdir)
    assert found["finetune"] == [
        (997.5, 1, {"train/loss": 1.0, "perf/step_seconds": 0.5}),
        (998.5, 2, {"train/loss": 0.5, "perf/step_seconds": 1.0}),
        (1000.0, 3, {"train/loss": 1 / 3, "perf/step_seconds": 1.5}),
    ]
    assert found["ppo"] == [(2000.0, 1, {"train/loss": 1.0}), (2000.0, 2, {"train/loss": 0.5})]


def test_a_log_that_is_being_written_is_left_as_it_is(workdir):
    before = (workdir / "ppo" / "metrics.jsonl").read_bytes()
    curves(workdir)
    assert (workdir / "ppo" / "metrics.jsonl").read_bytes() == before


def test_tensorboard(workdir, capsys):
    assert cli.main(["tensorboard", f"--workdir={workdir}"]) == 0
    assert f"tensorboard --logdir={workdir / 'tensorboard'}" in capsys.readouterr().out
    assert {p.name for p in (workdir / "tensorboard").iterdir()} == {"finetune", "ppo"}
    (file,) = (workdir / "tensorboard" / "finetune").iterdir()
    assert "tfevents" in file.name
    events = read(file)[1:]
    assert [(e.step, e.wall_time) for e in events] == [(1, 997.5), (2, 998.5), (3, 1000.0)]
    values = {v.tag: v.simple_value for v in events[1].summary.value}
    assert values == {"train/loss": 0.5, "perf/step_seconds": 1.0}
    assert cli.main(["tensorboard", f"--workdir={workdir}"]) == 0
    assert len(read(file)) == 4, "written again, not doubled"


def test_tensorboard_elsewhere(workdir, tmp_path):
    assert cli.main(["tensorboard", f"--workdir={workdir}", f"--to={tmp_path / 'to'}"]) == 0
    assert len(list((tmp_path / "to").iterdir())) == 2
    assert not (workdir / "tensorboard").exists()


@pytest.mark.parametrize("verb", ["tensorboard", "wandb"])
def test_a_workdir_without_metrics(verb, tmp_path, capsys):
    assert cli.main([verb, f"--workdir={tmp_path}"]) == 2
    assert f"{tmp_path} has no stage with a metrics.jsonl" in capsys.readouterr().err


def test_wandb_gets_the_same_rows_and_a_stage_keeps_its_id(workdir, monkeypatch):
    runs = []

    def init(**options):
        logged = []
        runs.append((options, logged))
        log = lambda scalars, step: logged.append((step, scalars))  # noqa: E731
        return types.SimpleNamespace(log=log, finish=lambda: logged.append("finished"))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        assert cli.main(["wandb", f"--workdir={workdir}", "--project=paper"]) == 0
    (finetune, rows), (ppo, _), (again, _), _ = runs
    assert finetune["project"] == "paper" and finetune["config"] == {"seed": 7}
    assert (finetune["group"], finetune["name"]) == ("run", "run finetune")
    assert finetune["id"] == again["id"] != ppo["id"] and finetune["resume"] == "allow"
    assert rows == [*((step, scalars) for _, step, scalars in curves(workdir)["finetune"]),
                    "finished"]  # fmt: skip


def test_wandb_that_is_not_there(workdir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.main(["wandb", f"--workdir={workdir}"]) == 2
    assert "pip install wandb" in capsys.readouterr().err
