"""Snapshots of runs compared from the command line, by a model, a preference model or people."""

import csv
import json
import shutil
from pathlib import Path

import human_preferences_test
import pytest
import tiny_run

from cai_jax import cli
from cai_jax.conversation import Conversation
from cai_jax.evaluation.revision_scores import ScoredRevisions
from cai_jax.evaluation.scored_pairs import FOLDER, ScoredPair
from cai_jax.evaluation.snapshot_comparisons import SnapshotComparison
from cai_jax.pipeline import read_records
from cai_jax.records import to_line


def command(workdir, *settings: str) -> list[str]:
    config = f"--config={tiny_run.ROOT}/experiments/snapshots.py"
    own = ("resamples=20", f"constitution={tiny_run.ROOT}/constitutions/general.yaml")
    flags = [f"--config.{setting}" for setting in (*own, *settings)]
    return ["evaluate", config, f"--workdir={workdir}", *flags]


@pytest.mark.slow
def test_two_runs_by_a_model(finished, tiny_cache, tmp_path, capsys):
    experiment, workdir = finished
    twin = shutil.copytree(workdir, tmp_path / "twin")
    settings = f"runs={workdir},{twin}", f"judge={experiment.folder}/model"
    assert tiny_run.run(command(tmp_path / "w", *settings), tiny_cache) == 0
    shown = capsys.readouterr().out
    assert "twin RL-CAI" in shown and "Win rates, harmlessness" in shown
    found = json.loads((tmp_path / "w" / "results.json").read_text())
    assert found["anchor"] == "run SL-CAI"
    assert found["snapshots"]["twin RL-CAI"] == {
        "run": "twin", "snapshot": "rl_cai", "sequences": 12,
        "parameters": json.loads((workdir / "summary.json").read_text())["parameters"],
    }  # fmt: skip
    elo = found["standings"]["red_team"]["elo"]
    assert len(elo) == 6 and elo["run SL-CAI"]["value"] == 0
    made = read_records(tmp_path / "w" / "comparisons" / "records", SnapshotComparison)
    assert len(made) == 15 * 4
    same = [c for c in made if {c.snapshot_a, c.snapshot_b} == {"run RL-CAI", "twin RL-CAI"}]
    assert {c.prob_a for c in same} == {0.5}
    rows = list(csv.DictReader((tmp_path / "w" / "win_rates.csv").open()))
    assert len(rows) == 2 * 6 * 5
    assert tiny_run.run(command(tmp_path / "w", *settings), tiny_cache) == 0
    assert "finished in a former run" in capsys.readouterr().out
    for number, folder in ((2, "w"), (3, "w"), (8, "w"), (2, "twin"), (5, "twin"), (8, "twin")):
        argv = ["figures", f"--figure={number}", f"--runs={tmp_path / folder}"]
        assert tiny_run.run([*argv, f"--workdir={tmp_path / folder}"], tiny_cache) == 0
        drawn = capsys.readouterr().out.splitlines()
        assert [Path(file).suffix for file in drawn] == [".csv", ".png", ".svg"]


def test_a_run_leaves_its_preference_models_scores(finished, tiny_cache, tmp_path):
    _, workdir = finished
    found = read_records(workdir / FOLDER, ScoredPair)
    told = json.loads((workdir / "summary.json").read_text())["preference_model"]
    assert {p.source for p in found} == set(told) and len(found) == 4
    for source, accuracy in told.items():
        right = [p.better > p.worse for p in found if p.source == source]
        assert accuracy["value"] == sum(right) / len(right)
    argv = ["figures", "--figure=calibration", f"--runs={workdir}", f"--workdir={tmp_path}"]
    assert tiny_run.run(argv, tiny_cache) == 0
    assert (tmp_path / "calibration.png").stat().st_size > 10_000


@pytest.mark.slow
def test_figures_of_revisions_made_otherwise(finished, tiny_cache, tmp_path, capsys):
    experiment, workdir = finished
    other = "--config.revise.critique=False", "--config.revise.principles=2"
    ended = tiny_run.run_apart(experiment.command("run", tmp_path / "direct", *other), tiny_cache)
    assert ended.returncode == 0, ended.stderr
    for number in (5, 7):  # three revisions of six tokens have too few words for figure 6
        argv = ["figures", f"--figure={number}", f"--runs={workdir},{tmp_path / 'direct'}"]
        assert tiny_run.run([*argv, f"--workdir={tmp_path}"], tiny_cache) == 0
        drawn = capsys.readouterr().out.splitlines()
        assert [Path(file).suffix for file in drawn] == [".csv", ".png", ".svg"]


