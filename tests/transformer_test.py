"""The transformer: equal to transformers' on the same weights, causal, blind to padding."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import write_tokenizer
from fakes import CONFIG, seen_by, tiny_model

from cai_jax.decoding import Engine
from cai_jax.models import transformer
from cai_jax.models.config import ModelConfig
from cai_jax.script import Force, Sample, Script
from cai_jax.weights.load import load_model
from cai_jax.weights.safetensors import write_directory

TEXTS = ("", "a", "\n\nHuman: hello", "The same letters again and again and again.", "é" * 30)


@functools.partial(jax.jit, static_argnames=("config", "remat"))
def logits_of(config, params, tokens, positions, segment_ids, remat="none"):
    hidden = transformer.hidden_states(config, params, tokens, positions, segment_ids, remat=remat)
    return transformer.logits(params, hidden)


def padded(rows, length=None):
    """Right-padded tokens with positions and segment ids; the padding is any token."""
    length = length or max(map(len, rows))
    tokens = np.full((len(rows), length), 7, np.int32)
    real = np.zeros_like(tokens)
    for n, row in enumerate(rows):
        tokens[n, : len(row)] = row
        real[n, : len(row)] = 1
    return tokens, np.broadcast_to(np.arange(length), tokens.shape), real


def assert_rows_equal_transformers(model, theirs, rows, tolerance):
    torch = pytest.importorskip("torch")
    tokens, positions, real = padded(rows)
    ours = np.asarray(logits_of(model.config, model.params, tokens, positions, real))
    with torch.no_grad():
        batched = theirs(torch.tensor(tokens), attention_mask=torch.tensor(real)).logits.numpy()
    for n, row in enumerate(rows):
        difference = np.abs(ours[n, : len(row)] - batched[n, : len(row)]).max()
        assert difference < tolerance, f"row {n}: {difference}"


def assert_generates_as_transformers(model, theirs, prompts, new_tokens):
    torch = pytest.importorskip("torch")
    scripts = [
        Script((*forces, Sample(new_tokens, temperature=0.0)), f"{n}")
        for n, forces in enumerate(prompts)
    ]
    engine = Engine(model, slots=len(scripts), max_length=128)
    answers = engine.run(scripts)
    for answer in answers:
        prompt = [] if model.tokenizer.bos_id is None else [model.tokenizer.bos_id]
        prompt += [t for segment in answer.segments[:-1] for t in segment.tokens]
        whole = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=list(model.tokenizer.end_ids),
            pad_token_id=model.tokenizer.pad_id,
        )
        assert list(answer.segments[-1].tokens) == whole[0, len(prompt) :].tolist()


# Positions are stretched as for a context of 16 tokens, which the texts exceed.
SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
KINDS = {
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "untied": ("Llama", {"tie_word_embeddings": False}),
    "scaled": ("Llama", {"rope_parameters": {"rope_theta": 50000.0, **SCALED}}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
}


@pytest.fixture(scope="module", params=KINDS)
def llama(request, tmp_path_factory):
    """A random tiny model that transformers made and saved, as both libraries load it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind, settings = KINDS[request.param]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=300,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        intermediate_size=80,
        rope_theta=50000.0,
        rms_norm_eps=1e-4,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=256,
        eos_token_id=257,
        **settings,
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, weight in theirs.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, 1.0, 0.3)
        if "bias" in name:
            torch.nn.init.normal_(weight)
    folder = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(folder)
    write_tokenizer(folder)
    ours = load_model(folder)
    assert ours.config.tied_embeddings == settings.get("tie_word_embeddings", False)
    assert ours.config.qkv_bias == (kind == "Qwen2")
    assert (ours.config.rope_scaling is not None) == (request.param == "scaled")
    return ours, theirs


def test_logits_equal_transformers_on_a_random_llama(llama):
    model, theirs = llama
    rows = [[model.tokenizer.bos_id, *model.tokenizer.encode(text)] for text in TEXTS]
    assert_rows_equal_transformers(model, theirs, rows, 1e-4)


def test_greedy_decoding_equals_transformers_on_a_random_llama(llama):
    model, theirs = llama
    prompts = [(Force(text),) for text in TEXTS[1:]]
    assert_generates_as_transformers(model, theirs, prompts, 30)


def smollm2_prompts(model):
    from cai_jax.conversation import Conversation

    chat = Conversation().human("Name three colours.")
    return [
        model.format.prompt(chat),
        model.format.prompt(chat.assistant("Red, green and blue.").human("And a fourth?")),
        (Force("The quick brown fox jumps over the lazy dog, and then"),),
    ]


def test_logits_equal_transformers_on_smollm2(smollm2, smollm2_in_transformers):
    encode = smollm2.tokenizer.encode
    rows = [
        [t for force in forces for t in encode(force.text, control=force.control)]
        for forces in smollm2_prompts(smollm2)
    ]
    assert_rows_equal_transformers(smollm2, smollm2_in_transformers, rows, 1e-3)


