import os
import signal
import subprocess
import sys
import textwrap
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax import saved_params
from cai_jax.saved_params import CheckpointError
from cai_jax.training.checkpoint import Checkpoints, trained_params


def new_state(offset=0.0):
    values = np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32)
    return {
        "step": jnp.int32(7),
        "params": {"a": jnp.asarray(values + np.float32(offset)), "b": jnp.ones(4, jnp.bfloat16)},
        "opt_state": (jnp.array([True, False]), {"c": jnp.float32(np.pi)}),
    }


def same(a, b):
    chex.assert_trees_all_equal(jax.device_get(a), jax.device_get(b), strict=True)
    assert jax.tree.structure(a) == jax.tree.structure(b)


def saved(path, steps=(1, 2), keep=3):
    checkpoints = Checkpoints(path, keep)
    for step in steps:
        checkpoints.save(step, new_state(step), {"note": step})
    checkpoints.close()


def test_round_trip_is_exact_and_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "c", 2)
    assert checkpoints.restore(new_state()) is None
    for step in (1, 2, 10):
        checkpoints.save(step, new_state(step), {"note": [step]})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 10]
    state, extra = checkpoints.restore(new_state())
    same(state, new_state(10))
    assert extra == {"note": [10]}
    checkpoints.close()


def test_special_values_survive(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    odd = {"x": jnp.array([np.nan, -0.0, np.inf, 1e-45, np.finfo(np.float32).max], jnp.float32)}
    checkpoints.save(0, odd, {})
    state, _ = checkpoints.restore(odd)
    assert np.asarray(state["x"]).tobytes() == np.asarray(odd["x"]).tobytes()


def test_a_template_without_memory_will_do(tmp_path):
    saved(tmp_path)
    template = jax.eval_shape(new_state)
    state, _ = Checkpoints(tmp_path, 3).restore(template)
    same(state, new_state(2))


def test_the_state_may_be_donated_at_once(tmp_path):
    state = new_state()
    expected = jax.device_get(jax.tree.map(jnp.copy, state))
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, state, {})
    add = jax.jit(lambda s: jax.tree.map(lambda x: (x * 0).astype(x.dtype), s), donate_argnums=0)
    state = add(add(state))
    same(jax.device_get(checkpoints.restore(state)[0]), expected)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: {**s, "params": {**s["params"], "a": jnp.zeros((3, 501))}},
            r"holds float32\[3,500\] at params/a, where this run's config needs float32\[3,501\]",
        ),
        (
            lambda s: {**s, "params": {**s["params"], "b": jnp.ones(4)}},
            r"holds bfloat16\[4\] at params/b, where this run's config needs float32\[4\]",
        ),
        (
            lambda s: {**s, "more": jnp.ones(2)},
            r"holds nothing at more, where this run's config needs float32\[2\]",
        ),
        (
            lambda s: {k: v for k, v in s.items() if k != "opt_state"},
            r"holds bool\[2\] at opt_state/0, where this run's config needs nothing",
        ),
    ],
)
def test_another_shape_is_refused_in_one_sentence_and_nothing_is_lost(tmp_path, change, message):
    saved(tmp_path)
    checkpoints = Checkpoints(tmp_path, 3)
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match=message) as caught:
        warnings.simplefilter("error")
        checkpoints.restore(change(new_state()))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert checkpoints.steps() == [1, 2]


def files(path):
    return [p for p in sorted(path.rglob("*")) if p.is_file() and p.stat().st_size > 0]


