"""A run by DPO, from a finished run's comparisons, killed on its way; and the best of n answers."""

import csv
import json
import shutil

import numpy as np
import pytest
import tiny_run
from resume_test import assert_same, run

from cai_jax.evaluation.snapshots import Answer, Candidate, best_of_kl
from cai_jax.finished_models import model_of_run
from cai_jax.pipeline import read_records
from cai_jax.saved_params import load_params
from cai_jax.stages.dpo import Reference

pytestmark = pytest.mark.slow

FLAGS = ("--config.algorithm=dpo", "--config.evaluate.best_of=3")
BEFORE = ("revise", "finetune", "compare", "preference_model")
MOMENTS = {
    "between shards of the reference": "dpo/reference/00000-of-*.jsonl",
    "while a checkpoint is written": "dpo/checkpoints/2.orbax*",
    "after a checkpoint": "dpo/checkpoints/4",
    "before RL-CAI is marked as finished": "dpo/params",
    "after the candidates of the best of n": "evaluation/candidates/*.jsonl",
}


@pytest.fixture(scope="module")
def ended(finished, tiny_cache, tmp_path_factory):
    """(workdir, output) of the tiny run whose RL-CAI and evaluation are made by DPO."""
    experiment, done = finished
    workdir = tmp_path_factory.mktemp("dpo") / "run"
    for stage in BEFORE:
        shutil.copytree(done / stage, workdir / stage)
    process = tiny_run.run_apart(experiment.command("run", workdir, *FLAGS), tiny_cache)
    assert process.returncode == 0, process.stderr
    return workdir, process.stdout


def test_it_needs_no_ppo_and_repeats_nothing(ended, finished):
    workdir, said = ended
    assert said.count("finished in a former run") == len(BEFORE)
    assert not (workdir / "ppo").exists()
    assert not list(workdir.glob("figures/ppo.*"))
    assert (workdir / "figures" / "elo.csv").exists()
    done = json.loads((workdir / "dpo" / "done.json").read_text())
    assert done == {"ai": 4, "human": 2, "too_long_and_left_out": 0}
    assert "that learnt from the same comparisons as RL-CAI" in " ".join(said.split())


def test_it_trains_from_sl_cai_on_every_pair(ended):
    workdir, _ = ended
    rows = [json.loads(line) for line in (workdir / "dpo" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]  # 6 pairs, twice
    assert rows[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert {name.split("/")[0] for name in rows[0]} == {"step", "train", "policy"}
    assert rows[-1]["policy/reference_kl"] != 0
    ids = [r.id for r in read_records(workdir / "dpo" / "reference", Reference)]
    assert len(ids) == len(set(ids)) == 6
    start, after = (load_params(workdir / s / "params")[0] for s in ("finetune", "dpo"))
    changed = np.abs(start["embed"]["embedding"] - after["embed"]["embedding"]).max()
    assert 0 < changed < 0.1
    model, _ = model_of_run(workdir, None, lambda text: None)
    assert model.name.endswith("after dpo")
    np.testing.assert_array_equal(model.params["embed"]["embedding"], after["embed"]["embedding"])


def test_the_best_of_n_are_those_that_score_highest(ended):
    workdir, said = ended
    answers = read_records(workdir / "evaluation" / "answers", Answer)
    names = dict.fromkeys(a.snapshot for a in answers)
    assert list(names) == ["initial", "sl_cai", "rl_cai", "best_of"]
    candidates = read_records(workdir / "evaluation" / "candidates", Candidate)
    best = [a for a in answers if a.snapshot == "best_of"]
    assert len(candidates) == 3 * len(best) == 3 * 4
    for answer in best:
        of = [c for c in candidates if c.id == answer.id]
        assert answer.response == max(of, key=lambda c: c.score).response
        assert answer.sample == 0
    own = {a.id: a for a in answers if a.snapshot == "sl_cai"}
    assert any(a.response != own[a.id].response for a in best)
    assert "SL-CAI, best of 3" in said
    assert f"log n - (n - 1) / n = {best_of_kl(3):.2f} nats" in " ".join(said.split())
    found = json.loads((workdir / "evaluation" / "results.json").read_text())
    by = {m["name"]: m["by_snapshot"] for m in found["snapshots"]}
    drift = by["KL from the start in nats, red-team"]
    expected = np.mean([a.kl for a in best if a.kind == "red_team"])
    assert drift["best_of"]["value"] == pytest.approx(expected, abs=1e-4)
    assert "best_of" not in by["perplexity of held-out helpful text"]


def test_a_kill_changes_nothing(ended, finished, tiny_cache, tmp_path):
    experiment, done = finished
    expected, _ = ended
    workdir = tmp_path / "run"
    for stage in BEFORE:
        shutil.copytree(done / stage, workdir / stage)
    codes = run(
        experiment.command("run", workdir, *FLAGS), workdir, tiny_cache, [*MOMENTS.values(), None]
    )
    assert codes == [-9] * len(MOMENTS) + [0], (tmp_path / "run.log").read_text()[-2000:]
    assert_same(tiny_run.left_by(workdir), tiny_run.left_by(expected))


def test_its_snapshots_are_compared_and_drawn(ended, tiny_cache, tmp_path):
    workdir, _ = ended
    argv = ["evaluate", f"--config={tiny_run.ROOT}/experiments/snapshots.py",
            f"--workdir={tmp_path}", f"--config.runs={workdir}", "--config.resamples=20",
            f"--config.preference_model={workdir}",
            f"--config.constitution={tiny_run.ROOT}/constitutions/general.yaml"]  # fmt: skip
    assert tiny_run.run(argv, tiny_cache) == 0
    found = json.loads((tmp_path / "results.json").read_text())["snapshots"]
    assert [(name, of["sequences"]) for name, of in found.items()] == [
        ("initial", 0), ("SL-CAI", 0), ("RL-CAI", 2 * 6 * 2), ("SL-CAI, best of 3", 0),
    ]  # fmt: skip
    for number in (2, 8):
        argv = ["figures", f"--figure={number}", f"--runs={tmp_path}", f"--workdir={tmp_path}"]
        assert tiny_run.run(argv, tiny_cache) == 0
    rows = list(csv.DictReader((tmp_path / "figure8.csv").open()))
    assert {float(row["x"]) for row in rows if row["series"] == "run"} == {0, 24}


def test_both_algorithms_in_one_workdir(ended, finished, tiny_cache, tmp_path, capsys):
    """The stages before are shared; RL-CAI is the config's, and an evaluation says of which."""
    experiment, done = finished
    workdir = shutil.copytree(done, tmp_path / "run")
    shutil.copytree(ended[0] / "dpo", workdir / "dpo")
    capsys.readouterr()
    assert tiny_run.run(experiment.command("train-rl", workdir, FLAGS[0]), tiny_cache) == 0
    assert "DPO: finished in a former run" in capsys.readouterr().out
    assert tiny_run.run(experiment.command("evaluate", workdir, FLAGS[0]), tiny_cache) == 2
    assert "evaluation was made with another dpo" in capsys.readouterr().err
    assert model_of_run(workdir, None, lambda text: None)[0].name.endswith("after ppo")
    assert model_of_run(workdir, "dpo", lambda text: None)[0].name.endswith("after dpo")


def test_an_algorithm_that_there_is_not(finished, tiny_cache, tmp_path, capsys):
    argv = finished[0].command("train-rl", tmp_path / "run", "--config.algorithm=grpo")
    assert tiny_run.run(argv, tiny_cache) == 2
    assert "config.algorithm is 'grpo'; it must be 'ppo' or 'dpo'." in capsys.readouterr().err
