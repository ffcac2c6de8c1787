"""PPO where something goes wrong: NaN, SIGTERM, a full disk, a damaged checkpoint."""

import dataclasses
import os
import resource

import jax
import jax.numpy as jnp
import numpy as np
import ppo_test
import pytest
from ppo_test import ROWS, SOURCE, scorer

from cai_jax.decoding import Engine
from cai_jax.saved_params import CheckpointError
from cai_jax.stages import ppo
from cai_jax.training import rollout as rollouts
from cai_jax.training import state
from cai_jax.training.loop import TrainingError
from cai_jax.training.preemption import Terminated

SETTINGS = dataclasses.replace(
    ppo_test.SETTINGS, updates=4, batch_size=8, epochs=1, minibatches=2, save_every=1
)
STEPS = {}  # compiled once for all runs, whose settings are the same


def train(folder, model, told=lambda *_: None, asked=lambda: False):
    """(params, all records and metrics) of a run in `folder`."""

    def kept(loss, *rest, make=state.make_step, **named):
        if loss.__qualname__ not in STEPS:
            STEPS[loss.__qualname__] = make(loss, *rest, **named)
        return STEPS[loss.__qualname__]

    copy = lambda tree: jax.tree.map(jnp.array, tree)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "make_step", kept)
        params = ppo.train_ppo(
            SETTINGS, Engine(model, 8, 128), model.format, copy(model.params), copy(model.params),
            [scorer(model)], ROWS, folder, 0, SOURCE, told, asked=asked,
        )  # fmt: skip
    return params, records(folder)


def records(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*.jsonl") if p.name != "perf.jsonl"}


def steps_saved(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
    assert found[1] == expected[1]


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"), model)


def test_nan_leaves_its_rollout_and_names_the_last_good_checkpoint(
    tmp_path, model, whole, monkeypatch
):
    good, calls = rollouts.score_texts, []

    def broken(*texts, **sizes):
        calls.append(1)
        found = good(*texts, **sizes)
        return np.where(np.arange(len(found)) == 3, np.nan, found) if len(calls) == 3 else found

    monkeypatch.setattr(rollouts, "score_texts", broken)
    with pytest.raises(TrainingError, match="is nan at PPO update 2: its batch is in") as caught:
        train(tmp_path, model)
    assert "the last good checkpoint is step 2 in" in str(caught.value)
    assert "\n" not in str(caught.value)
    with np.load(tmp_path / "bad_batch.npz") as bad:
        assert np.isnan(bad["rollout.score"]).tolist() == [n == 3 for n in range(8)]
        assert bad["rollout.response"].shape == (8, SETTINGS.response_tokens)
    assert steps_saved(tmp_path)[-1] == 2
    assert len(records(tmp_path)["metrics.jsonl"].splitlines()) == 2
    monkeypatch.undo()
    same(train(tmp_path, model), whole)


@pytest.mark.parametrize(("call", "saved"), [(1, 0), (2, 1), (3, 1), (4, 2), (8, 4)])
def test_sigterm_after_a_rollout_or_an_update(tmp_path, model, whole, call, saved):
    calls = iter(range(1, 100))
    with pytest.raises(Terminated, match=f"update {saved} of 4 is saved in {tmp_path}"):
        train(tmp_path, model, asked=lambda: next(calls) == call)
    assert steps_saved(tmp_path)[-1] == saved
    same(train(tmp_path, model), whole)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, model, whole):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def told(done, total, metrics):
        if done == 2:  # its checkpoint comes next
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))

    try:
        with pytest.raises(CheckpointError, match="could not be written to"):
            train(tmp_path, model, told)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps_saved(tmp_path) == [1]
    same(train(tmp_path, model), whole)


def test_a_damaged_checkpoint_is_skipped(tmp_path, model, whole):
    calls = iter(range(1, 100))

    def asked():
        if next(calls) == 6:  # the third update is saved
            raise Killed
        return False

    with pytest.raises(Killed):
        train(tmp_path, model, asked=asked)
    assert steps_saved(tmp_path) == [2, 3]
    for file in (tmp_path / "checkpoints" / "3" / "state").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    with pytest.warns(UserWarning, match="The checkpoint of step 3 in .* is damaged"):
        again = train(tmp_path, model)
    same(again, whole)
