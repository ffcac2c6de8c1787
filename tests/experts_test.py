"""Experts: each token's own, against loops over tokens; whole models with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


@pytest.mark.slow
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
