"""What runs of the engine did, kept a row each in a stage's folder and added up."""

import json

import pytest

from cai_jax.decoding import Engine, stats
from cai_jax.decoding.stats import Stats
from cai_jax.script import Force, Sample, Script


def test_rows_add_up_and_half_a_line_counts_nothing(tmp_path):
    first = Stats(slots=8, sampled=10, rows_computed=12, rows_used=9, read=30, sample_seconds=2.0)
    more = Stats(slots=4, sampled=5, rows_computed=4, rows_used=3, read=10, shared=60, compiled=3)
    stats.keep(tmp_path / "revise" / stats.FILE, first)
    stats.keep(tmp_path / "ppo" / stats.FILE, more)
    with (tmp_path / "ppo" / stats.FILE).open("a") as log:
        log.write('{"at": 1.0, "sampled": 70')
    found = stats.total(tmp_path)
    assert found == Stats(
        slots=8, sampled=15, rows_computed=16, rows_used=12, read=40, shared=60, compiled=3,
        sample_seconds=2.0,
    )  # fmt: skip
    assert (found.occupancy, found.spared, found.tokens_per_second) == (0.75, 0.6, 7.5)
    assert stats.total(tmp_path / "nothing") == Stats()


def test_each_run_of_an_engine_is_reported(model):
    reported = []
    engine = Engine(model, slots=2, max_length=128, report=reported.append)
    scripts = [Script([Force("One"), Sample(max_new_tokens=3)], id=str(i)) for i in range(3)]
    engine.run(scripts)
    assert reported == [engine.stats] and 0 < reported[0].sampled <= 9
    with pytest.raises(ValueError):
        engine.run(scripts + scripts)
    assert len(reported) == 1


def test_a_run_keeps_what_each_stage_decoded(finished):
    _, workdir = finished
    rows = {
        stage: [json.loads(line) for line in (workdir / stage / stats.FILE).open()]
        for stage in ("revise", "compare", "ppo", "evaluation")
    }
    assert all(row["sampled"] > 0 for row in rows["revise"] + rows["ppo"])
    updates = (workdir / "ppo" / "metrics.jsonl").read_text().count("\n")
    assert len(rows["ppo"]) >= updates
    assert stats.total(workdir).sampled == sum(r["sampled"] for some in rows.values() for r in some)
