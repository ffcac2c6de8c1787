"""llama2.c's files: what was written is read; headers and lengths that lie are refused."""

import dataclasses
import pickle
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights_test import CONFIG, assert_same, llama_cpp_rows, random_params

from cai_jax.models.config import ModelConfig
from cai_jax.weights import names
from cai_jax.weights.llama2c import open_llama2c
from cai_jax.weights.load import load_model
from cai_jax.weights.names import WeightsError

STORIES = Path(__file__).parents[2] / "shared" / "data" / "stories260K" / "stories260K.bin"
PIECES = [" ", "e", "a", " a", "he", " he", "l", "o"]
TOKENS = [
    "<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256)), *PIECES,
]  # fmt: skip
OURS = dataclasses.replace(CONFIG, vocab_size=len(TOKENS), norm_eps=1e-5)
TIED = dataclasses.replace(OURS, tied_embeddings=True)


def vocabulary(tokens=TOKENS) -> bytes:
    data = struct.pack("<i", max(len(t.encode()) for t in tokens))
    for number, token in enumerate(tokens):
        text = token.encode()
        data += struct.pack("<fi", float(-number), len(text)) + text
    return data


def content(config: ModelConfig, params: dict, **header) -> bytes:
    """The file's bytes; `header` is how it lies."""
    by_kind: dict[str, list[np.ndarray]] = {}
    for name, tensor in names.disassemble(params, config, "hugging_face"):
        if "q_proj" in name:
            tensor = llama_cpp_rows(tensor, config.heads)
        if "k_proj" in name:
            tensor = llama_cpp_rows(tensor, config.kv_heads)
        by_kind.setdefault(name.split(".")[-2], []).append(tensor)
    sizes = {
        "dim": config.embed, "hidden_dim": config.mlp, "n_layers": config.layers,
        "n_heads": config.heads, "n_kv_heads": config.kv_heads,
        "vocab_size": config.vocab_size * (1 if config.tied_embeddings else -1),
        "seq_len": config.context,
    } | header  # fmt: skip
    data = struct.pack("<7i", *sizes.values())
    for kind in (
        "embed_tokens", "input_layernorm", "q_proj", "k_proj", "v_proj", "o_proj",
        "post_attention_layernorm", "gate_proj", "down_proj", "up_proj", "norm", "angles",
        "lm_head",
    ):  # fmt: skip
        if kind == "angles":
            data += b"\0" * 4 * config.context * config.head_dim
        data += b"".join(tensor.tobytes() for tensor in by_kind.get(kind, ()))
    return data


def write(folder, config=OURS, words="tokenizer.bin", **header):
    params = random_params(config)
    (folder / "model.bin").write_bytes(content(config, params, **header))
    if words:
        (folder / words).write_bytes(vocabulary())
    return folder / "model.bin", params


@pytest.mark.parametrize("config", [OURS, TIED], ids=["untied", "tied"])
def test_what_was_written_is_read(tmp_path, config):
    path, params = write(tmp_path, config)
    stored = open_llama2c(path)
    assert stored.config == config and stored.template is None
    assert_same(stored.whole()[1], params)
    jax.tree.map(np.testing.assert_array_equal, stored.params("float32", None), params)
    model = load_model(path, "bfloat16")
    assert model.params["final_norm"]["scale"].dtype == jnp.bfloat16
    words = model.tokenizer
    assert (words.bos_id, words.end_ids[0], words.vocab_size) == (1, 2, len(TOKENS))
    assert words.encode(" hello a") == [TOKENS.index(t) for t in (" he", "l", "l", "o", " a")]
    assert words.decode(words.encode("é <s> </s>\n")) == "é <s> </s>\n"
    assert not {1, 2} & set(words.encode("<s>\n<s>\n</s>"))


@pytest.mark.parametrize("words", ["tok267.bin", "tok267.model", "tokenizer.model"])
def test_vocabularies_by_other_names(tmp_path, words):
    path, _ = write(tmp_path)
    expected = open_llama2c(path).tokenizer
    (tmp_path / "tokenizer.bin").unlink()
    data = expected.to_model() if words.endswith(".model") else vocabulary()
    (tmp_path / words).write_bytes(data)
    found = open_llama2c(path).tokenizer
    assert found.encode(" hello a") == expected.encode(" hello a")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"n_layers": 3}, "bytes where its header asks for"),
        ({"vocab_size": 266}, "bytes where its header asks for"),
        ({"seq_len": 65}, "bytes where its header asks for"),
        ({"dim": 0}, "dim = 0"),
        ({"n_heads": 5}, "n_heads = 5, which do not fit"),
        ({"n_kv_heads": 3}, "not a multiple of kv_heads"),
        ({"hidden_dim": 1 << 30}, "hidden_dim = 1073741824"),
        ({"dim": 0x616B3432, "hidden_dim": 2}, "llama2.c's version 2"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, words):
    path, _ = write(tmp_path, **header)
    with pytest.raises(WeightsError, match=words) as error:
        load_model(path)
    assert "model.bin" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [slice(0, 20), slice(0, -4), slice(0, 5000)])
def test_a_file_cut_short_is_refused(tmp_path, cut):
    path, _ = write(tmp_path)
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(WeightsError, match="cut short"):
        load_model(path)


@pytest.mark.parametrize("data", [pickle.dumps({}), b"PK\x03\x04" + b"\0" * 100])
def test_a_pickle_is_refused(tmp_path, data):
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is a pickle"):
        load_model(tmp_path / "pytorch_model.bin")


def test_vocabularies_that_lie_are_refused(tmp_path):
    path, _ = write(tmp_path, words=None)
    with pytest.raises(WeightsError, match=r"has none of tok267\.bin, .* tokenizer\.model"):
        load_model(path)
    for data, words in (
        (vocabulary()[:-3], "cut short or damaged"),
        (vocabulary([*TOKENS, "more"]), "more than the model's 267 tokens"),
        (vocabulary(["x"] * 267), "is no vocabulary"),
        (b"", "cut short"),
    ):
        (tmp_path / "tokenizer.bin").write_bytes(data)
        with pytest.raises(WeightsError, match=words) as error:
            load_model(path)
        assert "tokenizer.bin" in str(error.value)


def test_the_real_stories260k_tells_a_story():
    if not STORIES.exists():
        pytest.skip("stories260K is not in ../shared beside this checkout; the twin above is read")
    model = load_model(STORIES)
    assert sum(x.size for x in jax.tree.leaves(model.params)) == 260_032
    assert (model.config.layers, model.config.vocab_size, model.config.context) == (5, 512, 512)
    start = [model.tokenizer.bos_id, *model.tokenizer.encode(" Once upon a time, there was a")]
    tokens = list(start)
    for _ in range(24):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(tokens)] = tokens
        tokens.append(int(model.logits(padded)[0, len(tokens) - 1].argmax()))
    assert model.tokenizer.decode(tokens[len(start) :]) == STORY


STORY = " little girl named Lily. She loved to play outside in the park. One"