def test_one_run_by_its_preference_model(finished, tiny_cache, tmp_path):
    _, workdir = finished
    argv = command(tmp_path / "w", f"runs={workdir}", f"preference_model={workdir}")
    assert tiny_run.run(argv, tiny_cache) == 0
    found = json.loads((tmp_path / "w" / "results.json").read_text())
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    own = next(m for m in results["snapshots"] if m["name"] == "harmlessness Elo")["by_snapshot"]
    elo = found["standings"]["red_team"]["elo"]
    for title, snapshot in (("initial", "initial"), ("RL-CAI", "rl_cai")):
        assert elo[title]["value"] == pytest.approx(own[snapshot]["value"], abs=0.01)
    scores = [each["score"]["value"] for each in found["pm_by_revision"]["run"]]
    assert scores == pytest.approx([i["value"] for i in results["pm_by_revision"]], rel=1e-4)


def test_two_runs_by_a_preference_model_of_people(finished, tiny_cache, tmp_path, capsys):
    experiment, workdir = finished
    twin = shutil.copytree(workdir, tmp_path / "twin")
    judge = human_preferences_test.trained(experiment, tmp_path, tiny_cache)
    settings = f"runs={workdir},{twin}", f"preference_model={judge}", "shard_size=2"
    argv = command(tmp_path / "w", *settings)
    assert tiny_run.run(argv, tiny_cache) == 0
    assert "PM score of red-team revisions, twin" in capsys.readouterr().out
    found = json.loads((tmp_path / "w" / "results.json").read_text())
    assert f"preference model of {judge}@" in found["judge"]
    own, other = found["pm_by_revision"]["run"], found["pm_by_revision"]["twin"]
    assert own == other and len(own) == 3 and own[0]["over_initial"] is None
    for each in own[1:]:
        lead = each["score"]["value"] - own[0]["score"]["value"]
        assert each["over_initial"]["difference"]["value"] == pytest.approx(lead, abs=1e-6)
        assert each["score"]["n"] == each["over_initial"]["difference"]["n"] == 4
    made = read_records(tmp_path / "w" / "revisions-run" / "scores", ScoredRevisions)
    assert len(made) == 4 and {r.judge for r in made} == {found["judge"]}

    before = tiny_run.left_by(tmp_path / "w")
    (tmp_path / "w" / "revisions-twin" / "done.json").unlink()
    (tmp_path / "w" / "revisions-twin" / "scores" / "00001-of-00002.jsonl").unlink()
    assert tiny_run.run(argv, tiny_cache) == 0
    assert "revisions of run: finished in a former run" in capsys.readouterr().out
    assert tiny_run.left_by(tmp_path / "w") == before

    figure = ["figures", "--figure=5", f"--workdir={tmp_path}"]
    assert tiny_run.run([*figure, f"--runs={tmp_path / 'w'}"], tiny_cache) == 0
    rows = list(csv.DictReader((tmp_path / "figure5.csv").open()))
    mine = [r for r in rows if r["source"] == "ours"]
    assert len(mine) == 2 * 3 and {float(r["y"]) for r in mine if r["x"] == "0"} == {0.0}
    capsys.readouterr()
    assert tiny_run.run([*figure, f"--runs={tmp_path / 'w'},{workdir}"], tiny_cache) == 2
    assert "name the one kind or the other" in capsys.readouterr().err

    shutil.rmtree(twin / "revise")
    assert tiny_run.run(command(tmp_path / "v", *settings), tiny_cache) == 2
    assert "twin has no finished 'revise'" in capsys.readouterr().err


def test_peoples_comparisons(tiny_cache, tmp_path, capsys):
    prompt = Conversation().human("Hello?")
    made = [
        SnapshotComparison("old", "new", f"p{n}", "helpful", prompt, "a", "b", 0.0, "people", ())
        for n in range(6)
    ]
    (tmp_path / "people.jsonl").write_text("".join(map(to_line, made)))
    argv = command(tmp_path / "w", f"records={tmp_path}/people.jsonl")
    assert tiny_run.run(argv, tiny_cache) == 0
    assert "Judged by people." in capsys.readouterr().out
    found = json.loads((tmp_path / "w" / "results.json").read_text())
    assert found["anchor"] == "old" and found["standings"]["helpful"]["elo"]["new"]["value"] > 200

    folder = tmp_path / "records"
    folder.mkdir()
    argv = command(tmp_path / "shards", f"records={folder}")
    assert tiny_run.run(argv, tiny_cache) == 2
    assert "records holds no comparisons of snapshots." in capsys.readouterr().err
    (folder / "00000.jsonl").write_text("".join(map(to_line, made[:2])))
    (folder / "00001.jsonl").write_text("".join(map(to_line, made[2:])))
    assert tiny_run.run(argv, tiny_cache) == 0
    assert json.loads((tmp_path / "shards" / "results.json").read_text()) == found


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["runs=nowhere"], "give one judge: config.judge"),
        (["runs=nowhere", "judge=x", "preference_model=y"], "not 2 of them"),
        (["judge=x"], "config.runs is empty"),
        (["runs=nowhere", "judge=x"], "nowhere has no finished 'evaluation'"),
        (["runs=a/x,b/x", "judge=x"], "two folders have one name"),
        (["records=nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_used(capsys, tmp_path, settings, sentence):
    assert cli.main(command(tmp_path / "w", *settings)) == 2
    assert sentence in capsys.readouterr().err
