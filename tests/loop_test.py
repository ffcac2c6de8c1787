import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_test import CONFIG

from cai_jax import rng
from cai_jax.training import optimizer, state
from cai_jax.training.checkpoint import Checkpoints
from cai_jax.training.loop import TrainingError, train
from cai_jax.training.metrics import MetricsLog

OPTIMIZER = optimizer.make(CONFIG, 100)


def loss_fn(params, batch):
    return jnp.mean(jnp.square(params["kernel"] - batch)), {}


STEP = state.make_step(loss_fn, OPTIMIZER)


def new_state():
    return state.create({"kernel": jnp.zeros(4)}, OPTIMIZER)


def batches(step):
    return np.asarray(jax.random.normal(rng.key(0, "batches", step), (4,)))


def run(path, total=7, **options):
    checkpoints = Checkpoints(path / "checkpoints", 2)
    arguments = {"step_fn": STEP, "batches": batches, "save_every": 3, **options}
    try:
        return train(
            state=new_state(),
            total_steps=total,
            checkpoints=checkpoints,
            metrics_log=MetricsLog(path / "metrics.jsonl"),
            **arguments,
        )
    finally:
        checkpoints.close()


def steps_saved(path):
    return sorted(int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdigit())


def test_a_run_logs_each_step_and_saves_the_last(tmp_path):
    told = []
    final = run(tmp_path, progress=lambda *a: told.append(a))
    assert final.step == 7 and steps_saved(tmp_path) == [6, 7]
    rows = MetricsLog(tmp_path / "metrics.jsonl").rows()
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert rows[0]["train/loss"] == pytest.approx(float(np.square(batches(0)).mean()))
    assert [(step, total) for step, total, _ in told] == [(n, 7) for n in range(1, 8)]
    assert told[3][2]["train/loss"] == rows[3]["train/loss"]


def test_logging_is_one_step_late(tmp_path):
    events = []

    def step_fn(s, batch):
        events.append(("dispatch", int(s.step) + 1))
        return STEP(s, batch)

    run(
        tmp_path,
        total=3,
        step_fn=step_fn,
        save_every=10,
        progress=lambda step, *_: events.append(("log", step)),
        on_step=lambda step, s: events.append(("on_step", step, int(s.step))),
    )
    assert events == [
        ("dispatch", 1),
        ("on_step", 1, 1),
        ("dispatch", 2),
        ("log", 1),
        ("on_step", 2, 2),
        ("dispatch", 3),
        ("log", 2),
        ("on_step", 3, 3),
        ("log", 3),
    ]


