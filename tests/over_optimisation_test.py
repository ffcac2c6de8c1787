"""A run with two preference models of two halves: what it leaves, its figure, how it resumes."""

import csv
import json
import shutil

import numpy as np
import pytest
import resume_test
import tiny_run
from pipeline_test import open_run

from cai_jax import cli
from cai_jax.datasets.splits import first_turn
from cai_jax.evaluation.goodhart import FOLDER, Baseline, zeros_of
from cai_jax.pipeline import read_records
from cai_jax.records import Comparison
from cai_jax.run import HELD_OUT
from cai_jax.saved_params import load_params
from cai_jax.shards import Shards
from cai_jax.stages import preference_model
from cai_jax.stages.ppo import Sampled

pytestmark = pytest.mark.slow

HALVES = (
    "--config.preference_model.halves=True",
    "--config.preference_model.held_out=0.0",  # of so few comparisons each half needs its own
)
# For each verb: when these appear, one process after another is killed.
MOMENTS = {
    "train-pm": (
        "preference_model/params",
        f"{HELD_OUT}/checkpoints/[0-9]*",
        f"{HELD_OUT}/params",
    ),
    "train-rl": (f"{FOLDER}/*.jsonl", "ppo/rollouts/00001.jsonl"),
}


def before(finished, folder):
    """A copy of the finished run as it was before its preference model."""
    workdir = shutil.copytree(finished[1], folder)
    for stage in ("preference_model", "ppo"):
        shutil.rmtree(workdir / stage)
    return workdir


@pytest.fixture(scope="module")
def studied(finished, tiny_cache, tmp_path_factory):
    """The workdir of the finished run with both preference models and PPO made anew."""
    workdir = before(finished, tmp_path_factory.mktemp("studied") / "run")
    for verb in MOMENTS:
        ended = tiny_run.run_apart(finished[0].command(verb, workdir, *HALVES), tiny_cache)
        assert ended.returncode == 0, ended.stderr
    return workdir


def test_two_models_of_two_halves(studied):
    told = [json.loads((studied / s / "done.json").read_text())
            for s in ("preference_model", HELD_OUT)]  # fmt: skip
    records = read_records(studied / "compare" / "comparisons", Comparison)
    assert sum(t["ai"] for t in told) == len(records) and all(t["ai"] for t in told)
    assert sum(t["human"] for t in told) == 2
    halves = [
        {first_turn(c) for c in preference_model.half(records, which)}
        for which in ("train", "test")
    ]
    assert not halves[0] & halves[1]
    train, held_out = (
        load_params(studied / s / "params")[0] for s in ("preference_model", HELD_OUT)
    )
    assert np.abs(held_out["scalar_head"]["kernel"]).max() > 0
    assert np.abs(train["scalar_head"]["kernel"] - held_out["scalar_head"]["kernel"]).max() > 0


def test_ppo_optimises_one_and_is_watched_with_both(studied):
    start = Shards(studied / FOLDER, 1).read(Baseline)
    assert {r.id for r in start} == {
        f"{name}-{n}" for name in ("held_out_red_team", "held_out_helpful") for n in range(2)
    }
    zeros = zeros_of(start)
    found = Shards(studied / "ppo" / "rollouts").read(Sampled)
    metrics = [json.loads(line) for line in (studied / "ppo" / "metrics.jsonl").open()]
    for row in metrics:
        part = [r for r in found if r.update == row["step"] - 1]
        for name, scores, zero in (
            ("monitor/score", [r.score for r in part], zeros[0]),
            ("monitor/held_out_score", [r.held_out_score for r in part], zeros[1]),
        ):
            assert row[name] == pytest.approx(np.mean(scores) - zero, abs=1e-4)
    assert any(r.score != r.held_out_score for r in found)
    told = json.loads((studied / "ppo" / "done.json").read_text())
    assert (told["updates"], told["stopped_as_held_out_fell"]) == (3, False)


@pytest.mark.nightly
def test_killed_in_each_half_it_ends_the_same(finished, studied, tiny_cache, tmp_path):
    workdir = before(finished, tmp_path / "run")
    for verb, moments in MOMENTS.items():
        command = finished[0].command(verb, workdir, *HALVES)
        codes = resume_test.run(command, workdir, tiny_cache, [*moments, None])
        assert codes == [-9] * len(moments) + [0], (tmp_path / "run.log").read_text()[-2000:]
    resume_test.assert_same(tiny_run.left_by(workdir), tiny_run.left_by(studied))
    assert not list(workdir.glob("*/checkpoints"))


def test_its_figure_shows_what_the_metrics_say(studied, tmp_path):
    argv = ["figures", "--figure=over-optimisation", f"--runs={studied}", f"--workdir={tmp_path}"]
    assert cli.main(argv) == 0
    rows = list(csv.DictReader((tmp_path / "over-optimisation.csv").open()))
    metrics = [json.loads(line) for line in (studied / "ppo" / "metrics.jsonl").open()]
    for panel, x in (("score by samples", [0, 4, 8]), ("length", None)):
        part = [r for r in rows if r["panel"] == panel]
        assert x is None or [float(r["x"]) for r in part] == x * 2
        names = ("monitor/score", "monitor/held_out_score") if x else ("monitor/words",)
        expected = [row[name] for name in names for row in metrics]
        assert [float(r["y"]) for r in part] == pytest.approx(expected, abs=1e-4)


def test_held_out_prompts_matter_to_a_watched_run_alone(
    finished, tiny_cache, tmp_path, monkeypatch
):
    def made_from(*flags):
        run = open_run(finished[0], tmp_path / "run", tiny_cache, monkeypatch, *flags)
        return run.inputs("ppo")

    fewer = "--config.prompts.held_out_red_team_limit=1"
    assert made_from() == made_from(fewer)
    assert made_from(*HALVES) != made_from(*HALVES, fewer)
    assert made_from() != made_from(*HALVES)


def test_prompts_of_one_half_are_refused_before_anything_is_computed(
    finished, tiny_cache, tmp_path, capsys
):
    flags = ("--config.prompts.red_team_limit=1", "--config.prompts.helpful_comparisons_limit=1")
    command = finished[0].command("run", tmp_path / "run", *HALVES, *flags)
    assert tiny_run.run(command, tiny_cache) == 2
    assert "all 2 comparisons have prompts of the same half" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
