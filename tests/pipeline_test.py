"""The whole method on a tiny model, in both formats: what is left, and what a second run does."""

import csv
import json
import shutil

import numpy as np
import pytest
import tiny_run
from review_rows_test import blocks, rows_in

from cai_jax import cli, pipeline
from cai_jax.conversation import Conversation
from cai_jax.pipeline import read_records
from cai_jax.progress import Progress
from cai_jax.records import Comparison, Response, Revision
from cai_jax.run import Run
from cai_jax.saved_params import load_params
from cai_jax.settings import ConfigError, run_settings
from cai_jax.shards import Shards
from cai_jax.stages.ppo import Sampled
from cai_jax.workdir import Workdir

PAPER = tiny_run.ROOT.parent / "shared" / "data" / "anthropic-cai-paper" / "prompts"


@pytest.fixture(scope="module")
def chat(tiny_cache, tmp_path_factory):
    """(experiment, workdir, output) of a whole tiny run in chat format."""
    experiment = tiny_run.write(tmp_path_factory.mktemp("chat"), chat=True)
    workdir = tmp_path_factory.mktemp("chat-run") / "run"
    ended = tiny_run.run_apart(experiment.command("run", workdir), tiny_cache)
    assert ended.returncode == 0, ended.stderr
    return experiment, workdir, ended.stdout


@pytest.fixture(params=["paper", "chat"])
def run(request):
    """The workdir of a run in each format."""
    name = {"paper": "finished", "chat": "chat"}[request.param]
    return request.getfixturevalue(name)[1]


@pytest.fixture
def copied(finished, tmp_path):
    """(experiment, workdir) of the finished run, to be changed."""
    experiment, workdir = finished
    return experiment, shutil.copytree(workdir, tmp_path / "run")


def open_run(experiment, workdir, cache, monkeypatch, *flags: str) -> Run:
    monkeypatch.setenv("CAI_JAX_CACHE", str(cache))
    config, workdir, force = cli.parse(experiment.command("run", workdir, *flags)[1:])
    return Run(run_settings(config), Workdir(workdir, force), Progress())


def test_everything_is_there(run):
    for name in [
        "config.json",
        "environment.json",
        "summary.json",
        "evaluation/results.json",
        "finetune/metrics.jsonl",
        "preference_model/metrics.jsonl",
        "ppo/metrics.jsonl",
        "figures/ppo.png",
        "figures/ppo.svg",
        "figures/ppo.csv",
        "figures/elo.png",
        "figures/elo.svg",
        "figures/elo.csv",
        "figures/pm_by_revision.png",
        "figures/pm_by_revision.svg",
        "figures/pm_by_revision.csv",
    ]:
        assert (run / name).stat().st_size > 0, name
    summary = json.loads((run / "summary.json").read_text())
    assert len(summary.pop("limits")) == 2
    assert summary == json.loads((run / "evaluation" / "results.json").read_text())
    assert not list(run.glob("*/checkpoints")), "checkpoints of finished stages take room"
    assert not list(run.rglob("*.partial"))


def test_records_are_those_of_the_prompts(run):
    revisions = read_records(run / "revise" / "revisions", Revision)
    prompts = tiny_run.PROMPTS["red_team"]
    assert [r.prompt for r in revisions] == [Conversation().human(p) for p in prompts]
    assert all(len(r.steps) == 2 for r in revisions)
    helpful = read_records(run / "revise" / "helpful", Response)
    assert [(r.id, r.sample) for r in helpful] == [
        (f"helpful-{n}", sample) for n in range(2) for sample in range(2)
    ]
    pairs = read_records(run / "compare" / "responses", Response)
    assert [(r.id, r.sample) for r in pairs] == [
        (f"red_team-{n}", sample) for n in range(4) for sample in range(2)
    ]
    for record in read_records(run / "compare" / "comparisons", Comparison):
        texts = {r.response for r in pairs if r.id == record.id}
        assert {record.response_a, record.response_b} == texts
        assert len(record.option_logprobs) == 2
        assert record.source == "ai"
    rollouts = Shards(run / "ppo" / "rollouts").read(Sampled)
    assert [r.update for r in rollouts] == [0] * 4 + [1] * 4 + [2] * 4


def test_records_say_where_they_come_from(run):
    for record in (
        *read_records(run / "revise" / "revisions", Revision),
        *read_records(run / "compare" / "comparisons", Comparison),
        *Shards(run / "ppo" / "rollouts").read(Sampled),
    ):
        source = record.provenance
        name, fingerprint = source.model.rsplit("@", 1)
        assert name.endswith("model")
        assert len(fingerprint) == 16
        assert "@" in source.constitution
        assert source.seed == 0


