"""PPO on the feedback model's ratings in a run: no preference model is read."""

import json
import shutil

import numpy as np
import pytest
import tiny_run
from pipeline_test import open_run

from cai_jax.saved_params import load_params
from cai_jax.shards import Shards
from cai_jax.stages.ppo import Sampled

pytestmark = pytest.mark.slow

RATED = ("--config.ppo.reward=rating", "--config.ppo.value_init=zero_head")


@pytest.fixture(scope="module")
def rated(finished, tiny_cache, tmp_path_factory):
    """The workdir of the finished run without its preference model, with PPO made anew."""
    workdir = shutil.copytree(finished[1], tmp_path_factory.mktemp("rated") / "run")
    for stage in ("preference_model", "ppo"):
        shutil.rmtree(workdir / stage)
    ended = tiny_run.run_apart(finished[0].command("train-rl", workdir, *RATED), tiny_cache)
    assert ended.returncode == 0, ended.stderr
    return workdir


def test_it_needs_no_preference_model(rated, finished):
    assert json.loads((rated / "ppo" / "done.json").read_text())["updates"] == 3
    found = Shards(rated / "ppo" / "rollouts").read(Sampled)
    assert [r.update for r in found] == [0] * 4 + [1] * 4 + [2] * 4
    assert all(-1 <= r.score <= 1 and r.principle for r in found)
    start = load_params(rated / "finetune" / "params")[0]["embed"]["embedding"]
    for workdir in (rated, finished[1]):
        after = load_params(workdir / "ppo" / "params")[0]["embed"]["embedding"]
        assert np.abs(after - start).max() > 0


def test_without_ratings_it_needs_one(rated, finished, tiny_cache, capsys):
    command = finished[0].command("train-rl", rated, "--force")
    assert tiny_run.run(command, tiny_cache) == 2
    assert "preference_model" in capsys.readouterr().err


def test_questions_that_do_not_fit_are_refused_before_anything_is_computed(
    finished, tiny_cache, tmp_path, capsys
):
    short = "--config.engine.max_length=380"
    command = finished[0].command("run", tmp_path / "run", *RATED, short)
    assert tiny_run.run(command, tiny_cache) == 2
    assert "to rate a response the feedback model can need" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_it_is_made_from(finished, tiny_cache, tmp_path, monkeypatch):
    def made_from(*flags):
        run = open_run(finished[0], tmp_path / "run", tiny_cache, monkeypatch, *flags)
        return run.inputs("ppo")

    epochs = "--config.preference_model.epochs=3"
    assert made_from(*RATED) == made_from(*RATED, epochs)
    assert made_from() != made_from(epochs)
    assert made_from(*RATED) != made_from(*RATED, "--config.finetune.epochs=1")
    assert made_from(*RATED) != made_from(*RATED, "--config.compare.plain_text=True")