@pytest.mark.parametrize("stop_after", [1, 3, 4, 6])
def test_a_stopped_and_continued_run_equals_an_uninterrupted_one(tmp_path, stop_after):
    whole = run(tmp_path / "whole")

    def failing(step):
        if step == stop_after:
            raise KeyboardInterrupt
        return batches(step)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", batches=failing)
    asked = []

    def counting(step):
        asked.append(step)
        return batches(step)

    continued = run(tmp_path / "cut", batches=counting)
    assert asked == list(range(stop_after // 3 * 3, 7))
    chex.assert_trees_all_equal(continued, whole)
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_kill_9_and_the_same_command_again(tmp_path):
    code = """
        import os, signal, sys
        from pathlib import Path
        import loop_test
        def on_step(step, state):
            if step == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
        loop_test.run(Path(sys.argv[1]), on_step=on_step)
    """

    def again(kill_at):
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "cut"), str(kill_at)]
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True).returncode

    assert again(5) == -signal.SIGKILL
    assert steps_saved(tmp_path / "cut") == [3]
    assert again(-1) == 0
    run(tmp_path / "whole")
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    code = """
        import resource, sys
        from pathlib import Path
        import loop_test
        from cai_jax.saved_params import CheckpointError
        def on_step(step, state):
            if step == 6:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            loop_test.run(Path(sys.argv[1]), on_step=on_step)
        except CheckpointError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "cut")]
    full = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert "could not be written to" in full.stdout and full.stdout.count("\n") == 1, full.stderr
    assert steps_saved(tmp_path / "cut") == [3]
    same_as_whole(tmp_path)


@pytest.mark.parametrize("damage", ["cut short", "mixed with another"])
def test_a_damaged_checkpoint_is_skipped(tmp_path, damage):
    def failing(step):
        if step == 6:
            raise KeyboardInterrupt
        return batches(step)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", batches=failing)
    assert steps_saved(tmp_path / "cut") == [3, 6]
    three, six = (tmp_path / "cut" / "checkpoints" / step / "state" for step in "36")
    if damage == "cut short":
        for file in six.rglob("*"):
            if file.is_file():
                os.truncate(file, file.stat().st_size // 2)
    else:
        shutil.rmtree(six)
        shutil.copytree(three, six)
    with pytest.warns(UserWarning, match="The checkpoint of step 6 in .* is damaged"):
        same_as_whole(tmp_path)


def same_as_whole(path):
    """What is in `cut` ends with the state and the metrics of an uninterrupted run."""
    chex.assert_trees_all_equal(run(path / "cut"), run(path / "whole"))
    logs = [(path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_perf_is_logged_of_every_step(tmp_path):
    def slow(step):
        time.sleep(0.1)
        return batches(step)

    asked = []

    def rates(step, seconds):
        asked.append((step, seconds))
        return {"perf/tokens_per_second": 4 / seconds}

    STEP(new_state(), batches(0))  # compiled before, which takes longer than a few batches
    run(tmp_path, batches=slow, rates=rates)
    rows = [json.loads(line) for line in (tmp_path / "perf.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [step for step, _ in asked] == list(range(1, 8))
    for row, (_, seconds) in zip(rows, asked, strict=True):
        assert row["perf/step_seconds"] == seconds and 0 <= row["perf/wait_share"] <= 1
        assert row["perf/tokens_per_second"] == 4 / seconds
    assert min(row["perf/wait_share"] for row in rows[:2]) > 0.3, "each batch is late"


def test_a_finished_run_does_nothing_again(tmp_path):
    first = run(tmp_path)
    log = (tmp_path / "metrics.jsonl").read_bytes()

    def none(step):
        raise AssertionError("no batch is needed")

    chex.assert_trees_all_equal(run(tmp_path, batches=none), first)
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_more_steps_continue_and_fewer_are_refused(tmp_path):
    run(tmp_path, total=4)
    chex.assert_trees_all_equal(run(tmp_path, total=7), run(tmp_path / "whole"))
    with pytest.raises(TrainingError, match="is at step 7, past the 5 steps asked for"):
        run(tmp_path, total=5)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    def poisoned(step):
        return np.full(4, np.nan, np.float32) if step == 4 else batches(step)

    with pytest.raises(TrainingError) as caught:
        run(tmp_path, batches=poisoned)
    message = str(caught.value)
    assert "train/loss is nan at step 5" in message and "last good checkpoint is step 3" in message
    assert "bad_batch.npz" in message and "\n" not in message
    assert np.isnan(np.load(tmp_path / "bad_batch.npz")["batch"]).all()
    assert steps_saved(tmp_path) == [3]
    assert [r["step"] for r in MetricsLog(tmp_path / "metrics.jsonl").rows()] == [1, 2, 3, 4]
    chex.assert_trees_all_equal(run(tmp_path), run(tmp_path / "whole"))


def test_a_gradient_that_is_not_finite_is_not_saved_although_its_loss_is(tmp_path):
    # sqrt has an infinite slope at 0: step 3 has a finite loss, and params nobody should keep.
    def loss(params, batch):
        value = jnp.sqrt(jnp.abs(params["kernel"] * batch)).sum()
        return value, {}

    step_fn = state.make_step(loss, OPTIMIZER)
    with pytest.raises(
        TrainingError, match=r"train/grad_norm is (nan|inf) at step 1.*no checkpoint"
    ):
        run(tmp_path, step_fn=step_fn, save_every=1)
    assert steps_saved(tmp_path) == []


def test_the_bad_batch_keeps_the_names_of_its_arrays(tmp_path):
    def poisoned(step):
        return {"tokens": np.arange(3), "more": {"x": np.full(4, np.inf, np.float32)}}

    step_fn = state.make_step(lambda p, b: loss_fn(p, b["more"]["x"]), OPTIMIZER)
    with pytest.raises(TrainingError):
        run(tmp_path, step_fn=step_fn, batches=poisoned)
    with np.load(tmp_path / "bad_batch.npz") as bad:
        assert set(bad) == {"tokens", "more.x"} and bad["tokens"].tolist() == [0, 1, 2]


def test_frozen_params_reach_the_step(tmp_path):
    step_fn = state.make_step(lambda p, b, r: loss_fn(p, b + r), OPTIMIZER)
    run(tmp_path, total=1, step_fn=step_fn, frozen=(jnp.float32(10.0),))
    row = MetricsLog(tmp_path / "metrics.jsonl").rows()[0]
    assert row["train/loss"] == pytest.approx(float(np.square(batches(0) + 10).mean()))


def test_no_steps_still_leave_a_checkpoint(tmp_path):
    assert run(tmp_path, total=0).step == 0
    assert steps_saved(tmp_path) == [0]
