"""SIGTERM: training saves where a step ends and stops, all else ends at once; both go on later."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import chex
import loop_test
import processes
import pytest
import tiny_run

from cai_jax.training.metrics import MetricsLog
from cai_jax.training.preemption import Terminated, ending, noted


def test_it_ends_what_need_not_save():
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="Stopped by SIGTERM") as caught, ending():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert not isinstance(caught.value, Exception), "else a damaged checkpoint could be blamed"
    assert signal.getsignal(signal.SIGTERM) == former


def test_it_is_noted_and_passed_on_when_nobody_asked():
    with ending():
        with noted() as asked:
            assert not asked()
            signal.raise_signal(signal.SIGTERM)
            assert asked() and asked()
        with pytest.raises(Terminated), noted() as asked:
            assert not asked()
            signal.raise_signal(signal.SIGTERM)


def test_in_another_thread_nothing_changes():
    def use():
        with ending(), noted() as asked:
            found.append(asked())

    found, former = [], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [False] and signal.getsignal(signal.SIGTERM) == former


@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_a_loop_saves_the_step_underway_and_goes_on_from_there(tmp_path, step):
    def on_step(done, state):
        if done == step:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Terminated, match=f"step {step} of 7 is saved in {tmp_path}") as caught:
        loop_test.run(tmp_path / "cut", on_step=on_step)
    assert "\n" not in str(caught.value)
    assert loop_test.steps_saved(tmp_path / "cut")[-1] == step
    assert len(MetricsLog(tmp_path / "cut" / "metrics.jsonl").rows()) == step
    whole, continued = (loop_test.run(tmp_path / name) for name in ("whole", "cut"))
    chex.assert_trees_all_equal(continued, whole)
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


# SIGTERM comes to one of two processes: both have to stop, at the same step.
TWO = """
    import os, signal, sys
    from pathlib import Path

    from cai_jax import hosts, mesh
    hosts.start()
    import jax, jax.numpy as jnp, numpy as np
    import loop_test
    from jax.sharding import NamedSharding, PartitionSpec
    from cai_jax.training.preemption import Terminated

    shape = dict.fromkeys(mesh.MESH_AXES, 1) | {"data": 2}
    everywhere = NamedSharding(mesh.make_mesh(shape), PartitionSpec())
    alone = loop_test.new_state
    loop_test.new_state = lambda: jax.device_put(alone(), everywhere)
    loop_test.batches = lambda step: np.full(4, step, np.float32)

    def on_step(done, state):
        if done == 5 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    for options in ({"on_step": on_step}, {}):
        try:
            print("reached", loop_test.run(Path(sys.argv[1]), 20, **options).step)
        except Terminated as stopped:
            print(str(stopped).split(" is saved")[0])
"""


def test_all_processes_stop_at_the_same_step(tmp_path):
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(TWO), str(tmp_path)],
            cwd=Path(__file__).parent,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                **joined,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for joined in processes.two()
    ]
    texts = [p.communicate(timeout=120) for p in pair]
    assert all(p.returncode == 0 for p in pair), texts
    for out, _ in texts:
        told = [line for line in out.splitlines() if line.startswith(("Stopped", "reached"))]
        assert told == ["Stopped by SIGTERM: step 6 of 20", "reached 20"]
    rows = MetricsLog(tmp_path / "metrics.jsonl").rows()
    assert [row["step"] for row in rows] == list(range(1, 21))


# Each verb in a process forked from one that has imported everything and computed nothing; it
# sends itself SIGTERM when the bar of this name tells of the second item.
DRIVER = """
    import json, os, signal, sys

    import cai_jax.report
    from cai_jax import cli, pipeline

    def stopping(make, name):
        def made(bar, *rest):
            tell = make(bar, *rest)

            def told(done, *more):
                tell(done, *more)
                if bar.name == name and done >= 2:
                    os.kill(os.getpid(), signal.SIGTERM)

            return told

        return made

    log, commands = sys.argv[1], json.loads(sys.argv[2])
    codes = []
    for name, command in commands:
        pid = os.fork()
        if not pid:
            os.dup2(os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY), 1)
            os.dup2(1, 2)
            pipeline.stepper = stopping(pipeline.stepper, name)
            pipeline.counter = stopping(pipeline.counter, name)
            os._exit(cli.main(command))
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(json.dumps(codes))
"""
STAGES = {
    "finetuning SL-CAI": ("finetune", "finetune"),
    "pairs of responses": ("compare", "compare"),
    "training the preference model": ("train-pm", "preference_model"),
    "PPO": ("train-rl", "ppo"),
}


@pytest.mark.slow
def test_each_stage_of_a_run(finished, tiny_cache, tmp_path):
    experiment, uninterrupted = finished
    workdir = shutil.copytree(uninterrupted, tmp_path / "run")
    commands = []
    for bar, (verb, folder) in STAGES.items():
        shutil.rmtree(workdir / folder)
        commands += [(bar, experiment.command(verb, workdir))]
        commands += [(None, experiment.command(verb, workdir))]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(DRIVER), tmp_path / "log",
         json.dumps(commands)],
        env=tiny_run.environment(tiny_cache), stdout=subprocess.PIPE, text=True, check=True,
        timeout=600,
    )  # fmt: skip
    log = (tmp_path / "log").read_text()
    assert json.loads(ended.stdout) == [143, 0] * len(STAGES), log[-2000:]
    said = [line for line in log.splitlines() if "SIGTERM" in line]
    assert len(said) == len(STAGES)
    assert all(line.endswith("; run the same command again to continue.") for line in said)
    assert said[1].startswith("Stopped by SIGTERM; "), "sampling has nothing to save"
    for number, what in {0: "step 3", 2: "step 2", 3: "update 2"}.items():
        assert said[number].startswith(f"Stopped by SIGTERM: {what} of ")
    found, expected = tiny_run.left_by(workdir), tiny_run.left_by(uninterrupted)
    assert found.keys() == expected.keys()
    assert not [name for name in expected if found[name] != expected[name]]
