"""Experts: each token's own, against loops over tokens; whole models with them, on meshes too."""

import dataclasses
import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from fakes import CONFIG, tiny_model

from cai_jax.decoding import Engine
from cai_jax.models import transformer
from cai_jax.models.config import ModelConfig
from cai_jax.models.experts import mixture
from cai_jax.script import Choose, Force, Sample, Script
from cai_jax.training import flops

MIXED = dataclasses.replace(CONFIG, experts=5, experts_per_token=2)


def kernels(seed=0, experts=5, embed=6, mlp=8):
    draw = np.random.default_rng(seed)
    shapes = (embed, experts), *[(experts, embed, mlp)] * 2, (experts, mlp, embed)
    return [draw.normal(size=shape) for shape in shapes]


def by_loops(x, router, gate, up, down, per_token):
    """In float64, a token and an expert after the other."""
    out = np.zeros_like(x)
    for n, token in enumerate(x):
        scores = np.exp(token @ router)
        chosen = np.argsort(-scores)[:per_token]
        for e in chosen:
            h = token @ gate[e]
            h = h / (1 + np.exp(-h)) * (token @ up[e])
            out[n] += scores[e] / scores[chosen].sum() * (h @ down[e])
    return out


@pytest.mark.parametrize("per_token", [1, 2, 5])
def test_each_token_goes_through_its_own_experts(per_token):
    args = kernels()
    x = np.random.default_rng(1).normal(size=(3, 7, 6))
    found = mixture(
        *(jnp.array(a, jnp.float32) for a in (x, *args)), per_token=per_token, mesh=None, names=()
    )
    expected = by_loops(x.reshape(21, 6), *args, per_token)
    np.testing.assert_allclose(found.reshape(21, 6), expected, rtol=1e-4, atol=1e-4)


def test_experts_that_nobody_chose_and_gradients():
    """All tokens alike: three experts get none, and their gradients are 0; the others' are those
    of finite differences."""
    args = [jnp.array(a, jnp.float32) for a in kernels()]
    x = jnp.broadcast_to(jnp.array([1.0, -0.5, 0.3, 0.8, -1.2, 0.1]), (4, 6))

    def loss(x, *args):
        return jnp.sin(mixture(x, *args, per_token=2, mesh=None, names=())).sum()

    grads = jax.grad(loss, range(5))(x, *args)
    used = np.abs(grads[2]).sum((1, 2)) > 0
    assert used.sum() == 2
    for grad in grads[2:]:
        assert ((np.abs(grad).sum((1, 2)) > 0) == used).all()
    jax.test_util.check_grads(loss, (x, *args), order=1, modes=("rev",), atol=2e-2, rtol=2e-2)


def test_a_model_with_experts_decodes_what_its_forward_pass_scores():
    model = tiny_model(experts=5, experts_per_token=2)
    assert model.config == MIXED
    scripts = [
        Script((Force(f"{n} and"), Sample(9, ("☃",)), Choose((" (A)", " (B)"))), f"{n}")
        for n in range(5)
    ]
    for transcript in Engine(model, slots=3, max_length=128).run(scripts):
        force, sample, choice = transcript.segments
        context = [model.tokenizer.bos_id, *force.tokens]
        text = [*context, *sample.tokens]
        scores = jax.nn.log_softmax(model.logits(jnp.array([text])))[0]
        found = [float(scores[len(context) - 1 + i, t]) for i, t in enumerate(sample.tokens)]
        np.testing.assert_allclose(sample.logprobs, found, atol=1e-4)
        assert len(choice.option_logprobs) == 2


def test_flops_count_the_experts_of_a_token_alone():
    params = jax.eval_shape(lambda: transformer.init(MIXED, jax.random.key(0)))
    dense = jax.eval_shape(lambda: transformer.init(CONFIG, jax.random.key(0)))
    one = 3 * CONFIG.layers * CONFIG.embed * CONFIG.mlp
    router = CONFIG.layers * CONFIG.embed * 5
    weights, *rest = flops.shape_of(params, 2)
    assert weights == flops.shape_of(dense)[0] + one + router
    assert tuple(rest) == flops.shape_of(dense)[1:]


@pytest.mark.parametrize(("experts", "per_token"), [(0, 1), (4, 0), (4, 5)])
def test_shares_of_experts_that_cannot_be_are_refused(experts, per_token):
    fields = dataclasses.asdict(CONFIG) | {"experts": experts, "experts_per_token": per_token}
    with pytest.raises(ValueError, match=f"experts_per_token is {per_token} of {experts}"):
        ModelConfig(**fields)


# A finetuning step's loss and gradients and an engine's texts, on meshes of eight devices.
PROGRAM = """
    import dataclasses
    import json
    import sys

    import jax
    import jax.numpy as jnp
    import numpy as np
    from fakes import tiny_model

    from cai_jax.decoding import Engine
    from cai_jax.mesh import MESH_AXES, make_mesh, place, shard_batch
    from cai_jax.models import transformer
    from cai_jax.script import Force, Sample, Script

    model = tiny_model(vocab_size=264, experts=4, experts_per_token=2)
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


def test_a_mesh_changes_nothing(tmp_path, tiny_cache):
    """Rows over data and fsdp, hidden layers over tensor, tokens over sequence."""
    shapes = [None, [1, 2, 2, 1, 2], [1, 1, 4, 1, 2], [1, 8, 1, 1, 1], [1, 1, 2, 2, 2]]
    environment = tiny_run.environment(tiny_cache)
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), json.dumps(shapes)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    (loss, sums, texts), *others = map(json.loads, ended.stdout.splitlines())
    assert len(others) == 4 and sums["['layers']['experts_up']['kernel']"] > 0
    for other_loss, other_sums, other_texts in others:
        assert other_loss == pytest.approx(loss, rel=1e-4)
        assert other_sums == pytest.approx(sums, rel=1e-4)
        assert other_texts == texts
