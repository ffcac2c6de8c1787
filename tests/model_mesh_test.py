"""Models of several kinds on meshes of eight devices: training and decoding as on one."""

import json
import subprocess
import sys
import textwrap

import pytest
import tiny_run

pytestmark = pytest.mark.slow

# A finetuning step's loss and gradients and an engine's texts, on meshes of eight devices.
PROGRAM = """
    import dataclasses
    import json
    import sys

    import jax
    import jax.numpy as jnp
    import numpy as np
    from fakes import GEMMA_LIKE, NEOX_LIKE, tiny_model

    from cai_jax.decoding import Engine
    from cai_jax.mesh import MESH_AXES, make_mesh, place, shard_batch
    from cai_jax.models import transformer
    from cai_jax.script import Force, Sample, Script

    OPTIONS = {
        "experts": {"experts": 4, "experts_per_token": 2},
        "gemma": GEMMA_LIKE,
        "neox": NEOX_LIKE,
    }
    model = tiny_model(vocab_size=264, **OPTIONS[sys.argv[2]])
    tokens = np.random.default_rng(0).integers(0, 259, (8, 12)).astype(np.int32)
    weights = np.random.default_rng(1).normal(size=(8, 12, 32)).astype(np.float32)
    scripts = [Script((Force(f"{n}"), Sample(8, ("☃",))), f"{n}") for n in range(9)]

    @jax.jit
    def graded(params, batch):
        tokens, weights = batch
        places = jnp.broadcast_to(jnp.arange(12), tokens.shape)

        def loss(params):
            hidden = transformer.hidden_states(
                model.config, params, tokens, places, jnp.ones_like(tokens), remat="full"
            )
            return (hidden * weights).sum()

        return jax.value_and_grad(loss)(params)

    for shape in json.loads(sys.argv[1]):
        mesh = make_mesh(dict(zip(MESH_AXES, shape))) if shape else None
        params = place(model.params, mesh)
        loss, grads = graded(params, shard_batch((tokens, weights), mesh))
        texts = Engine(dataclasses.replace(model, params=params), slots=4).run(scripts)
        sums = {jax.tree_util.keystr(k): float(jnp.abs(v).sum())
                for k, v in jax.tree_util.tree_leaves_with_path(grads)}
        print(json.dumps([float(loss), sums, [t.segments[1].tokens for t in texts]]))
"""


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("experts", "['layers']['experts_up']['kernel']"),
        ("gemma", "['layers']['q_norm']['scale']"),
        ("neox", "['layers']['up']['bias']"),
    ],
)
def test_a_mesh_changes_nothing(tiny_cache, kind, path):
    """Rows over data and fsdp, hidden layers over tensor, tokens over sequence."""
    shapes = [None, [1, 2, 2, 1, 2], [1, 1, 4, 1, 2], [1, 8, 1, 1, 1], [1, 1, 2, 2, 2]]
    environment = tiny_run.environment(tiny_cache)
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), json.dumps(shapes), kind],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    (loss, sums, texts), *others = map(json.loads, ended.stdout.splitlines())
    assert len(others) == 4 and sums[path] > 0
    for other_loss, other_sums, other_texts in others:
        assert other_loss == pytest.approx(loss, rel=1e-4)
        assert other_sums == pytest.approx(sums, rel=1e-4)
        assert other_texts == texts
