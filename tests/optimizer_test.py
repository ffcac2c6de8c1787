import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cai_jax.training import optimizer

CONFIG = optimizer.OptimizerConfig(
    kind="adamw",
    learning_rate=1e-2,
    schedule="constant",
    warmup_steps=0,
    weight_decay=0.1,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    clip_norm=1.0,
    moment_dtype="float32",
)


def config(**changes):
    return dataclasses.replace(CONFIG, **changes)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def run(transformation, params, gradients):
    state = transformation.init(params)
    for g in gradients:
        updates, state = transformation.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_the_first_adam_step_by_hand():
    params = {"kernel": jnp.array([1.0, -2.0])}
    gradient = {"kernel": jnp.array([0.3, -0.4])}
    params, _ = run(optimizer.make(config(), 100), params, [gradient])
    # The first Adam step is the sign of the gradient; decay pulls to 0 by 0.1 of the value.
    np.testing.assert_allclose(params["kernel"], [1 - 0.01 * 1.1, -2 + 0.01 * 1.2], rtol=1e-6)


def test_equals_optax_adamw():
    params = {"kernel": draw(5, 3)}
    gradients = [{"kernel": 0.1 * draw(5, 3, seed=s)} for s in range(1, 6)]
    ours, _ = run(optimizer.make(config(clip_norm=float("inf")), 100), params, gradients)
    theirs, _ = run(optax.adamw(1e-2, weight_decay=0.1), params, gradients)
    np.testing.assert_allclose(ours["kernel"], theirs["kernel"], rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    # Under Adam a global factor vanishes unless it changes from step to step.
    params = {"a": {"kernel": jnp.zeros(2)}, "b": {"kernel": jnp.zeros(1)}}
    big = {"a": {"kernel": jnp.array([300.0, 0.0])}, "b": {"kernel": jnp.array([400.0])}}
    unit = jax.tree.map(lambda g: g / 500.0, big)
    small = jax.tree.map(lambda g: -0.3 * g, unit)
    clipped, _ = run(optimizer.make(config(), 100), params, [big, small])
    expected, _ = run(optimizer.make(config(clip_norm=float("inf")), 100), params, [unit, small])
    np.testing.assert_allclose(clipped["a"]["kernel"], expected["a"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(clipped["b"]["kernel"], expected["b"]["kernel"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_only_kernels_decay(kind):
    params = {
        "embed": {"embedding": jnp.ones((4, 2))},
        "norm": {"scale": jnp.ones(2)},
        "head": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)},
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    after, _ = run(optimizer.make(config(kind=kind), 100), params, [zeros])
    np.testing.assert_allclose(after["head"]["kernel"], 1 - 0.01 * 0.1, rtol=1e-6)
    for kept in (after["embed"]["embedding"], after["norm"]["scale"], after["head"]["bias"]):
        assert (kept == 1).all()


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.0]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.0]),
    ],
)
def test_schedules(schedule, expected):
    c = config(schedule=schedule, warmup_steps=4, learning_rate=2.0)
    rates = [float(optimizer.learning_rate(c, 12, s)) for s in (0, 1, 2, 3, 4, 8, 12)]
    np.testing.assert_allclose(rates, 2 * np.array(expected), atol=1e-6)
    quarter = float(optimizer.learning_rate(c, 12, 6))
    shapes = {"constant": 1.0, "linear": 0.75, "cosine": (1 + np.cos(np.pi / 4)) / 2}
    np.testing.assert_allclose(quarter, 2 * shapes[schedule], rtol=1e-6)


def test_the_state_counts_updates_and_tells_the_rate():
    c = config(warmup_steps=4)
    params = {"kernel": jnp.ones(2)}
    _, state = run(optimizer.make(c, 100), params, [params] * 3)
    assert state[-1].count == 3
    np.testing.assert_allclose(optimizer.last_learning_rate(state), 0.0075, rtol=1e-6)


def test_bfloat16_moments_are_half_the_size_and_follow_the_float32_ones():
    params = {"kernel": jnp.zeros(4096)}
    # Gradients that vanish: the second moment has to decay, which rounding to nearest forbids.
    gradients = [{"kernel": jnp.ones(4096)}] * 3 + [{"kernel": jnp.zeros(4096)}] * 400
    moments = {}
    for dtype in ("float32", "bfloat16"):
        make = optimizer.make(config(moment_dtype=dtype, b1=0.99, clip_norm=float("inf")), 100)

        def body(state, g, make=make):
            return make.update({"kernel": jnp.full(4096, g)}, state, params)[1], None

        state, _ = jax.lax.scan(
            body, make.init(params), jnp.stack([g["kernel"][0] for g in gradients])
        )
        assert state[0].mu["kernel"].dtype == state[0].nu["kernel"].dtype == dtype
        moments[dtype] = state[0]
    for name in ("mu", "nu"):
        exact = np.asarray(getattr(moments["float32"], name)["kernel"])[0]
        ours = np.asarray(getattr(moments["bfloat16"], name)["kernel"], np.float32)
        np.testing.assert_allclose(ours.mean(), exact, rtol=0.01)


def test_bfloat16_moments_train():
    target = draw(64, seed=3)
    make = optimizer.make(
        config(moment_dtype="bfloat16", weight_decay=0.0, learning_rate=0.05), 100
    )

    def body(carry, _):
        params, state = carry
        updates, state = make.update({"kernel": params["kernel"] - target}, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"kernel": jnp.zeros(64)}
    (params, _), _ = jax.lax.scan(body, (params, make.init(params)), None, length=300)
    assert jnp.abs(params["kernel"] - target).max() < 0.05


def test_adafactor_keeps_factors_and_trains():
    target = draw(256, 128, seed=3)
    make = optimizer.make(config(kind="adafactor", b1=0.0, weight_decay=0.0, clip_norm=1e6), 100)
    params = {"kernel": jnp.zeros((256, 128))}
    state = make.init(params)
    assert sum(x.size for x in jax.tree.leaves(state)) < 1000 < target.size

    def body(carry, _):
        params, state = carry
        updates, state = make.update({"kernel": params["kernel"] - target}, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(body, (params, state), None, length=400)
    assert jnp.abs(params["kernel"] - target).mean() < 0.05
    with_momentum = optimizer.make(config(kind="adafactor", moment_dtype="bfloat16"), 100)
    assert any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(with_momentum.init(params)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "sgd"}, "kind is 'sgd'; it must be one of adamw, adafactor"),
        ({"schedule": "step"}, "schedule is 'step'"),
        ({"moment_dtype": "float16"}, "moment_dtype is 'float16'"),
        ({"warmup_steps": -1}, "warmup_steps is -1; it must be at least 0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"b2": 1.0}, "b2 is 1.0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
    ],
)
def test_bad_configs_are_refused_in_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_no_field_has_a_default():
    fields = dataclasses.fields(optimizer.OptimizerConfig)
    assert all(f.default is dataclasses.MISSING for f in fields)
