"""Windows, soft caps and the rest of what models differ in: gradients, what they see, refusals."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import CONFIG, GEMMA_LIKE, NEOX_LIKE, seen_by, tiny_model

from cai_jax.logprobs import chunked_token_logprobs
from cai_jax.models import transformer
from cai_jax.models.attention import self_attention
from cai_jax.models.config import ModelConfig
from cai_jax.models.scoring import jit_reply_logprobs
from cai_jax.tokenizer import BytesTokenizer
from cai_jax.weights import names
from cai_jax.weights.architectures import ARCHITECTURES
from cai_jax.weights.hugging_face import config_of, json_of
from cai_jax.weights.names import WeightsError


@functools.partial(jax.jit, static_argnames=("config", "remat", "dtype"))
def graded(config, params, tokens, remat, dtype="float32"):
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    def loss(params):
        hidden = transformer.hidden_states(
            config, params, tokens, places, jnp.ones_like(tokens), remat=remat, dtype=dtype
        )
        logits = transformer.logits(params, hidden, config.logits_softcap)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1).mean()

    return jax.value_and_grad(loss)(params)


@pytest.mark.slow
@pytest.mark.parametrize("options", [GEMMA_LIKE, NEOX_LIKE], ids=["gemma", "neox"])
def test_gradients_are_finite_and_the_same_computed_again(options):
    model = tiny_model(**options)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 24)))
    loss, grads = graded(model.config, model.params, tokens, "none")
    again, others = graded(model.config, model.params, tokens, "full")
    assert loss == pytest.approx(float(again), rel=1e-6)
    for (path, grad), other in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(others), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(grad).all(), name
        np.testing.assert_allclose(grad, other, atol=1e-6, err_msg=name)
        each = range(1, grad.ndim) if "layers" in name else range(grad.ndim)
        assert (np.abs(grad).max(tuple(each)) > 1e-7).all(), name
    half, _ = graded(model.config, model.params, tokens, "none", "bfloat16")
    assert half == pytest.approx(float(loss), rel=0.02)


def test_a_token_sees_its_window_and_no_more():
    model = tiny_model(layers=2, window=4, local_layers=(0, 1))
    assert seen_by(model, 10) == [4, 5, 6, 7, 8, 9, 10]  # of two layers, twice three back


@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_attention_by_rows_is_attention_of_all(window, softcap):
    draw = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draw.normal(size=(2, 20, n, 8)), jnp.float32) for n in (4, 2, 2))
    ids = jnp.asarray(np.repeat([[1, 2, 0], [1, 1, 2]], [8, 9, 3], axis=1))
    whole, rows = (
        self_attention(q, k, v, ids, by_rows, window, softcap) for by_rows in (False, True)
    )
    real = np.asarray(ids) > 0
    np.testing.assert_allclose(whole[real], rows[real], atol=2e-6)
    scores = np.einsum("btkgc,bukc->bkgtu", np.reshape(q, (2, 20, 2, 2, 8)), k) * 8**-0.5
    scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
    distance = np.subtract.outer(np.arange(20), np.arange(20))
    sees = (distance >= 0) & (distance < (window or 20)) & (ids[:, :, None] == ids[:, None])
    weights = np.where(sees[:, None, None], np.exp(scores), 0)
    weights = weights / weights.sum(-1, keepdims=True)
    expected = np.einsum("bkgtu,bukc->btkgc", weights, v).reshape(q.shape)
    np.testing.assert_allclose(whole[real], expected[real], atol=2e-6)


def test_soft_capped_logits_are_divided_by_the_temperature():
    draw = np.random.default_rng(0)
    hidden, kernel = draw.normal(size=(2, 5, 8)), 3 * draw.normal(size=(8, 11))
    targets = jnp.asarray(draw.integers(0, 11, (2, 5)))
    arrays = (jnp.asarray(x, jnp.float32) for x in (hidden, kernel))
    found, _ = chunked_token_logprobs(*arrays, targets, 0.7, 2, softcap=4.0)
    scores = jax.nn.log_softmax(4 * np.tanh(hidden @ kernel / 4) / 0.7)
    expected = jnp.take_along_axis(scores, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_replies_are_scored_with_the_soft_cap():
    model = tiny_model(logits_softcap=2.0)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 12))
    mask = np.ones((2, 6), bool)
    found, _ = jit_reply_logprobs(
        model.config, model.params, tokens[:, :6], mask, tokens[:, 6:], mask, 1.0
    )
    scores = jax.nn.log_softmax(model.logits(tokens))[:, 5:-1]
    assert np.abs(model.logits(tokens)).max() < 2
    expected = jnp.take_along_axis(scores, tokens[:, 6:, None], -1)[..., 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "relu"}, "activation is 'relu'; it must be one of silu, gelu, gelu_tanh"),
        ({"norm": "none"}, "norm is 'none'; it must be one of rms, layer"),
        ({"qk_norm": "l2"}, "qk_norm is 'l2'; it must be one of None, head, projection"),
        ({"rotary_dim": 10}, r"rotary_dim is 10; it must be even and at most head_dim \(8\)"),
        ({"window": 4}, "window is 4 with 0 local layers"),
        ({"local_layers": (0,)}, "window is None with 1 local layers"),
        ({"window": 0, "local_layers": (0,)}, "window is 0 with 1 local layers"),
        ({"window": 4, "local_layers": (2,)}, "local_layers is .* of the 2 layers and ascend"),
        ({"nope_layers": (1, 0)}, "nope_layers is .* of the 2 layers and ascend"),
        ({"parallel_residual": True, "norm_placement": "post"}, "it must be 'pre'"),
        (
            {"experts": 2, "experts_per_token": 1, "activation": "gelu"},
            "experts are gated MLPs with silu",
        ),
    ],
)
def test_options_that_no_model_has_are_refused(change, message):
    with pytest.raises(ValueError, match=f"model config: .*{message}"):
        ModelConfig(**dataclasses.asdict(CONFIG) | change)


def settings(kind, **more):
    sizes = {
        "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64,
    }  # fmt: skip
    return {"model_type": kind} | sizes | more


LINEAR = {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_config_json_leaves_out_has_a_default_and_is_written(tmp_path, kind):
    config = config_of(settings(kind), tmp_path)
    written = json.loads(json.dumps(json_of(config, BytesTokenizer())))
    assert written["model_type"] == kind and config_of(written, tmp_path) == config


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("llama", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("gemma2", {"hidden_activation": "relu"}, "hidden_activation = 'relu'"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "'longrope'"),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, **LINEAR},
                    "sliding_attention": {"rope_theta": 1e4, **LINEAR},
                }
            },
            "the rope_type of sliding_attention = 'linear'",
        ),
        (
            "qwen3",
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "rope_parameters for full_attention",
        ),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers = [0]"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        (
            "gemma2",
            {"layer_types": ["sliding_attention", "chunked_attention"]},
            "layer_types = ['sliding_attention', 'chunked_attention']",
        ),
        ("gemma2", {"layer_types": ["full_attention"]}, "only 2 of"),
        ("gemma2", {"attn_logit_softcapping": "high"}, "attn_logit_softcapping = 'high'"),
        ("mistral", {"sliding_window": -4}, "sliding_window = -4"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers = [1]"),
        ("gpt_neox", {"rotary_pct": 0.4}, "rotary_dim"),
        ("gemma3", {}, "is of gemma3, and only LlamaForCausalLM"),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(tmp_path, kind, more, words):
    with pytest.raises(WeightsError) as error:
        config_of(settings(kind, **more), tmp_path / "config.json")
    assert words in str(error.value) and "config.json" in str(error.value)


def test_shapes_of_no_architecture_are_not_written():
    mixed = dataclasses.replace(CONFIG, parallel_residual=True)
    with pytest.raises(WeightsError, match="not that of any architecture that we write"):
        json_of(mixed, BytesTokenizer())
    changed = dataclasses.replace(CONFIG, model_type="gemma")
    with pytest.raises(WeightsError, match="not that of a gemma"):
        json_of(changed, BytesTokenizer())


@pytest.mark.parametrize("change", [{"qk_norm": "head"}, {"attention_softcap": 5.0}])
def test_gguf_files_have_no_place_for_what_llama_lacks(change):
    config = dataclasses.replace(CONFIG, **change)
    ((field, value),) = change.items()
    with pytest.raises(WeightsError, match=f"the model has {field} = {value!r}"):
        names.file_shapes(config, "gguf")
