"""Checkpoints in a bucket: bit for bit, also after a kill while saving, damage, or a lost network.

What they do on a disk is checkpoint_test's.
"""

import jax
import numpy as np
import pytest
from gcs_stand_in import BUCKET

from cai_jax import storage
from cai_jax.saved_params import CheckpointError, load_params, save_params
from cai_jax.storage import StorageError
from cai_jax.training.checkpoint import Checkpoints

FOLDER = f"gs://{BUCKET}/run/ppo/checkpoints"
PREFIX = "run/ppo/checkpoints/"


def state(step: int) -> dict:
    rng = np.random.default_rng(step)
    return {"w": rng.normal(size=(9, 5)).astype(np.float32), "deep": {"n": np.int32(step)}}


def opened() -> Checkpoints:
    return Checkpoints(FOLDER, keep=2)


def same(found, expected) -> bool:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.fixture
def saved(store):
    """Steps 1 to 3, of which two are kept."""
    checkpoints = opened()
    assert checkpoints.steps() == [] and checkpoints.restore(state(0)) is None
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"step": step})
    checkpoints.close()
    return store


def test_the_newest_is_read_and_the_oldest_dropped(saved):
    checkpoints = opened()
    assert checkpoints.steps() == [2, 3]
    found, extra = checkpoints.restore(state(0))
    assert same(found, state(3)) and extra == {"step": 3}
    assert saved.names(f"{PREFIX}1") == []


@pytest.mark.filterwarnings("ignore:The checkpoint of step 3")
def test_a_damaged_newest_is_set_aside(saved):
    for (bucket, name), data in list(saved.objects.items()):
        if name.startswith(f"{PREFIX}3/state/") and "/d/" in name:
            saved.objects[bucket, name] = bytes(len(data))
    before = len(saved.names(f"{PREFIX}3/"))
    found, extra = opened().restore(state(0))
    assert same(found, state(2)) and extra == {"step": 2}
    assert opened().steps() == [2]
    assert len(saved.names(f"{PREFIX}damaged-3/")) == before


@pytest.mark.parametrize("changes", [0, 1, 5, 10, 13])
def test_a_save_that_is_cut_short_leaves_the_one_before(saved, changes):
    saved.changes_left = changes
    with pytest.raises(StorageError, match="is forbidden"):
        opened().save(4, state(4), {})
    saved.changes_left = None
    checkpoints = opened()
    assert checkpoints.steps() == [2, 3]
    assert same(checkpoints.restore(state(0))[0], state(3))
    checkpoints.save(4, state(4), {})
    assert same(opened().restore(state(0))[0], state(4))


def test_a_bucket_out_of_reach_is_no_damage(saved):
    save_params(f"gs://{BUCKET}/run/params", state(1), {})
    checkpoints, names = opened(), saved.names()
    saved.readable = False
    with pytest.raises(StorageError, match="is forbidden"):
        checkpoints.restore(state(0))
    with pytest.raises(StorageError, match="is forbidden"):
        load_params(f"gs://{BUCKET}/run/params")
    saved.readable = True
    assert saved.names() == names
    assert same(checkpoints.restore(state(0))[0], state(3))


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 503])
def test_a_short_outage_is_waited_for(store, status):
    """By each of the clients that write or read a checkpoint."""
    left = 0

    def fault(method, path):
        nonlocal left
        left -= 1
        return status if left >= 0 else None

    store.fault = fault
    checkpoints, left = opened(), 3
    checkpoints.save(1, state(1), {})
    left = 3
    found, _ = checkpoints.restore(state(0))
    assert same(found, state(1)) and left < 0


def test_params_are_replaced(store):
    folder = storage.path(f"gs://{BUCKET}/run/finetune/params")
    with pytest.raises(CheckpointError, match="no saved parameters"):
        load_params(folder)
    for step in (1, 2):
        save_params(folder, state(step), {"step": step})
        found, metadata = load_params(folder)
        assert same(found, state(step)) and metadata == {"step": step}
