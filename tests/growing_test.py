"""Logs that grow, in a bucket: when they are put, and what kills and resumed runs make of them."""

import json

import pytest
from gcs_stand_in import BUCKET

from cai_jax import growing, storage
from cai_jax.training.checkpoint import Checkpoints
from cai_jax.training.metrics import MetricsLog
from cai_jax.training.preemption import Terminated, ending


@pytest.fixture(autouse=True)
def _nothing_kept():
    killed()


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path, store):
    return storage.path(tmp_path if request.param == "disk" else f"gs://{BUCKET}/run")


@pytest.fixture
def log(store):
    return storage.path(f"gs://{BUCKET}/run/log")


def killed() -> None:
    """Forgets what a killed process would."""
    growing._kept.clear()


def test_a_text_is_read_as_it_was_written(folder):
    log = folder / "log"
    assert growing.read(log) == ""
    for line in ("one\n", "zwölf\n"):
        growing.append(log, line)
    assert growing.read(log) == "one\nzwölf\n"
    growing.replace(log, "one\n")
    growing.append(log, "two\n")
    growing.put_all()
    assert log.read_text("utf-8") == "one\ntwo\n"


def test_lines_are_put_once_a_minute_and_when_asked(store, log, monkeypatch):
    now = 0.0
    monkeypatch.setattr(growing.time, "monotonic", lambda: now)
    for now in range(0, 150, 10):
        growing.append(log, f"{now}\n")
    assert store.puts == ["run/log"] * 2
    assert log.read_text() == "".join(f"{n}\n" for n in range(0, 150, 10))
    growing.put_all()
    assert store.puts == ["run/log"] * 2  # nothing is new
    growing.append(log, "last\n")
    growing.put_all()
    assert log.read_text().endswith("140\nlast\n")


def test_a_second_writer_finds_the_first_ones_lines(log):
    growing.append(log, "one\n")
    growing.begin(log)
    growing.append(log, "two\n")
    growing.put_all()
    assert log.read_text() == "one\ntwo\n"


def test_a_log_follows_its_file(log):
    """A stage thrown away takes its log along, though the process goes on."""
    growing.append(log, "old\n")
    growing.put_all()
    log.unlink()
    growing.begin(log)
    growing.append(log, "new\n")
    assert growing.read(log) == "new\n"


def test_rows_are_in_the_bucket_before_the_checkpoint_of_their_step(store, log):
    checkpoints = Checkpoints(log.parent / "checkpoints", keep=1)
    metrics = MetricsLog(log.parent / "metrics.jsonl")
    metrics.write(1, {"train/loss": 0.5, "perf/step_seconds": 1.0})
    assert store.puts == []
    checkpoints.save(1, {"x": 1.0}, {})
    assert store.puts[:2] == ["run/metrics.jsonl", "run/perf.jsonl"]
    checkpoints.close()


def test_a_killed_and_resumed_log_equals_one_that_was_not(folder):
    def rows(steps):
        return [(n, {"train/loss": 1 / n}) for n in steps]

    whole = MetricsLog(folder / "whole.jsonl")
    for row in rows(range(1, 8)):
        whole.write(*row)
    log = MetricsLog(folder / "metrics.jsonl")
    for row in rows(range(1, 5)):
        log.write(*row)
    growing.put_all()  # a checkpoint of step 4
    log.write(*rows([5])[0])
    killed()
    log = MetricsLog(folder / "metrics.jsonl")
    log.truncate(4)
    for row in rows(range(5, 8)):
        log.write(*row)
    assert log.rows() == whole.rows() == [{"step": n, **m} for n, m in rows(range(1, 8))]
    assert (folder / "metrics.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()


def test_a_half_line_is_dropped(log):
    storage.put(log, json.dumps({"step": 1, "a": 2}).encode() + b'\n{"step": 2, "a')
    assert MetricsLog(log).rows() == [{"step": 1, "a": 2}]
    assert log.read_text().count("\n") == 1


@pytest.mark.parametrize("error", [Terminated, ValueError])
def test_the_end_of_a_command_puts_what_is_left(log, error):
    with pytest.raises(error), ending():
        growing.append(log, "last\n")
        raise error
    killed()
    assert growing.read(log) == "last\n"
