"""Model files that lie: refused by name through `load_model`, before a value of them is read."""

import json
import struct

import gguf
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file
from weights_test import CONFIG, TEMPLATE, random_params, write_gguf

from cai_jax.tokenizer import BytesTokenizer
from cai_jax.weights.load import load_model
from cai_jax.weights.names import WeightsError
from cai_jax.weights.safetensors import write_directory
from cai_jax.weights.saved import Saved
from cai_jax.weights.stored import Stored

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def nothing_is_read(monkeypatch):
    """Whatever reads params or the values of a tensor fails the test."""

    def read(*_):
        raise AssertionError("params were read")

    for kind in (Stored, Saved):
        monkeypatch.setattr(kind, "params", read)
    monkeypatch.setattr(gguf.quants, "dequantize", only_zeros(gguf.quants.dequantize))


def only_zeros(dequantize):
    """Whether a type can be read is found out on a block of zeros."""

    def of_zeros(data, kind):
        assert len(data) == 1 and not data.any(), "a tensor was read"
        return dequantize(data, kind)

    return of_zeros


@pytest.fixture
def directory(tmp_path):
    folder = tmp_path / "model"
    write_directory(
        folder, CONFIG, random_params(CONFIG), BytesTokenizer(), TEMPLATE, shard_bytes=30_000
    )
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def with_tensors(change):
    """Changes the file that has UP: its tensors, as a dict."""

    def lie(folder):
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        tensors = load_file(folder / index[UP])
        change(tensors)
        save_file(tensors, folder / index[UP])

    return lie


def with_json(name, **change):
    def lie(folder):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | change))

    return lie


def cut(name, keep):
    """Leaves a part of a file."""

    def lie(folder):
        file = next(folder.glob(name))
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * keep)])

    return lie


def header(change):
    """Changes the header of a safetensors file, whose length stays."""

    def lie(folder):
        file = next(folder.glob("*.safetensors"))
        data = file.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        text = change(json.loads(data[8 : 8 + size]))
        text = json.dumps(text).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return lie


def beyond(tensors):
    """The last tensor ends further away than the file does, and is so much longer."""
    name = max(
        (n for n in tensors if n != "__metadata__"), key=lambda n: tensors[n]["data_offsets"]
    )
    first, last = tensors[name]["data_offsets"]
    tensors[name] |= {"data_offsets": [first, 2 * last], "shape": [(2 * last - first) // 4]}
    return tensors


def pickled(folder):
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"PK\x03\x04")


DIRECTORIES = {
    "a tensor is missing": (with_tensors(lambda t: t.pop(UP)), f"lacks the tensor {UP}"),
    "a tensor too many": (with_tensors(lambda t: t.update(x=t[UP])), "has the tensor x"),
    "another shape": (with_tensors(lambda t: t.update({UP: t[UP][:-1]})), f"tensor {UP} in shape"),
    "transposed": (with_tensors(lambda t: t.update({UP: t[UP].T.copy()})), "in shape [32, 64]"),
    "int8": (with_tensors(lambda t: t.update({UP: t[UP].astype(np.int8)})), f"{UP} as I8"),
    "quantised": (
        with_json("config.json", quantization_config={"quant_method": "awq"}), "(awq)",
    ),
    "another architecture": (
        with_json("config.json", architectures=["MambaForCausalLM"], model_type="mamba"), "Mamba",
    ),
    "other sizes": (with_json("config.json", num_hidden_layers=3), "lacks the tensor"),
    "a huge size": (with_json("config.json", vocab_size=1 << 40), "embed_tokens.weight in shape"),
    "sizes of another kind": (with_json("config.json", hidden_size="32"), "hidden_size = '32'"),
    "a shard is cut short": (cut("*1-of-*.safetensors", 0.9), "1-of-"),
    "a shard is empty": (cut("*2-of-*.safetensors", 0), "2-of-"),
    "config.json is cut short": (cut("config.json", 0.5), "config.json is not valid JSON"),
    "the index is cut short": (cut("*.index.json", 0.5), "index.json is not valid JSON"),
    "an offset beyond the end": (header(beyond), "cut short or no safetensors file"),
    "an index of another model": (
        with_json("model.safetensors.index.json", weight_map={"a": "b.safetensors"}),
        "lacks b.safetensors",
    ),
    "the tokenizer is cut short": (cut("tokenizer.json", 0.5), "tokenizer.json"),
    "tokenizer_config.json is cut short": (
        cut("tokenizer_config.json", 0.5), "tokenizer_config.json is not valid JSON",
    ),
    "an end that is no token": (with_json("config.json", eos_token_id=["x"]), "the end token x"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "pickles": (pickled, "only as a pickle (pytorch_model-00001-of-00002.bin)"),
}  # fmt: skip


@pytest.mark.parametrize("lie", DIRECTORIES)
def test_directories(nothing_is_read, directory, monkeypatch, lie):
    change, words = DIRECTORIES[lie]
    change(directory)
    monkeypatch.setattr(safetensors, "safe_open", shut(safetensors.safe_open))
    with pytest.raises(WeightsError) as error:
        load_model(directory)
    assert words in str(error.value) and "model" in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


def shut(safe_open):
    """An open file that tells names, shapes and types alone."""

    class Shape:
        def __init__(self, part):
            self.get_shape, self.get_dtype = part.get_shape, part.get_dtype

    class Handle:
        def __init__(self, *a, **k):
            self.handle = safe_open(*a, **k)
            self.keys = self.handle.keys

        def get_slice(self, name):
            return Shape(self.handle.get_slice(name))

    return Handle


GGUF = {
    "a tensor is missing": ({"drop": "blk.1.ffn_up.weight"}, "the tensor blk.1.ffn_up.weight"),
    "a tensor too many": ({"extra": "blk.2.x"}, "has the tensor blk.2.x"),
    "another shape": ({"reshape": "blk.0.ffn_up.weight"}, "blk.0.ffn_up.weight in shape [64, 31]"),
    "another architecture": ({"architecture": "mamba"}, "the architecture 'mamba'"),
    "experts": ({"experts": 8}, "llama.expert_count = 8"),
    "a vocabulary of another kind": ({"vocabulary": "bert"}, "kind 'bert'"),
    "one of several parts": ({"parts": 3}, "one of 3 parts"),
}  # fmt: skip


@pytest.mark.parametrize("lie", GGUF)
def test_gguf(nothing_is_read, tmp_path, lie):
    change, words = GGUF[lie]
    path = write_gguf(tmp_path / "m.gguf", random_params(CONFIG), **change)
    with pytest.raises(WeightsError) as error:
        load_model(path)
    assert words in str(error.value) and "m.gguf" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.9, 0.9999])
def test_gguf_cut_short(nothing_is_read, tmp_path, keep):
    path = write_gguf(tmp_path / "m.gguf", random_params(CONFIG))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(WeightsError, match=r"m\.gguf is (cut short|not a GGUF file)"):
        load_model(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.pt", "is a pickle"), ("model.pth", "is a pickle"), ("model.ckpt", "is a pickle"),
        ("pytorch_model.bin", "is a pickle"), ("model.safetensors", "give the directory"),
        ("model.onnx", "no model at"),
    ],
)  # fmt: skip
def test_files_of_other_kinds(nothing_is_read, tmp_path, name, words):
    (tmp_path / name).write_bytes(b"PK\x03\x04" + b"\0" * 100)
    with pytest.raises(WeightsError, match=words) as error:
        load_model(tmp_path / name)
    assert name in str(error.value)
