"""An ensemble of preference models: trained apart, scored with together, resumed alike."""

import json
import shutil

import numpy as np
import pytest
import tiny_run
from pipeline_test import open_run

from cai_jax.saved_params import load_params
from cai_jax.shards import Shards
from cai_jax.training.rollout import Sampled

pytestmark = pytest.mark.slow

MEMBERS = ("--config.preference_model.members=2", "--config.ppo.deviations=1.5")


@pytest.fixture(scope="module")
def agreed(finished, tiny_cache, tmp_path_factory):
    """The finished run, continued with a second member and PPO against both."""
    workdir = shutil.copytree(finished[1], tmp_path_factory.mktemp("agreed") / "run")
    shutil.rmtree(workdir / "ppo")  # made with one
    for verb in ("train-pm", "train-rl"):
        ended = tiny_run.run_apart(finished[0].command(verb, workdir, *MEMBERS), tiny_cache)
        assert ended.returncode == 0, ended.stderr
    return workdir


def test_one_more_member_leaves_the_first_as_it_was(finished, agreed):
    kept = "preference_model/metrics.jsonl"
    assert (agreed / kept).read_bytes() == (finished[1] / kept).read_bytes()
    mine, _ = load_params(agreed / "preference_model" / "params")
    other, _ = load_params(agreed / "preference_model_2" / "params")
    before, _ = load_params(finished[1] / "preference_model" / "params")
    kernel = lambda params: params["scalar_head"]["kernel"]  # noqa: E731
    np.testing.assert_array_equal(kernel(mine), kernel(before))
    assert np.abs(kernel(mine) - kernel(other)).max() > 1e-6
    told = [json.loads((agreed / s / "done.json").read_text())
            for s in ("preference_model", "preference_model_2")]  # fmt: skip
    assert told[0] == told[1]


def test_responses_are_scored_by_both_and_rewarded_less_where_they_differ(agreed):
    found = Shards(agreed / "ppo" / "rollouts").read(Sampled)
    metrics = [json.loads(line) for line in (agreed / "ppo" / "metrics.jsonl").open()]
    assert len(found) == 12
    for sampled in found:
        each = np.array(sampled.member_scores)
        assert each.shape == (2,) and each.std() > 0
        assert sampled.score == pytest.approx(each.mean() - 1.5 * each.std(), abs=1e-5)
    for row in metrics:
        spread = [np.std(r.member_scores) for r in found if r.update == row["step"] - 1]
        assert row["objective/members_deviation"] == pytest.approx(np.mean(spread), abs=1e-5)


def test_a_single_model_has_no_member_scores(finished):
    found = Shards(finished[1] / "ppo" / "rollouts").read(Sampled)
    assert found and all(r.member_scores == () for r in found)
    metrics = [json.loads(line) for line in (finished[1] / "ppo" / "metrics.jsonl").open()]
    assert not any("objective/members_deviation" in row for row in metrics)


def test_ppo_is_made_from_its_members(finished, tiny_cache, tmp_path, monkeypatch):
    def made_from(stage, *flags):
        run = open_run(finished[0], tmp_path / "run", tiny_cache, monkeypatch, *flags)
        return run.inputs(stage)

    assert made_from("preference_model") == made_from("preference_model", *MEMBERS)
    assert made_from("ppo") != made_from("ppo", MEMBERS[0])
    second = made_from("preference_model_2", *MEMBERS)
    assert second != made_from("preference_model", *MEMBERS)


def test_rl_wants_every_member(finished, tiny_cache, tmp_path, capsys):
    workdir = shutil.copytree(finished[1], tmp_path / "run")
    shutil.rmtree(workdir / "ppo")
    argv = finished[0].command("train-rl", workdir, *MEMBERS)
    assert tiny_run.run(argv, tiny_cache) == 2
    said = capsys.readouterr().err
    assert "preference_model_2" in said and "train-pm" in said


def test_held_out_comparisons_are_reported_on(finished):
    folder = finished[1] / "preference_model"
    done = json.loads((folder / "done.json").read_text())
    assert (done["ai"], done["human"], done["held_out"]) == (3, 1, 2)
    report = json.loads((folder / "held_out.json").read_text())
    assert list(report) == ["AI, harmlessness", "people, helpfulness"]
    for of in report.values():
        assert of["chooses_a"]["n"] == of["cross_entropy"]["n"] == 1
        assert of["cross_entropy"]["value"] >= of["label_entropy"]["value"]
    assert report["people, helpfulness"]["label_entropy"]["value"] == 0


def test_nothing_left_to_train_on_is_refused_before_anything_is_computed(
    finished, tiny_cache, tmp_path, capsys
):
    argv = finished[0].command("run", tmp_path / "run", "--config.preference_model.held_out=1.0")
    assert tiny_run.run(argv, tiny_cache) == 2
    assert "preference_model.held_out (1.0) leaves none of 6 comp" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
