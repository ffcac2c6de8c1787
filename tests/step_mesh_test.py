"""The training steps on meshes of eight devices and in two processes of four: one device's numbers.

Three steps each of finetuning, the preference model, PPO's policy, its value function, both on one
trunk, and a preference model's adapters, from the same start. A device mesh cannot be had in a
process that has begun with one device, so all runs are in processes of their own.
"""

import json
import subprocess
import sys
import textwrap

import numpy as np
import processes
import pytest
import tiny_run
from fakes import tiny_model

pytestmark = pytest.mark.slow

# (slice, data, fsdp, sequence, tensor). The tiny model has 2 heads of keys and values to split.
ONCE = {"slice, fsdp, sequence": (2, 1, 2, 2, 1)}
MORE = {
    "2x4": (1, 2, 4, 1, 1),
    "8x1": (1, 8, 1, 1, 1),
    "4x2": (1, 4, 2, 1, 1),
    "sequence 4, tensor": (1, 1, 1, 4, 2),
    "sequence 4, fsdp": (1, 1, 2, 4, 1),
    "slices": (2, 2, 2, 1, 1),
}
APART = (2, 1, 2, 2, 1)  # a slice each process
STAGES = ("sl", "pm", "policy", "value", "shared", "adapters")

PROGRAM = """
    import dataclasses, json, sys
    from pathlib import Path

    from cai_jax import hosts
    from cai_jax.mesh import MESH_AXES, layout, make_mesh, place, row_ways, shard_batch

    hosts.start()
    import jax, jax.numpy as jnp, numpy as np
    from fakes import tiny_model
    from jax.experimental.multihost_utils import process_allgather
    from ppo_test import SETTINGS as PPO, scorer
    from supervised_test import OPTIMIZER

    from cai_jax.batch import Rollout, comparison_batch, pack
    from cai_jax.models import lora
    from cai_jax.models.scoring import jit_reply_logprobs
    from cai_jax.stages import preference_model, supervised
    from cai_jax.training import optimizer, state
    from cai_jax.training.advantages import Minibatch
    from cai_jax.training.ppo_losses import (
        make_policy_loss, make_shared_loss, make_value_loss
    )

    folder, meshes = Path(sys.argv[1]), json.loads(sys.argv[2])
    assert jax.device_count() == 8
    model = tiny_model(tied_embeddings=True, vocab_size=264)
    config, draw = model.config, np.random.default_rng(0)
    text = lambda low, high: draw.integers(0, 259, draw.integers(low, high)).tolist()

    # 50 and 30 tokens and 10 + 6 of a reply: no number of devices divides all of them.
    texts = [text(3, 30) for _ in range(20)]
    (packed, *_) = pack([(t, [True] * len(t)) for t in texts], 50, 8)
    assert packed.segment_ids.max() > 2
    pairs = [(text(3, 30), text(3, 30)) for _ in range(8)]
    compared = comparison_batch(pairs, draw.uniform(size=8), np.ones(8), 30)
    prompt, reply = (draw.integers(0, 259, (8, n)).astype(np.int32) for n in (10, 6))
    prompt_mask = np.arange(10) >= draw.integers(0, 9, (8, 1))
    mask = np.arange(6) < draw.integers(1, 7, (8, 1))
    sampled, _ = jit_reply_logprobs(
        config, model.params, prompt, prompt_mask, reply, mask, PPO.temperature
    )
    values, advantages, returns = draw.normal(size=(3, 8, 6)).astype(np.float32)
    rollout = Rollout(
        prompt, prompt_mask, reply, mask, np.asarray(sampled), np.asarray(sampled), values,
        np.zeros(8, np.float32),
    )
    replies = Minibatch(rollout, advantages, returns, rollout.score)
    policy = make_policy_loss(config, PPO.temperature, PPO.clip, "none")
    value = make_value_loss(config, PPO.value_clip, "none")
    shared = make_shared_loss(config, PPO.temperature, PPO.clip, PPO.value_clip, 0.1, "none")
    stages = {
        "sl": (supervised.make_loss(config, "full"), model.params, packed),
        "pm": (preference_model.make_loss(config, "none"), scorer(model), compared),
        "policy": (policy, model.params, replies),
        "value": (value, scorer(model), replies),
        "shared": (shared, model.params | scorer(model), replies),
    }
    adapted = lora.adapted(scorer(model), lora.Lora(4, 8.0), 0, "test")
    normal = lambda x: jnp.asarray(0.3 * draw.normal(size=x.shape), jnp.float32)
    of_adapters = adapted.loss(preference_model.make_loss(config, "none"))
    stages["adapters"] = (of_adapters, jax.tree.map(normal, adapted.trained), compared)
    opt = optimizer.make(dataclasses.replace(OPTIMIZER, eps=1e-3), 3)
    for name, shape in meshes.items():
        mesh = shape and make_mesh(dict(zip(MESH_AXES, shape)))
        for stage, (loss, params, batch) in stages.items():
            now = place(state.create(jax.tree.map(jnp.array, params), opt), mesh)
            microbatches = 2 if stage == "sl" and not (mesh and row_ways(mesh) > 4) else 1
            step = state.make_step(loss, opt, microbatches, layout(now))
            frozen = [place(adapted.base, mesh)] if stage == "adapters" else []
            losses = []
            for _ in range(3):
                now, metrics = step(now, shard_batch(batch, mesh), *frozen)
                losses.append(float(metrics["train/loss"]))
            assert step._cache_size() == 1
            found = process_allgather(now.params, tiled=True) if mesh else now.params
            if jax.process_index() == 0:
                flat = jax.tree_util.tree_flatten_with_path(found)[0]
                named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}
                np.savez(folder / f"{name} {stage}.npz", losses=losses, **named)
"""


