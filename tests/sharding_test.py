"""On a mesh of eight devices each stage does what it does on one.

A device mesh cannot be had in a process that has begun with one device, so the stages run in
processes of their own with eight virtual ones.
"""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tiny_run

pytestmark = pytest.mark.slow

# (slice, data, fsdp, sequence, tensor). The tiny model has 2 heads of keys and values to split.
ONCE = [(1, 2, 2, 1, 2)]
MORE = [(1, 2, 4, 1, 1), (1, 1, 4, 1, 2), (1, 1, 8, 1, 1), (1, 8, 1, 1, 1), (2, 1, 2, 2, 1)]
STAGES = ("sl", "pm", "dpo", "ppo")

PROGRAM = """
    import dataclasses, json, sys
    from pathlib import Path

    import jax, jax.numpy as jnp, numpy as np
    from dpo_test import SETTINGS as DPO
    from fakes import PiecesTokenizer, tiny_model
    from ppo_test import ROWS, SETTINGS as PPO, SOURCE, scorer
    from preference_model_test import SETTINGS as PM, separable
    from supervised_test import SETTINGS as SL, chain, reply

    from cai_jax.decoding import Engine
    from cai_jax.mesh import MESH_AXES, layout, make_mesh, place
    from cai_jax.stages import dpo, ppo, preference_model, supervised

    folder, meshes = Path(sys.argv[1]), json.loads(sys.argv[2])
    assert jax.device_count() == 8
    tokenizer = PiecesTokenizer((b"the ", b"and ", b"not ", b"help ", b"harm "))
    model = dataclasses.replace(tiny_model(vocab_size=264), tokenizer=tokenizer)
    form, silent = model.format, lambda done, total, metrics: None
    copy = lambda tree: jax.tree.map(jnp.array, tree)

    def fresh(mesh, params):
        return place(copy(params), mesh) if mesh else copy(params)

    for name, shape in meshes.items():
        mesh = shape and make_mesh(dict(zip(MESH_AXES, shape)))
        where = folder / name
        settings = dataclasses.replace(SL, batch_size=8, epochs=3)
        data = supervised.examples(
            settings, tokenizer, form, [chain("I cannot help.", "Ask a doctor.")] * 9, [reply("No")]
        )
        params = supervised.finetune(
            settings, model.config, fresh(mesh, model.params), data, where / "sl", 0, silent, mesh
        )
        if mesh:
            split = {str(s.spec) for s in jax.tree.leaves(layout(params))}
            for axis in ("fsdp", "sequence", "tensor"):
                assert any(axis in s for s in split) or mesh.shape[axis] == 1, split
        settings = dataclasses.replace(PM, batch_size=8)
        data = preference_model.examples(settings, tokenizer, form, separable(24, 0))
        preference_model.train_preference_model(
            settings, model.config, fresh(mesh, model.params), data, where / "pm", 0, silent, mesh
        )
        settings = dataclasses.replace(DPO, batch_size=8)
        data = dpo.examples(settings, tokenizer, form, separable(24, 0), ())
        start = fresh(mesh, model.params)
        reference = dpo.reference_logprobs(
            settings, model.config, start, data, where / "dpo", lambda done, total: None, mesh
        )
        dpo.train_dpo(
            settings, model.config, start, data, reference, where / "dpo", 0, silent, mesh
        )
        slow = dataclasses.replace(PPO.optimizer, learning_rate=3e-4)
        settings = dataclasses.replace(
            PPO, updates=2, batch_size=16, minibatches=2, epochs=1, save_every=1,
            optimizer=slow, value_optimizer=slow,
        )
        held = dataclasses.replace(model, params=fresh(mesh, model.params))
        ppo.train_ppo(
            settings, Engine(held, 4, 128), form, fresh(mesh, model.params),
            fresh(mesh, model.params), [fresh(mesh, scorer(model))], ROWS, where / "ppo", 0, SOURCE,
            silent, mesh,
        )
"""


@pytest.fixture(scope="module", params=[ONCE, pytest.param(MORE, marks=pytest.mark.nightly)])
def metrics(request, tmp_path_factory, tiny_cache):
    """Name of a mesh -> stage -> rows of metrics; "one" is a single device."""
    folder = tmp_path_factory.mktemp("sharded")
    meshes = {"one": None} | {"x".join(map(str, shape)): shape for shape in request.param}
    environment = tiny_run.environment(tiny_cache)
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), json.dumps(meshes)],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]

    def rows(name, stage):
        return [json.loads(row) for row in (folder / name / stage / "metrics.jsonl").open()]

    return {name: {stage: rows(name, stage) for stage in STAGES} for name in meshes}


@pytest.mark.parametrize("stage", STAGES)
def test_a_mesh_gives_the_numbers_of_one_device(metrics, stage):
    """Sums over devices are taken in another order: the first step differs by float32 rounding,
    later ones by what Adam makes of it where a gradient is nearly zero."""
    alone = metrics["one"][stage]
    assert len(alone) >= 2
    for mesh in metrics:
        for n, (a, b) in enumerate(zip(alone, metrics[mesh][stage], strict=True)):
            assert a.keys() == b.keys()
            # PPO's row describes the rollout and its last optimiser step, which is not the first.
            left_out = {"policy/ratio_error", "policy/first_ratio_error"}
            # DPO begins with ties, which rounding breaks.
            left_out |= {"policy/accuracy"} if n == 0 else set()
            for name in a.keys() - left_out:
                first = n == 0 and not name.startswith(("policy/", "value/"))
                tolerance = 2e-5 if first else 1e-2
                np.testing.assert_allclose(
                    b[name], a[name], rtol=tolerance, atol=tolerance / 2, err_msg=f"{mesh} {name}"
                )


def test_ratios_are_one_on_a_mesh_too(metrics):
    for mesh in metrics.values():
        assert all(row["policy/first_ratio_error"] < 1e-4 for row in mesh["ppo"])
