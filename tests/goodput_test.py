"""Where wall time went: notes of several processes, one of which was stopped."""

import json
import re
import time

import jax
import jax.numpy as jnp
import pytest

from cai_jax import goodput
from cai_jax.decoding.stats import Stats


def rows(*found):
    return "".join(json.dumps(row) + "\n" for row in found)


@pytest.fixture
def workdir(tmp_path):
    """Two processes, the first stopped in its second stage; days later a third command."""
    (tmp_path / goodput.FILE).write_text(
        rows(
            {"launched": 100.0, "at": 102.0, "event": "start"},
            {"launched": 100.0, "at": 120.0, "event": "stage", "stage": "revise", "seconds": 18.0,
             "compile_seconds": 5.0},
            {"launched": 150.0, "at": 151.0, "event": "start"},
            {"launched": 150.0, "at": 180.0, "event": "stage", "stage": "finetune", "seconds": 20.0,
             "compile_seconds": 2.0},
            {"launched": 150.0, "at": 181.0, "event": "end", "first_step_seconds": 4.0},
            {"launched": 90000.0, "at": 90001.0, "event": "start"},
            {"launched": 90000.0, "at": 90009.0, "event": "end", "first_step_seconds": None},
        )
        + '{"half a line'
    )  # fmt: skip
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "perf.jsonl").write_text(
        rows(
            {"step": 1, "perf/step_seconds": 10.0, "perf/wait_share": 0.1},
            {"step": 2, "perf/step_seconds": 5.0, "perf/wait_share": 0.2,
             "perf/checkpoint_seconds": 3.0},
        )
    )  # fmt: skip
    return tmp_path


def test_time_is_counted_once_and_not_between_commands(workdir):
    found = goodput.wall_time(workdir)
    assert found.total == (150.0 - 100.0) + 31.0 + 9.0 and found.processes == 3
    assert found.stages == {"revise": 18.0, "finetune": 20.0} and found.compiling == 7.0
    assert found.parts["input"] == 2.0 and found.parts["checkpoint"] == 3.0
    assert found.unfinished == 90.0 - 38.0 and found.first_step is None
    decoded = Stats(
        sampled=1200, rows_computed=1000, rows_used=930, read=300, shared=500, forked=200,
        read_seconds=1.0, sample_seconds=3.0,
    )  # fmt: skip
    line, more, decoding = goodput.sentences(found, decoded)
    assert decoding == (
        "decoding 4 s: reading 25%, sampling 75%, choosing 0%; 1,200 tokens sampled, 300 a second, "
        "slots 93% busy; of 1,000 tokens to read 70% were there already"
    )
    assert line.startswith("wall time 1:30 in 3 processes: revise 20%, finetune 22%, starts and")
    assert more.endswith("compiling 8%; in training checkpoint 3%, input 2%")


def test_a_process_notes_its_stages_and_what_it_compiled(tmp_path):
    launched = time.time() - 8
    ledger = goodput.Ledger(tmp_path, launched)
    with ledger.stage("revise"):
        jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) * 3.125)(jnp.ones(7)))
    with pytest.raises(KeyboardInterrupt), ledger.stage("finetune"):
        raise KeyboardInterrupt
    now = time.time()
    ledger._compiles.append((now + 60, 1000.0))  # which is after the first step
    ledger.end(first_step=now + 30)
    noted = [json.loads(line) for line in (tmp_path / goodput.FILE).read_text().splitlines()]
    assert [row["event"] for row in noted] == ["start", "stage", "end"]
    assert 0 < noted[1]["compile_seconds"] < noted[1]["seconds"]
    found = goodput.wall_time(tmp_path)
    assert found.first_step == pytest.approx(38, abs=2)
    assert found.before_first_step == {
        "starting": pytest.approx(8, abs=0.5),
        "compiling": pytest.approx(noted[1]["compile_seconds"], abs=1),
    }
    line, more = goodput.sentences(found, Stats())
    assert more.endswith("%")  # no stage has trained
    assert re.search(
        r"first step after \d+ s \(starting 8, compiling \d, loading and running \d+\)", line
    )