def start(folder, meshes, devices, cache, **more):
    environment = tiny_run.environment(cache) | more
    environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), json.dumps(meshes)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(*started):
    for process in started:
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err[-3000:]


def read(folder, name, stage):
    return dict(np.load(folder / f"{name} {stage}.npz"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_cache):
    """Folder of what one of the eight devices finds by itself."""
    folder = tmp_path_factory.mktemp("one")
    end(start(folder, {"one": None}, 8, tiny_cache))
    return folder


@pytest.fixture(scope="module", params=[ONCE, pytest.param(MORE, marks=pytest.mark.nightly)])
def found(request, tmp_path_factory, tiny_cache):
    """(folder, names) of what meshes of eight devices find."""
    folder = tmp_path_factory.mktemp("meshes")
    end(start(folder, request.param, 8, tiny_cache))
    return folder, list(request.param)


def assert_close(found, expected):
    """Losses within 2e-5 of themselves or of 1, params within 1e-5.

    Float32 sums in another order change a gradient clipped to norm 1 by some 1e-7. With eps = 1e-3
    Adam's step has a slope of at most learning rate / eps = 10 in the gradient, which makes 1e-6 of
    that; with the usual 1e-8 a gradient that is all rounding would step as far as any other. The
    policy's loss is near 0, of terms near 1 whose ratios magnify what the params differ by.
    """
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(found.pop("losses"), expected.pop("losses"), rtol=2e-5, atol=2e-5)
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_params_are_those_of_one_device(alone, found, stage):
    folder, names = found
    for name in names:
        assert_close(read(folder, name, stage), read(alone, "one", stage))


def test_the_params_move_much_further_than_the_tolerance(alone):
    before = np.asarray(tiny_model(vocab_size=264).params["final_norm"]["scale"])
    after = read(alone, "one", "sl")["['final_norm']['scale']"]
    assert np.abs(after - before).mean() > 1e-3


def test_two_processes_train_as_one(alone, tmp_path, tiny_cache):
    end(*(start(tmp_path, {"apart": APART}, 4, tiny_cache, **joined) for joined in processes.two()))
    for stage in STAGES:
        assert_close(read(tmp_path, "apart", stage), read(alone, "one", stage))
