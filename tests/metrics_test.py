import json

import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.training.metrics import MetricsLog


def test_rows_and_perf_apart(tmp_path):
    log = MetricsLog(tmp_path / "stage" / "metrics.jsonl")
    log.write(1, {"train/loss": jnp.float32(0.1), "perf/seconds": 0.5, "n": np.int64(3)})
    assert log.path.read_text() == '{"step": 1, "n": 3, "train/loss": 0.10000000149011612}\n'
    assert log.perf_path.read_text() == '{"step": 1, "perf/seconds": 0.5}\n'
    assert np.float32(log.rows()[0]["train/loss"]) == np.float32(0.1)


def test_what_is_not_finite_is_null(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, {"a": float("nan"), "b": float("inf")})
    assert json.loads(log.path.read_text()) == {"step": 1, "a": None, "b": None}


@pytest.mark.parametrize(
    "tail", ['{"step": 3, "lo', '{"step": 3, "loss": 3}', "\x00\x00\x00", "3\n"]
)
def test_a_half_written_last_line_is_dropped(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n'
    path.write_text(good + tail)
    log = MetricsLog(path)
    assert path.read_text() == good
    log.write(3, {"loss": 3})
    assert [row["step"] for row in log.rows()] == [1, 2, 3]


def test_a_continued_log_equals_an_uninterrupted_one(tmp_path):
    whole, cut = (MetricsLog(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    for step in range(1, 7):
        whole.write(step, {"loss": step / 3})
    for step in range(1, 6):
        cut.write(step, {"loss": step / 3, "perf/s": 1.0})
    again = MetricsLog(cut.path)  # restored at step 2
    again.truncate(2)
    assert [row["step"] for row in again.rows()] == [1, 2]
    assert len(again.perf_path.read_text().splitlines()) == 2
    for step in range(3, 7):
        again.write(step, {"loss": step / 3})
    assert cut.path.read_bytes() == whole.path.read_bytes()


def test_truncate_to_zero_starts_anew(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.truncate(0)
    log.write(1, {"loss": 1})
    log.truncate(0)
    assert log.rows() == []
