"""A whole run by two processes that share a workdir: killed and started again, as one process's."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import tiny_run
from gcs_stand_in import BUCKET
from resume_test import assert_same

pytestmark = pytest.mark.slow

# Batches divide over two devices; little of each.
CHANGES = (
    "--config.finetune.batch_size=2", "--config.engine.slots=2", "--config.revise.rounds=1",
    "--config.preference_model.epochs=1", "--config.ppo.updates=2", "--config.ppo.save_every=1",
)  # fmt: skip
DEVICES = " --xla_force_host_platform_device_count=2"


def start(command, cache, **more):
    environment = tiny_run.environment(cache) | more
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "cai_jax.cli", *command], cwd=tiny_run.ROOT,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return tiny_run.write(tmp_path_factory.mktemp("anywhere"))


def anywhere(experiment, workdir, cache, hosts=2, verb="run", **more):
    """The launcher on `hosts` processes here, its output in a log of the workdir's name."""
    command = [sys.executable, "-W", "ignore", "-m", "cai_jax.cli"]
    command += experiment.command(verb, workdir, *CHANGES)
    environment = tiny_run.environment(cache) | {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    with open(log_of(experiment, workdir), "a") as log:
        return subprocess.Popen(
            [str(tiny_run.ROOT / "tpu" / "anywhere"), *["local"] * hosts, "--", *command],
            env=environment | {"GRACE": "0.1"} | more, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def log_of(experiment, workdir) -> Path:
    return experiment.folder / f"{Path(workdir).name}.log"


def children(pid):
    """Processes that run cai_jax below another one."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return [int(p) for p, parent, text in rows if int(parent) == pid and "cai_jax.cli" in text]


@pytest.fixture(scope="module")
def alone(experiment, tiny_cache):
    """What one process on two devices, which is not killed, leaves on a disk."""
    workdir = experiment.folder / "alone"
    flags = tiny_run.environment(tiny_cache)["XLA_FLAGS"] + DEVICES
    single = start(experiment.command("run", workdir, *CHANGES), tiny_cache, XLA_FLAGS=flags)
    said = single.communicate(timeout=900)[0]
    assert single.returncode == 0, said[-3000:]
    return but_the_machine(tiny_run.left_by(workdir))


def but_the_machine(left):
    return {name: content for name, content in left.items() if name != "environment.json"}


def killed_twice(launcher, there):
    """The launcher's exit code; a process of each of its first two attempts is killed.

    Args:
      there: whether the workdir has a file.
    """
    try:
        for appears, killed in (
            ("revise/revisions/00000-of-00002.jsonl", 1),
            ("ppo/rollouts/00000.jsonl", 0),
        ):
            until = time.monotonic() + 400
            while not there(appears) or len(found := children(launcher.pid)) < 2:
                assert time.monotonic() < until and launcher.poll() is None, appears
                time.sleep(0.02)
            os.kill(found[killed], signal.SIGKILL)
        return launcher.wait(timeout=900)
    finally:
        launcher.terminate()


def test_the_launcher_goes_on_where_a_killed_process_left_off(experiment, alone, tiny_cache):
    """As one process that is not killed, in all that it leaves."""
    both = experiment.folder / "both"
    code = killed_twice(anywhere(experiment, both, tiny_cache), lambda name: (both / name).exists())
    log = log_of(experiment, both).read_text()
    assert code == 0, log[-3000:]
    assert "ended with exit code 137" in log and "restart 2 of 20" in log
    assert_same(but_the_machine(tiny_run.left_by(both)), alone)


@pytest.mark.nightly
def test_so_it_does_with_the_workdir_in_a_bucket(experiment, alone, tiny_cache, store, tmp_path):
    run = f"gs://{BUCKET}/whole"
    code = killed_twice(
        anywhere(experiment, run, tiny_cache), lambda name: f"whole/{name}" in store.names()
    )
    log = log_of(experiment, run).read_text()
    assert code == 0, log[-3000:]
    assert "ended with exit code 137" in log and "restart 2 of 20" in log
    assert_same(but_the_machine(tiny_run.left_by(store.copy_to(tmp_path, "whole/"))), alone)
    assert not [name for name in store.names() if "/checkpoints/" in name]


@pytest.mark.nightly
def test_an_outage_of_the_bucket_is_a_restart(experiment, alone, tiny_cache, store, tmp_path):
    """Of one stage, by two processes; the store refuses once to take the second shard."""
    run, due = f"gs://{BUCKET}/stage", []
    first = "stage/revise/revisions/00000-of-00002.jsonl"
    store.on_put = lambda name: due.append(name) if name == first else None
    # 507 is of those that the client does not ask again after.
    store.fault = lambda method, path: due.pop() and 507 if method == "POST" and due else None
    code = anywhere(experiment, run, tiny_cache, verb="revise").wait(timeout=400)
    log = log_of(experiment, run).read_text()
    assert code == 0, log[-3000:]
    assert "ended with exit code 75" in log and "restart 1 of 20" in log
    assert "revise/revisions/00001-of-00002.jsonl cannot be reached" in log
    found = tiny_run.left_by(store.copy_to(tmp_path, "stage/"))
    stage = {name: content for name, content in alone.items() if name.startswith("revise/")}
    assert_same({name: found[name] for name in found if name.startswith("revise/")}, stage)


def test_the_launcher_does_not_repeat_what_has_to_be_mended(experiment, tiny_cache):
    workdir = experiment.folder / "wrong"
    launcher = anywhere(experiment, workdir, tiny_cache, hosts=3)  # 2 rows on 3 devices
    assert launcher.wait(timeout=200) == 2
    log = log_of(experiment, workdir).read_text()
    assert "does not divide" in log and "restart" not in log


def test_hosts_with_another_config_or_alone_stop_before_compute(experiment, tiny_cache):
    workdir = experiment.folder / "odd"
    command = experiment.command("run", workdir)
    first, second = processes.two()
    pair = [
        start([*command, *CHANGES], tiny_cache, **first),
        start([*command, *CHANGES, "--config.seed=1"], tiny_cache, **second),
    ]
    said = [process.communicate(timeout=120)[0] for process in pair]
    assert [process.returncode for process in pair] == [2, 2]
    assert all("the hosts differ in the config: host 1 (" in text for text in said)
    assert not workdir.exists()
