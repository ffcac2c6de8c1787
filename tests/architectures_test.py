"""Every architecture against transformers: logits of ragged rows, and files both ways."""

import functools

import architectures
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import ARCHITECTURES, logits_of
from safetensors.numpy import load_file

from cai_jax.mesh import param_axes
from cai_jax.models import transformer
from cai_jax.weights.load import load_model
from cai_jax.weights.safetensors import read_directory, write_directory

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTHS = (1, 5, 23, 40)  # most are longer than the window
CLOSE = 1e-4  # of logits, relative to the largest


@pytest.fixture(scope="module", params=ARCHITECTURES)
def both(request, tmp_path_factory):
    """One random model, as we read it and in transformers, and its directory."""
    theirs = architectures.theirs(request.param)
    folder = tmp_path_factory.mktemp("model")
    architectures.save(theirs, folder)
    return load_model(folder), theirs, folder


def rows():
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, length).tolist() for length in LENGTHS]


def padded(side):
    """Tokens, and which of them are real, int32[B, T] twice."""
    tokens = np.full((len(LENGTHS), max(LENGTHS)), 7, np.int32)
    real = np.zeros_like(tokens)
    for n, row in enumerate(rows()):
        where = slice(len(row)) if side == "right" else slice(-len(row), None)
        tokens[n, where], real[n, where] = row, 1
    return tokens, real


def assert_close(ours, theirs):
    assert np.isfinite(theirs).all()
    np.testing.assert_allclose(ours, theirs, atol=CLOSE * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_of_padded_rows(both, side):
    model, theirs, _ = both
    tokens, real = padded(side)
    places = np.maximum(np.cumsum(real, 1) - 1, 0)
    ours = np.asarray(logits_of(model.config, model.params, tokens, places, real))
    with torch.no_grad():
        found = theirs(
            torch.tensor(tokens),
            attention_mask=torch.tensor(real),
            position_ids=torch.tensor(places),
        )
    keep = real.astype(bool)
    assert_close(ours[keep], found.logits.numpy()[keep])


def test_logits_of_a_packed_row(both):
    """All texts in one row, each a segment, against each by itself in transformers."""
    model, theirs, _ = both
    tokens = np.concatenate(rows())[None]
    places = np.concatenate([np.arange(n) for n in LENGTHS])[None]
    segments = np.concatenate([np.full(n, i + 1) for i, n in enumerate(LENGTHS)])[None]
    ours = np.asarray(logits_of(model.config, model.params, tokens, places, segments))[0]
    with torch.no_grad():
        found = [theirs(torch.tensor([row])).logits[0].numpy() for row in rows()]
    assert_close(ours, np.concatenate(found))


def test_files_both_ways(both, tmp_path):
    """What we write is what we read, bit for bit, and transformers computes the same with it."""
    _, theirs, folder = both
    config, params, tokenizer, template = read_directory(folder)
    write_directory(tmp_path, config, params, tokenizer, template)
    again = read_directory(tmp_path)
    assert again[0] == config and again[0].model_type == config.model_type
    chex.assert_trees_all_equal(again[1], params)
    ours = load_file(tmp_path / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        np.testing.assert_array_equal(ours.pop(name), tensor, err_msg=name)
    assert not ours
    read = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    assert type(read) is type(theirs)
    tokens = torch.tensor(padded("right")[0])
    with torch.no_grad():
        assert torch.equal(read(tokens).logits, theirs(tokens).logits)


def test_params_are_those_of_a_fresh_model(both):
    """The table of files, and the modules, name the same tensors in the same shapes."""
    model, _, _ = both
    fresh = jax.eval_shape(functools.partial(transformer.init, model.config), jax.random.key(0))
    chex.assert_trees_all_equal_shapes(fresh, model.params)
    param_axes(model.params)  # knows them all
    coarse = jax.eval_shape(functools.partial(transformer.frozen, dtype="bfloat16"), fresh)
    for path, x in jax.tree_util.tree_leaves_with_path(coarse):
        of_norm = "norm" in jax.tree_util.keystr(path)
        assert x.dtype == (jnp.float32 if of_norm else jnp.bfloat16), path
