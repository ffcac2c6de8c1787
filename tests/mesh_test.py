import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from jax.sharding import PartitionSpec as P
from optimizer_test import CONFIG

from cai_jax import batch, logprobs, losses, mesh
from cai_jax.training import optimizer, state
from cai_jax.training.checkpoint import Checkpoints


def new_params(vocab=16, width=8, layers=2, heads=4, kv=2, head=4, mlp=12):
    shapes = {
        "embed": {"embedding": (vocab, width)},
        "layers": {
            "attention_norm": {"scale": (layers, width)},
            "q": {"kernel": (layers, width, heads, head)},
            "k": {"kernel": (layers, width, kv, head)},
            "v": {"kernel": (layers, width, kv, head)},
            "o": {"kernel": (layers, heads, head, width)},
            "mlp_norm": {"scale": (layers, width)},
            "gate": {"kernel": (layers, width, mlp)},
            "up": {"kernel": (layers, width, mlp)},
            "down": {"kernel": (layers, mlp, width)},
        },
        "final_norm": {"scale": (width,)},
        "lm_head": {"kernel": (width, vocab)},
    }
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(0.3 * generator.normal(size=s), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def loss_fn(params, b):
    """A model of this test's own that uses every tensor; not a transformer."""
    x = params["embed"]["embedding"][b.tokens]

    def layer(x, p):
        h = x * (1 + p["attention_norm"]["scale"])
        q, k, v = (jnp.einsum("btd,dhc->bthc", h, p[n]["kernel"]) for n in "qkv")
        k, v = (jnp.repeat(y, q.shape[2] // y.shape[2], axis=2) for y in (k, v))
        x = x + jnp.einsum("bthc,hcd->btd", jnp.tanh(q * k) + v, p["o"]["kernel"])
        h = x * (1 + p["mlp_norm"]["scale"])
        h = jnp.tanh(h @ p["gate"]["kernel"]) * (h @ p["up"]["kernel"])
        return x + h @ p["down"]["kernel"], None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    logits = (x * (1 + params["final_norm"]["scale"])) @ params["lm_head"]["kernel"]
    each = logprobs.token_logprobs(logits, b.tokens)
    loss, count = losses.cross_entropy(each, b.loss_mask[:, 1:])
    return loss, {"count": count}


def ragged_batch():
    generator = np.random.default_rng(1)
    sizes = range(3, 11)
    return batch.token_batch(
        [(generator.integers(0, 16, n).tolist(), [True] * n) for n in sizes], 10
    )


def sizes(**given):
    return dict.fromkeys(mesh.MESH_AXES, 1) | given


def train(shape, microbatches=1):
    """Three steps on a mesh; the losses, and the state to look at."""
    o = optimizer.make(CONFIG, 100)
    m = mesh.make_mesh(shape)
    s = state.create(new_params(), o)
    placed = mesh.param_shardings(s, m, mesh.DEFAULT_RULES)
    s = jax.device_put(s, placed)
    step = state.make_step(loss_fn, o, microbatches=microbatches, state_shardings=placed)
    out = []
    for _ in range(3):
        s, metrics = step(s, mesh.shard_batch(ragged_batch(), m))
        out.append([float(metrics["train/loss"]), float(metrics["train/grad_norm"])])
    assert jax.tree.all(
        jax.tree.map(lambda x, p: x.sharding.is_equivalent_to(p, x.ndim), s, placed)
    )
    assert step._cache_size() == 1
    return out, s


EIGHT = """
    import jax, numpy as np
    import mesh_test
    assert jax.device_count() == 8
    one, _ = mesh_test.train_on_one()
    for slice_, data, fsdp, tensor, microbatches in [
        (1, 2, 4, 1, 1), (1, 4, 2, 1, 1), (1, 2, -1, 2, 2), (2, 1, 2, 2, 1)
    ]:
        shape = mesh_test.sizes(slice=slice_, data=data, fsdp=fsdp, tensor=tensor)
        many, s = mesh_test.train(shape, microbatches)
        np.testing.assert_allclose(many, one, rtol=2e-5)
        q = s.params["layers"]["q"]["kernel"]
        nu = s.opt_state[1].nu["layers"]["q"]["kernel"]
        ways = 2 if (fsdp, tensor) == (2, 1) else 4  # embed over fsdp times heads over tensor
        assert q.addressable_shards[0].data.size == q.size // ways
        assert nu.addressable_shards[0].data.size == q.size // ways
        print("equal on", shape, microbatches)
    try:
        mesh_test.train(mesh_test.sizes(tensor=8))
    except ValueError as error:
        print(error)
"""


def train_on_one():
    o = optimizer.make(CONFIG, 100)
    s = state.create(new_params(), o)
    step = state.make_step(loss_fn, o)
    out = []
    for _ in range(3):
        s, metrics = step(s, ragged_batch())
        out.append([float(metrics["train/loss"]), float(metrics["train/grad_norm"])])
    return out, s


def in_subprocess(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_same_losses_on_one_device_and_on_meshes_of_eight():
    out = in_subprocess(EIGHT, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert out.count("equal on") == 4
    # 12, the mlp width, and 4 heads do not divide 8 ways: refused by name, not by a trace.
    assert "which the mesh splits 8 ways (tensor)" in out


def test_axes_cover_params_scalar_heads_and_optimiser_state():
    params = new_params()
    axes = mesh.param_axes(params)
    assert axes["layers"]["q"]["kernel"] == ("layers", "embed", "heads", "head_dim")
    assert axes["layers"]["o"]["kernel"] == ("layers", "heads", "head_dim", "embed")
    assert axes["embed"]["embedding"] == ("vocab", "embed")
    pm = {**params, "scalar_head": {"kernel": jnp.zeros((8, 1)), "bias": jnp.zeros(1)}}
    del pm["lm_head"]
    assert mesh.param_axes(pm)["scalar_head"] == {"kernel": ("embed", None), "bias": (None,)}
    abstract = jax.eval_shape(lambda p: state.create(p, optimizer.make(CONFIG, 100)), params)
    axes = mesh.param_axes(abstract)
    assert axes.opt_state[1].nu["layers"]["down"]["kernel"] == ("layers", "mlp", "embed")
    assert axes.step == () and axes.opt_state[1].count == ()
    placed = mesh.shardings(axes, mesh.make_mesh(sizes()), mesh.DEFAULT_RULES)
    assert jax.tree.structure(placed) == jax.tree.structure(abstract)


def test_an_unknown_tensor_is_refused():
    with pytest.raises(ValueError, match="No logical axes are known for the tensor a/kernel"):
        mesh.param_axes({"a": {"kernel": jnp.zeros((2, 2))}})


def test_spec():
    split = P(None, ("sequence", "fsdp"), "tensor")
    assert mesh.spec(("layers", "embed", "mlp"), mesh.DEFAULT_RULES) == split
    rows = ("slice", "data", "fsdp")
    assert mesh.spec(("batch", "tokens"), mesh.DEFAULT_RULES) == P(rows, "sequence")
    with pytest.raises(ValueError, match="no line for the axis 'width'"):
        mesh.spec(("width",), mesh.DEFAULT_RULES)


def test_make_mesh_on_one_device():
    made = mesh.make_mesh(sizes(data=-1))
    assert dict(made.shape) == sizes(data=jax.device_count())
    assert mesh.batch_sharding(made).spec == P(("slice", "data", "fsdp"))


@pytest.mark.parametrize(
    "shape, message",
    [
        (
            {"data": 1, "fsdp": 1, "tensor": 1},
            "A mesh has the axes slice, data, fsdp, sequence, tensor; the config gives data, fsdp",
        ),
        (sizes(data=3), "does not cover the . devices exactly"),
        (sizes(data=-1, fsdp=-1), "at most one may be -1"),
        (sizes(data=0, fsdp=-1), "does not cover"),
    ],
)
def test_make_mesh_refuses(shape, message):
    with pytest.raises(ValueError, match=message):
        mesh.make_mesh(shape)


class Chip:
    """A TPU's device as far as meshes look at it: `count` of them in a square, a slice each 4."""

    platform, device_kind, core_on_chip = "tpu", "TPU v4", 0

    def __init__(self, number):
        self.id, self.slice_index = number, number // 4
        self.coords = (number % 2, number // 2 % 2, 0)
        self.process_index = self.slice_index


def test_tpu_slices_are_the_outermost_axis():
    chips = [Chip(n) for n in (4, 0, 5, 1, 6, 2, 7, 3)]
    made = mesh.make_mesh(sizes(slice=2, fsdp=2, tensor=2), chips)
    assert [[d.slice_index for d in part.flat] for part in made.devices] == [[0] * 4, [1] * 4]
    assert made.devices.shape == (2, 1, 2, 1, 2)
    with pytest.raises(ValueError, match="are 2 TPU slices and the mesh has slice=1; set slice=2"):
        mesh.make_mesh(sizes(fsdp=8), chips)


def test_a_mesh_of_other_axes_is_not_taken_for_ours():
    other = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(np.zeros(2), jax.sharding.NamedSharding(other, P("x")))
    assert mesh.traced_mesh_of({"a": x}) is None and mesh.traced_mesh_of(np.zeros(2)) is None


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_reads_their_checkpoint(tmp_path):
    code = """
        import json, sys
        from cai_jax import hosts
        hosts.start()
        import jax
        import mesh_test
        from cai_jax.training.checkpoint import Checkpoints
        assert jax.process_count() == 2 and jax.device_count() == 4
        out, s = mesh_test.train(mesh_test.sizes(data=2, fsdp=2))
        checkpoints = Checkpoints(sys.argv[1], 1)
        checkpoints.save(3, s, {})
        checkpoints.wait()
        assert checkpoints.restore(s) is not None
        checkpoints.close()
        print(json.dumps(out))
    """
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
            cwd=Path(__file__).parent,
            env={
                **os.environ,
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                **joined,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for joined in processes.two()
    ]
    texts = [p.communicate(timeout=120) for p in pair]
    assert all(p.returncode == 0 for p in pair), texts
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in texts)
    np.testing.assert_allclose(first, second, rtol=1e-6)
    expected, alone = train_on_one()
    np.testing.assert_allclose(first, expected, rtol=2e-5)
    together, _ = Checkpoints(tmp_path, 1).restore(alone)
    chex.assert_trees_all_close(together.params, alone.params, rtol=1e-3, atol=1e-5)