def data_files(path):
    return [p for p in files(path) if p.parent.name == "d"]


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [halve, flip_one_bit, lambda path: path.unlink()])
@pytest.mark.parametrize(
    "which",
    [
        lambda newest: data_files(newest),
        lambda newest: data_files(newest)[:1],
        lambda newest: [newest / "state" / "manifest.ocdbt"],
        lambda newest: [newest / "state" / "_METADATA"],
        lambda newest: [newest / "document" / "metadata"],
    ],
)
def test_a_damaged_newest_is_set_aside_with_a_warning(tmp_path, damage, which):
    saved(tmp_path)
    victims = which(tmp_path / "2")
    assert victims
    for victim in victims:
        damage(victim)
    checkpoints = Checkpoints(tmp_path, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state, extra = checkpoints.restore(new_state())
    messages = [str(w.message) for w in caught if "damaged" in str(w.message)]
    if extra == {"note": 2}:  # the damage hit bytes that nothing reads: then all is there
        same(state, new_state(2))
        return
    same(state, new_state(1))
    assert extra == {"note": 1}
    assert len(messages) == 1 and "step 2" in messages[0] and "damaged-2" in messages[0]
    checkpoints.save(2, new_state(2), {"note": "again"})  # the run goes on over it
    assert checkpoints.restore(new_state())[1] == {"note": "again"}
    assert (tmp_path / "damaged-2").is_dir()


def test_truncated_data_is_never_read_as_values(tmp_path):
    # The one above allows damage without effect; this much damage must be seen.
    saved(tmp_path)
    for victim in files(tmp_path / "2" / "state"):
        halve(victim)
    with pytest.warns(UserWarning, match="step 2"):
        state, _ = Checkpoints(tmp_path, 3).restore(new_state())
    same(state, new_state(1))


def test_values_that_changed_behind_valid_files_are_noticed(tmp_path):
    saved(tmp_path)
    document = tmp_path / "2" / "document" / "metadata"
    text = document.read_text()
    document.write_text(text.replace('"step": ', '"step": 1'))
    assert document.read_text() != text
    with pytest.warns(UserWarning, match="values of step are not those that were saved"):
        _, extra = Checkpoints(tmp_path, 3).restore(new_state())
    assert extra == {"note": 1}


def test_when_all_are_damaged_it_says_so(tmp_path):
    saved(tmp_path, steps=(1,))
    for victim in files(tmp_path / "1"):
        halve(victim)
    with (
        pytest.warns(UserWarning, match="step 1"),
        pytest.raises(CheckpointError, match=r"Every checkpoint in .* is damaged; remove"),
    ):
        Checkpoints(tmp_path, 3).restore(new_state())


def python(code, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


SAVE_FOREVER = """
    import sys
    import jax.numpy as jnp
    from cai_jax.training.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], 1)
    for step in range(1, 10_000):
        checkpoints.save(step, {"x": jnp.full((4, 1_000_000), step, jnp.float32)}, {"step": step})
        print(step, flush=True)
"""


def test_kill_9_while_saving_leaves_a_good_checkpoint(tmp_path):
    template = {"x": jnp.zeros((4, 1_000_000))}
    last = 0
    for tries in range(3):
        process = python(SAVE_FOREVER.replace("range(1,", f"range({last + 1},"), tmp_path)
        for _ in range(2):
            last = int(process.stdout.readline())
        # The next save begins now: wait for its temporary folder, then a little, then kill.
        while not any("tmp" in p.name for p in tmp_path.iterdir()):
            pass
        signal.sigtimedwait([], 0.004 * tries)
        process.kill()
        process.communicate()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            checkpoints = Checkpoints(tmp_path, 1)
            state, extra = checkpoints.restore(template)
        assert extra["step"] >= last
        assert (np.asarray(state["x"]) == extra["step"]).all()
        assert not any("tmp" in p.name for p in tmp_path.iterdir())
        last = extra["step"]
        checkpoints.close()


def test_a_disk_that_takes_no_more_gives_one_sentence(tmp_path):
    saved(tmp_path, steps=(1,))
    code = """
        import resource, sys
        import jax.numpy as jnp
        from cai_jax.saved_params import CheckpointError
        from cai_jax.training.checkpoint import Checkpoints
        checkpoints = Checkpoints(sys.argv[1], 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            checkpoints.save(2, {"x": jnp.arange(100_000.0)}, {})
            checkpoints.wait()
        except CheckpointError as error:
            print(error)
    """
    out, err = python(code, tmp_path).communicate(timeout=60)
    assert "could not be written to" in out and str(tmp_path) in out, err
    assert out.count("\n") == 1
    assert Checkpoints(tmp_path, 2).restore(new_state())[1] == {"note": 1}


def test_restores_on_another_device_count(tmp_path):
    code = """
        import sys
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from cai_jax.saved_params import save_params
        from cai_jax.training.checkpoint import Checkpoints
        mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        place = NamedSharding(mesh, P("a", "b"))
        x = jax.device_put(np.arange(32, dtype=np.float32).reshape(8, 4), place)
        one = Checkpoints(sys.argv[1], 2)
        if sys.argv[2] == "save":
            one.save(1, {"x": x}, {})
            save_params(sys.argv[1] + "-params", {"x": x}, {})
        else:
            back = one.restore({"x": x * 0})[0]["x"]
            assert back.sharding == place and (np.asarray(back) == np.asarray(x) + 1).all()
        one.close()
    """
    eight = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    process = python(code, tmp_path / "c", "save", env=eight)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    expected = np.arange(32, dtype=np.float32).reshape(8, 4)
    checkpoints = Checkpoints(tmp_path / "c", 2)
    state, _ = checkpoints.restore({"x": jnp.zeros((8, 4))})
    assert (np.asarray(state["x"]) == expected).all()
    params, _ = saved_params.load_params(tmp_path / "c-params")
    assert (np.asarray(params["x"]) == expected).all() and len(params["x"].devices()) == 1
    checkpoints.save(2, {"x": state["x"] + 1}, {})
    checkpoints.close()
    process = python(code, tmp_path / "c", "load", env=eight)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 0, err


def test_params_round_trip_and_are_replaced(tmp_path):
    path = tmp_path / "final"
    saved_params.save_params(path, {"a": {"kernel": jnp.ones((2, 3))}}, {"name": "first"})
    saved_params.save_params(path, new_state(1)["params"], {"name": "sl-cai"})
    params, metadata = saved_params.load_params(path)
    same(params, new_state(1)["params"])
    assert metadata == {"name": "sl-cai"}
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params, _ = saved_params.load_params(path, {"a": place, "b": place})
    same(params, new_state(1)["params"])


def test_params_missing_or_damaged_give_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"no saved parameters at .*nowhere"):
        saved_params.load_params(tmp_path / "nowhere")
    saved_params.save_params(tmp_path / "p", new_state()["params"], {})
    for victim in files(tmp_path / "p" / "params"):
        halve(victim)
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        saved_params.load_params(tmp_path / "p")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", [MemoryError("no room"), PermissionError("not yours")])
def test_the_machines_own_faults_are_not_taken_for_damage(tmp_path, monkeypatch, fault):
    """Whoever reads that a checkpoint is damaged removes it."""
    saved_params.save_params(tmp_path / "params", new_state()["params"], {})
    saved(tmp_path / "run")

    def fails(tree):
        raise fault

    monkeypatch.setattr(saved_params, "checksums", fails)
    for read in (
        lambda: saved_params.load_params(tmp_path / "params"),
        lambda: trained_params(tmp_path / "run", 2),
        lambda: Checkpoints(tmp_path / "run", 3).restore(new_state()),
    ):
        with pytest.raises(type(fault), match=str(fault)):
            read()
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["1", "2"]
