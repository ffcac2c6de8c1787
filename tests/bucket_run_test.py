"""The whole method with its workdir in a bucket, killed on the way, against one on a disk."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import tiny_run
from gcs_stand_in import BUCKET

from cai_jax import storage
from cai_jax.goodput import wall_time
from cai_jax.snapshot_evaluation import read_runs

pytestmark = pytest.mark.slow

RUN = f"gs://{BUCKET}/run"


def killed_at(store, name: str, argv: list[str], cache) -> int:
    """A command's exit code; it is killed when that object has been written."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cai_jax.cli", *argv],
        cwd=tiny_run.ROOT, env=tiny_run.environment(cache), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    store.on_put = lambda put: put == name and os.kill(process.pid, signal.SIGKILL)
    try:
        return process.wait(timeout=600)
    finally:
        store.on_put = lambda put: None


@pytest.fixture(scope="module")
def ran(served, finished, tiny_cache):
    """(experiment, local workdir, store) of a run killed in PPO's third update, and continued."""
    served.clear()
    experiment, workdir = finished
    command = experiment.command("run", RUN)
    code = killed_at(served, "run/ppo/rollouts/00002.jsonl", command, tiny_cache)
    assert code == -signal.SIGKILL
    assert "run/ppo/checkpoints/2/commit_success.txt" in served.names()
    ended = tiny_run.run_apart(command, tiny_cache)
    assert ended.returncode == 0, ended.stderr
    return experiment, workdir, served


def test_it_leaves_what_a_run_on_a_disk_does(ran, tmp_path):
    _, workdir, store = ran
    found = tiny_run.left_by(store.copy_to(tmp_path, "run/"))
    expected = tiny_run.left_by(workdir)
    assert found.keys() == expected.keys()
    assert not [name for name in expected if found[name] != expected[name]]
    assert store.puts.count("run/ppo/rollouts/00002.jsonl") == 2
    assert store.puts.count("run/revise/done.json") == 1
    beside = [name for name in store.names("run/.") if name]
    assert not beside, "what was there for a moment takes room"
    assert not [name for name in store.names() if "/checkpoints/" in name]


def test_its_wall_time_counts_both_processes(ran):
    assert wall_time(storage.path(RUN)).processes == 2


def test_others_read_it(ran, tiny_cache, tmp_path, capsys):
    _, workdir, _ = ran
    own, local = (read_runs([folder]) for folder in (storage.path(RUN), workdir))
    assert own[1] == local[1] and own[0].keys() == local[0].keys()
    for name, run in (("own", RUN), ("local", str(workdir))):
        argv = ["figures", "--figure=5", f"--runs={run}", f"--workdir={tmp_path / name}"]
        assert tiny_run.run(argv, tiny_cache) == 0, capsys.readouterr().err
    tables = [(tmp_path / name / "figure5.csv").read_bytes() for name in ("own", "local")]
    assert tables[0] == tables[1]
    argv = ["tensorboard", f"--workdir={RUN}", f"--to={tmp_path}"]
    assert tiny_run.run(argv, tiny_cache) == 0, capsys.readouterr().err
    assert sorted(tmp_path.glob("*/events*"))


def test_labels_are_remade_in_place(ran, tiny_cache, tmp_path, capsys):
    experiment, workdir, store = ran
    local = shutil.copytree(workdir, tmp_path / "local")
    for where in (RUN, local):
        argv = experiment.command(
            "compare", where, "--relabel", "--config.compare.clamp=(0.4, 0.6)"
        )
        assert tiny_run.run(argv, tiny_cache) == 0, capsys.readouterr().err
    found = tiny_run.left_by(store.copy_to(tmp_path / "copy", "run/"))
    assert found == tiny_run.left_by(local)


def test_force_makes_one_stage_again(ran, tiny_cache, capsys):
    experiment, workdir, store = ran
    argv = experiment.command("finetune", RUN, "--config.finetune.epochs=1")
    assert tiny_run.run(argv, tiny_cache) == 2
    assert f"{RUN}/finetune was made with another finetune.epochs" in capsys.readouterr().err
    ended = tiny_run.run_apart([*argv, "--force"], tiny_cache)
    assert ended.returncode == 0, ended.stderr
    inputs = json.loads(store.objects[BUCKET, "run/finetune/inputs.json"])
    assert inputs["finetune"]["epochs"] == 1
    rows = store.objects[BUCKET, "run/finetune/metrics.jsonl"].count(b"\n")
    assert 2 * rows == (workdir / "finetune" / "metrics.jsonl").read_bytes().count(b"\n")