@pytest.mark.slow
def test_greedy_decoding_equals_transformers_on_smollm2(smollm2, smollm2_in_transformers):
    prompts = smollm2_prompts(smollm2)
    assert_generates_as_transformers(smollm2, smollm2_in_transformers, prompts, 24)


def test_a_model_that_we_wrote_reads_back(tmp_path):
    """A twin of the tests against transformers that needs no torch."""
    model = tiny_model()
    write_directory(tmp_path, model.config, model.params, model.tokenizer, None)
    again = load_model(tmp_path)
    assert again.config == model.config
    chex.assert_trees_all_equal(jax.device_get(again.params), jax.device_get(model.params))
    tokens = np.arange(40).reshape(2, 20)
    np.testing.assert_array_equal(again.logits(tokens), model.logits(tokens))


def test_a_token_sees_only_what_stands_before_it():
    assert seen_by(tiny_model(), 5) == [0, 1, 2, 3, 4, 5]


def test_padding_and_neighbours_change_nothing():
    """Padded equals unpadded, a sub-batch equals the batch, packed equals apart."""
    model = tiny_model()
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 256, n).tolist() for n in (1, 12, 17)]
    read = functools.partial(logits_of, model.config, model.params)
    whole = np.asarray(read(*padded(rows, 32)))
    for n, row in enumerate(rows):
        alone = np.asarray(read(*padded([row])))[0]
        np.testing.assert_allclose(whole[n, : len(row)], alone, atol=1e-4)
    np.testing.assert_allclose(read(*padded(rows[1:3], 32)), whole[1:3], atol=1e-4)
    # All rows in one, each a segment with positions of its own.
    tokens = np.concatenate(rows)[None]
    positions = np.concatenate([np.arange(len(row)) for row in rows])[None]
    segments = np.concatenate([np.full(len(row), n + 1) for n, row in enumerate(rows)])[None]
    packed = np.asarray(read(tokens, positions, segments))[0]
    apart = np.concatenate([whole[n, : len(row)] for n, row in enumerate(rows)])
    np.testing.assert_allclose(packed, apart, atol=1e-4)


def test_frozen_params_give_the_same_in_their_dtype():
    """Bit for bit, in half the memory: products cast kernels anyway."""
    model = tiny_model()
    coarse = transformer.frozen(model.params, "bfloat16")
    kinds = {x.ndim: x.dtype for x in jax.tree.leaves(coarse["layers"])}
    assert kinds[2] == jnp.float32 and kinds[3] == kinds[4] == jnp.bfloat16  # norms and kernels
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, model.config.vocab_size)
    ones, places = jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(16), (2, 16))

    def said(params):
        hidden = transformer.hidden_states(
            model.config, params, tokens, places, ones, dtype="bfloat16"
        )
        return transformer.logits(params, hidden)

    np.testing.assert_array_equal(said(coarse), said(model.params))


def test_a_row_of_padding_alone_is_finite():
    model = tiny_model()
    tokens = np.zeros((1, 8), np.int32)
    out = logits_of(model.config, model.params, tokens, tokens, tokens)
    assert np.isfinite(out).all()
    gradient = jax.grad(lambda p: logits_of(model.config, p, tokens, tokens, tokens).sum())(
        model.params
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_params_are_the_documented_tree():
    config = dataclasses.replace(CONFIG, tied_embeddings=False)
    v, d, n, h, k, c, f = (
        getattr(config, name)
        for name in ("vocab_size", "embed", "layers", "heads", "kv_heads", "head_dim", "mlp")
    )
    shapes = jax.eval_shape(functools.partial(transformer.init, config), jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, shapes) == {
        "embed": {"embedding": (v, d)},
        "layers": {
            "attention_norm": {"scale": (n, d)},
            "q": {"kernel": (n, d, h, c)},
            "k": {"kernel": (n, d, k, c)},
            "v": {"kernel": (n, d, k, c)},
            "o": {"kernel": (n, h, c, d)},
            "mlp_norm": {"scale": (n, d)},
            "gate": {"kernel": (n, d, f)},
            "up": {"kernel": (n, d, f)},
            "down": {"kernel": (n, f, d)},
        },
        "final_norm": {"scale": (d,)},
        "lm_head": {"kernel": (d, v)},
    }
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    tied = dataclasses.replace(config, tied_embeddings=True)
    tied = jax.eval_shape(functools.partial(transformer.init, tied), jax.random.key(0))
    assert "lm_head" not in tied


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers is 0; it must be >= 1"),
        ({"kv_heads": 3}, r"heads \(4\) is not a multiple of kv_heads \(3\)"),
        ({"head_dim": 7}, "head_dim is 7; rotary positions need an even one"),
    ],
)
def test_a_shape_that_no_model_has_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**dataclasses.asdict(CONFIG) | change)
