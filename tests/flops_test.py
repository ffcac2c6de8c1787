"""The count of a step's FLOPs: literal numbers, and XLA's count of the very computation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import tiny_model

from cai_jax.batch import comparison_batch, rated_batch, token_batch
from cai_jax.models import heads, transformer
from cai_jax.models.config import ModelConfig
from cai_jax.stages import dpo
from cai_jax.training import flops

# SmolLM2-135M's widths in a single layer: XLA counts a loop's body once, however often it runs.
WIDE = ModelConfig(
    vocab_size=49152, embed=576, layers=1, heads=9, kv_heads=3, head_dim=64, mlp=1536,
    rope_theta=1e5, norm_eps=1e-5, tied_embeddings=True, context=8192,
)  # fmt: skip


def params_of(config):
    return jax.eval_shape(lambda key: transformer.init(config, key), jax.random.key(0))


def test_the_formula_by_hand():
    """PaLM 540B, appendix B's example of scale: 118 layers, 48 heads of 256, rows of 2,048."""
    assert flops.flops_per_token(10, 2, 3, 4, 5) == 6 * 10 + 12 * 2 * 3 * 4 * 5 == 1500
    attention = flops.flops_per_token(0, 118, 48, 256, 2048)
    assert attention == 35_634_806_784
    assert flops.flops_per_token(540_350_000_000, 118, 48, 256, 2048) == 3_277_734_806_784


def test_the_weights_of_the_tiny_model():
    """Two layers of q, k, v, o and a gated mlp; norms are left out, and an embedding looked up."""
    attention = 32 * (4 + 2 + 2) * 8 + 4 * 8 * 32
    layers = 2 * (attention + 3 * 32 * 48)
    params = tiny_model().params
    assert flops.shape_of(params) == (layers + 32 * 259, 2, 4, 8)
    tied = tiny_model(tied_embeddings=True).params
    assert flops.shape_of(tied) == (layers + 32 * 259, 2, 4, 8)
    assert flops.shape_of(heads.with_scalar_head(params)) == (layers + 32, 2, 4, 8)


def test_windows_and_mlps_without_a_gate_cost_less():
    """Of three layers two see 10 of 100 tokens, and all of a row of 5."""
    windows = (10, None, 10)
    assert flops.flops_per_token(0, 3, 2, 4, 100, windows) == 12 * 2 * 4 * (10 + 100 + 10)
    assert flops.flops_per_token(0, 3, 2, 4, 5, windows) == flops.flops_per_token(0, 3, 2, 4, 5)
    gated, plain = (flops.shape_of(tiny_model(gated=gated).params)[0] for gated in (True, False))
    assert gated - plain == 2 * 32 * 48


@pytest.mark.parametrize("length", [128, 1024])
@pytest.mark.parametrize("tied", [True, False])
def test_xla_counts_the_same(length, tied):
    """Within 3%, by which norms, softmax and the loss are more; nothing is computed."""
    config = ModelConfig(**{**vars(WIDE), "tied_embeddings": tied})

    def loss(params, tokens):
        ones = jnp.ones_like(tokens)
        places = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        hidden = transformer.hidden_states(config, params, tokens, places, ones)
        logits = transformer.logits(params, hidden)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

    params, tokens = params_of(config), jax.ShapeDtypeStruct((2, length), jnp.int32)
    counted = jax.jit(jax.grad(loss)).lower(params, tokens).cost_analysis()["flops"]
    expected = 2 * length * flops.flops_per_token(*flops.shape_of(params), length)
    assert expected == pytest.approx(counted, rel=0.03)


def test_rates():
    found = flops.rates((10, 2, 3, 4), tokens=100, length=5, seconds=0.5, peak=1e6)
    assert found == {
        "perf/tokens_per_second": 200.0,
        "perf/model_flops_utilisation": pytest.approx(100 * 1500 / 0.5 / 1e6),
    }
    assert flops.rates((10, 2, 3, 4), 100, 5, 0.5, None) == {"perf/tokens_per_second": 200.0}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("cpu", None),
        ("TPU v99", None),
    ],
)
def test_peak(kind, expected):
    assert flops.peak_flops(kind) == expected


def test_what_counts_as_a_token():
    """Padding does not, nor the rows that only fill a batch up."""
    texts = token_batch([([1, 2, 3], [True] * 3), ([4], [True])], 5)
    assert texts.real.sum() == 4
    pairs = comparison_batch([([1, 2], [3]), ([4], [5])], [0.5, 0.5], [1.0, 0.0], 4)
    assert pairs.real.shape == (2, 2, 4) and pairs.real.sum() == 3
    rated = rated_batch([[1, 2], [3]], [0.0, 1.0], [0.5, 0.0], 4)
    assert rated.real.shape == (2, 4) and rated.real.sum() == 2
    both = dpo.Batch(pairs, np.array([1, 1]), np.zeros((2, 2)))
    assert both.real.sum() == 3
