"""Attention by the TPU's kernel: numbers by its interpreter, on packed and padded rows; compiled"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.mesh import MESH_AXES
from cai_jax.models.attention import WIDEST, self_attention
from cai_jax.models.splash import splash_attention

# Two segments and padding; a segment that fills the row.
IDS = np.zeros((2, 200), np.int32)
IDS[0, :90], IDS[0, 90:170], IDS[1] = 1, 2, 1


def inputs(head_dim, length=200, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(head_dim), 4)
    shapes = [(2, length, heads, head_dim) for heads in (4, 2, 2, 4)]
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head_dim", "limits", "windows"),
    [
        (64, {}, (None,)),
        (128, {}, (None,)),
        (64, {"window": 33}, (33,)),
        (64, {"window": jnp.int32(33), "softcap": 1.5}, (None, 33, None)),
        (64, {"window": WIDEST, "softcap": 1.5}, (None, 33)),
    ],
)
def test_the_kernel_attends_as_plain_attention_and_has_its_gradients(head_dim, limits, windows):
    *qkv, weights = inputs(head_dim)
    weights = weights * (IDS > 0)[..., None, None]  # what padding gives nobody reads

    def loss(attend, *qkv):
        return (attend(*qkv, jnp.array(IDS)) * weights).sum()

    ways = (
        functools.partial(splash_attention, mesh=None, windows=windows, interpret=True, **limits),
        functools.partial(self_attention, by_rows=False, **limits),
    )
    found = [jax.value_and_grad(loss, (1, 2, 3))(way, *qkv) for way in ways]
    (value, grads), (expected, expected_grads) = found
    assert value == pytest.approx(float(expected), abs=1e-3)
    for grad, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, other, atol=2e-5)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: pip install -e '.[plan]'",
)
@pytest.mark.parametrize(("head_dim", "windows"), [(64, (None,)), (128, (None, 256))])
def test_it_compiles_for_a_tpu_and_holds_no_scores(head_dim, windows):
    """A loss and its gradient on four chips: rows and heads split, no array of T by T."""
    from benchmarks import tpu
    from cai_jax.mesh import fitted

    mesh = tpu.mesh_for("v5e:2x2", fsdp=2, tensor=2)
    assert tuple(mesh.axis_names) == MESH_AXES
    length = 1024
    shapes = [x.shape for x in inputs(head_dim, length)][:3]
    qkv = [
        jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=fitted(mesh, s, "batch", None, "kv_heads"))
        for s in shapes
    ]
    ids = jax.ShapeDtypeStruct((2, length), jnp.int32, sharding=fitted(mesh, (2, length), "batch"))

    def attend(q, k, v, ids, window):
        limits = {} if windows == (None,) else {"window": window, "softcap": 50.0}
        return jax.lax.platform_dependent(
            q, k, v, ids,
            tpu=functools.partial(
                splash_attention, mesh=mesh.abstract_mesh, windows=windows, **limits
            ),
            default=functools.partial(self_attention, by_rows=False, **limits),
        )  # fmt: skip

    def loss(q, k, v, ids, window):
        return attend(q, k, v, ids, window).astype(jnp.float32).sum()

    window = jax.ShapeDtypeStruct((), jnp.int32, sharding=fitted(mesh, ()))
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*qkv, ids, window).compile().as_text()
    assert "tpu_custom_call" in text and f"{length},{length}" not in text