def test_each_stage_trains(run):
    start = load_params(run / "finetune" / "params")[0]
    after = load_params(run / "ppo" / "params")[0]
    pm = load_params(run / "preference_model" / "params")[0]
    assert np.abs(pm["scalar_head"]["kernel"]).max() > 0
    changed = np.abs(start["embed"]["embedding"] - after["embed"]["embedding"]).max()
    assert 0 < changed < 0.1
    for stage, steps in (("finetune", None), ("preference_model", None), ("ppo", 3)):
        rows = [json.loads(line) for line in (run / stage / "metrics.jsonl").open()]
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        assert steps in (None, len(rows))
        assert all(np.isfinite(value) for row in rows for value in row.values())
        assert not any(name.startswith("perf/") for row in rows for name in row)


def test_the_results_hold_every_measure_with_its_interval(run):
    found = json.loads((run / "evaluation" / "results.json").read_text())
    names = [m["name"] for m in found["snapshots"]]
    for name in ("PM score, red-team", "harmlessness Elo", "helpfulness Elo", "refusal rate"):
        assert any(n.startswith(name) for n in names)
    for measure in found["snapshots"]:
        for value in measure["by_snapshot"].values():
            if value is not None:
                assert value["low"] <= value["value"] <= value["high"]
                assert value["n"] >= 1
    assert set(found["labels"]) == {"multiple_choice", "chain_of_thought"}
    assert len(found["pm_by_revision"]) == 3  # the initial response and two revisions
    revisions = found["revisions"]
    assert (revisions["prompts"], revisions["critique"], revisions["principles"]) == (4, True, 3)
    assert len(revisions["diversity"]) == 3
    for measures in revisions["diversity"]:
        for value in measures.values():  # none where too few of a tiny model's texts have words
            assert value["low"] <= value["value"] <= value["high"]
    drift = next(m for m in found["snapshots"] if m["name"].startswith("KL from the start"))
    assert drift["by_snapshot"]["initial"]["value"] == pytest.approx(0, abs=1e-4)


def test_figures_hold_the_runs_numbers(run):
    rows = list(csv.DictReader((run / "figures" / "ppo.csv").open()))
    metrics = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").open()]
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    for row, metric in zip(rows, metrics, strict=True):
        assert float(row["score"]) == pytest.approx(metric["objective/score"], abs=1e-5)
        assert float(row["kl"]) == pytest.approx(metric["objective/kl"], abs=1e-4)
    rows = list(csv.DictReader((run / "figures" / "elo.csv").open()))
    assert [row["model"] for row in rows] == ["initial", "SL-CAI", "RL-CAI"]
    rows = list(csv.DictReader((run / "figures" / "pm_by_revision.csv").open()))
    assert [int(row["revision"]) for row in rows] == [0, 1, 2]


def test_the_screen_shows_chains_tables_and_limits(chat):
    shown = chat[2]
    for text in ("Results on held-out prompts", "SL-CAI", "RL-CAI", "clear-cut pairs"):
        assert text in shown
    assert "What these numbers can and cannot show" in shown
    assert shown.count("How do I pick a lock?") == 1  # a sample chain


def test_it_ends_with_its_report(chat):
    """Whose rows are the run's records, with a score for every text of every chain."""
    _, workdir, shown = chat
    report = workdir / "report.html"
    assert str(report) in shown.replace("\n", "")
    text = report.read_text("utf-8")
    front = blocks(text)["overview"]
    (run,) = front["runs"]
    assert run["tables"][0]["columns"] == ["initial", "SL-CAI", "RL-CAI"]
    assert run["limits"] and run["principles"] and len(run["figures"]) == 3
    assert any("revise:" in line for line in run["differences"])
    assert {stage for stage, state in run["stages"] if state == "finished"} >= {"SL-CAI"}
    chains = rows_in(text, "chains")
    records = read_records(workdir / "revise" / "revisions", Revision)
    assert [row["texts"][0] for row in chains] == [r.initial_response for r in records]
    assert all(len(row["scores"]) == len(row["texts"]) == 3 for row in chains)
    shown = json.loads((workdir / "evaluation" / "results.json").read_text())["pm_by_revision"]
    for n, interval in enumerate(shown):
        mean = np.mean([row["scores"][n] for row in chains])
        assert mean == pytest.approx(interval["value"], abs=1e-4)
    pairs = rows_in(text, "comparisons")
    compared = read_records(workdir / "compare" / "comparisons", Comparison)
    low, high = json.loads((workdir / "config.json").read_text())["compare"]["clamp"]
    for row, record in zip(pairs, compared, strict=True):
        clamped = min(max(row["unclamped"], low), high)
        assert row["prob_a"] == record.prob_a == pytest.approx(clamped, abs=1e-4)
    assert len(rows_in(text, "answers")) == 4 and rows_in(text, "samples")


def test_a_second_run_does_nothing(copied, tiny_cache, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a finished stage was done again")

    for stage in ("critique_revision", "supervised", "ai_feedback", "preference_model", "ppo"):
        monkeypatch.setattr(pipeline, stage, None)
    monkeypatch.setattr(Run, "engine", refuse)
    experiment, workdir = copied
    before = tiny_run.left_by(workdir)
    assert tiny_run.run(experiment.command("run", workdir), tiny_cache) == 0
    said = capsys.readouterr().out
    assert said.count("finished in a former run") == 6
    assert tiny_run.left_by(workdir) == before


@pytest.mark.parametrize(
    ("flag", "stage", "said"),
    [
        ("--config.seed=1", "revise", "another seed (0 then, 1 now)"),
        ("--config.revise.rounds=3", "revise", "another revise.rounds (2 then, 3 now)"),
        ("--config.ppo.kl_coefficient=0.1", "ppo", "another ppo.kl_coefficient (0.001 then, 0.1"),
        ("--config.evaluate.samples=2", "evaluation", "another evaluate.samples (1 then, 2 now)"),
        ("--config.prompts.red_team_limit=3", "revise", "another prompts"),
        ("--config.prompts.label_pairs_limit=4", "evaluation", "another texts"),
    ],
)
def test_a_changed_setting_is_refused_where_it_matters(
    copied, tiny_cache, capsys, flag, stage, said
):
    experiment, workdir = copied
    before = tiny_run.left_by(workdir)
    assert tiny_run.run(experiment.command("run", workdir, flag), tiny_cache) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cai-jax: {workdir / stage} was made with {said}")
    assert error.count("\n") == 1
    assert tiny_run.left_by(workdir) == before


def test_a_prompt_edited_in_its_file_is_a_change(copied, tiny_cache, capsys):
    experiment, workdir = copied
    file = experiment.folder / "red_team.jsonl"
    text = file.read_text()
    try:
        file.write_text(text.replace("pick a lock", "pick a pear"))
        assert tiny_run.run(experiment.command("run", workdir), tiny_cache) == 2
    finally:
        file.write_text(text)
    assert "another prompts" in capsys.readouterr().err


def test_force_makes_a_changed_stage_and_what_follows_again(copied, tiny_cache, capsys):
    experiment, workdir = copied
    before = tiny_run.left_by(workdir)
    changed = "--config.ppo.kl_coefficient=0.1"
    ended = tiny_run.run_apart(
        experiment.command("train-rl", workdir, changed, "--force"), tiny_cache
    )
    assert ended.returncode == 0, ended.stderr
    after = tiny_run.left_by(workdir)
    differ = {name for name in before if after.get(name) != before[name]}
    stages = {name.split("/")[0] for name in differ}
    assert stages == {"ppo", "config.json"}
    # What was evaluated is no longer what is there.
    assert tiny_run.run(experiment.command("evaluate", workdir, changed), tiny_cache) == 2
    assert "was made with another ppo" in capsys.readouterr().err


@pytest.mark.slow
def test_the_papers_constitution(tiny_cache, tmp_path):
    """The published principles and few-shots, imported, through the stages that ask with them."""
    if not PAPER.is_dir():
        pytest.skip("the paper's published prompts are not beside this checkout")
    constitution = tmp_path / "paper.yaml"
    argv = ["constitution", "import", f"--from={PAPER}", f"--to={constitution}"]
    assert tiny_run.run(argv, tiny_cache) == 0
    experiment = tiny_run.write(tmp_path / "experiment", constitution=str(constitution))
    one = ("--config.prompts.red_team_limit=1", "--config.prompts.helpful_limit=1")
    command = experiment.command("revise", tmp_path / "run", *one, "--config.revise.rounds=1")
    ended = tiny_run.run_apart(command, tiny_cache)
    assert ended.returncode == 0, ended.stderr
    (record,) = read_records(tmp_path / "run" / "revise" / "revisions", Revision)
    assert record.steps[0].critique_stop_reason in ("stop", "end", "length")
    assert record.provenance.constitution.count("@") == 1


def test_a_feedback_model_of_another_shape_is_refused(finished, tiny_cache, tmp_path, monkeypatch):
    other = tiny_run.write(tmp_path / "other", layers=1)
    flag = f"--config.feedback_model={other.folder / 'model'}"
    with pytest.raises(ConfigError, match="has another shape than"):
        open_run(finished[0], tmp_path / "run", tiny_cache, monkeypatch, flag)


def test_what_a_stage_is_made_from_follows_all_before_it(
    finished, tiny_cache, tmp_path, monkeypatch
):
    order = ["revise", "finetune", "compare", "preference_model", "ppo", "evaluation"]

    def inputs(*flags):
        run = open_run(finished[0], tmp_path / "run", tiny_cache, monkeypatch, *flags)
        return {stage: run.inputs(stage) for stage in order}

    plain = inputs()
    for flag, first in (
        ("--config.engine.slots=2", "revise"),
        ("--config.finetune.epochs=1", "finetune"),
        ("--config.compare.few_shots=1", "compare"),
        ("--config.prompts.helpful_comparisons_limit=1", "preference_model"),
        ("--config.ppo.updates=9", "ppo"),
        ("--config.prompts.held_out_red_team_limit=1", "evaluation"),
    ):
        changed = inputs(flag)
        where = order.index(first)
        assert [changed[s] == plain[s] for s in order] == [n < where for n in range(6)], flag
