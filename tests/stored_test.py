"""Params a slice at a time: the same bits as read whole, each tensor once, little memory."""

import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import processes
import pytest
import weights_test
from safetensors.numpy import save_file
from weights_test import BIASED, CONFIG, llama_cpp_rows, random_params, write_gguf

from cai_jax.mesh import MESH_AXES, make_mesh
from cai_jax.models.config import ModelConfig
from cai_jax.tokenizer import BytesTokenizer
from cai_jax.weights import names
from cai_jax.weights.gguf import open_gguf
from cai_jax.weights.load import load_model
from cai_jax.weights.safetensors import open_directory, write_directory
from cai_jax.weights.stored import Stored

MIXTURE = ModelConfig(**{**vars(CONFIG), "experts": 3, "experts_per_token": 2})
TIED = ModelConfig(**{**vars(CONFIG), "tied_embeddings": True})
MESHES = [None, (1, 1, 8, 1, 1), (1, 2, 2, 1, 2), (2, 1, 2, 2, 1), (1, 8, 1, 1, 1)]


def opened(config, folder, kind="hugging_face"):
    if kind == "gguf":
        return open_gguf(write_gguf(folder / "m.gguf", random_params(config), config))
    write_directory(folder / "m", config, random_params(config), BytesTokenizer(), None)
    return open_directory(folder / "m")


def counted(stored: Stored) -> tuple[Stored, dict[str, int]]:
    """The same, and the bytes that leave each tensor while it is used."""
    count = {}

    def read(name, index=()):
        part = stored.read(name, index)
        count[name] = count.get(name, 0) + part.nbytes
        return part

    return Stored(**{**vars(stored), "read": read}), count


CASES = [
    (CONFIG, "hugging_face"), (BIASED, "hugging_face"), (MIXTURE, "hugging_face"),
    (TIED, "hugging_face"), (CONFIG, "gguf"),
]  # fmt: skip

# Of files that keep queries, keys and values in one tensor, one after the other or head by head.
JOINED = [
    ModelConfig(**{**vars(CONFIG), "model_type": "phi3"}),
    ModelConfig(**{
        **vars(CONFIG), "kv_heads": CONFIG.heads, "norm": "layer", "gated": False, "qkv_bias": True,
        "o_bias": True, "mlp_bias": True, "parallel_residual": True, "activation": "gelu",
    }),
]  # fmt: skip


def test_on_any_mesh_params_are_those_of_the_whole_file(tmp_path):
    """In a process of its own with eight devices."""
    program = """
        import sys, jax
        from pathlib import Path
        import stored_test
        assert jax.device_count() == 8
        stored_test.compare_all(Path(sys.argv[1]))
    """
    run(program, tmp_path, devices=8)


def compare_all(folder):
    for number, config in enumerate(JOINED):
        (folder / f"joined{number}").mkdir()
        stored = opened(config, folder / f"joined{number}")
        whole = stored.whole()[1]
        for shape in MESHES:
            mesh = shape and make_mesh(dict(zip(MESH_AXES, shape, strict=True)))
            jax.tree.map(same_bits("float32"), stored.params("float32", mesh), whole)
    for number, (config, kind) in enumerate(CASES):
        (folder / str(number)).mkdir()
        stored, count = counted(opened(config, folder / str(number), kind))
        whole = stored.whole()[1]
        sizes = dict(count)
        for shape in MESHES:
            mesh = shape and make_mesh(dict(zip(MESH_AXES, shape, strict=True)))
            for dtype in ("float32", "bfloat16"):
                count.clear()
                params = stored.params(dtype, mesh)
                assert count == sizes, "each tensor once, however many devices want it"
                jax.tree.map(same_bits(dtype), params, whole)
                if mesh:
                    from cai_jax.mesh import layout, place

                    assert layout(params) == layout(place(params, mesh))


def test_saved_params_go_to_the_device_that_code_asks_for(tmp_path):
    """As import-weights and export-weights do, whose models need not fit an accelerator."""
    program = """
        import sys, jax, jax.numpy as jnp
        from cai_jax.saved_params import load_params, save_params
        save_params(sys.argv[1] + "/p", {"a": jnp.ones(4)}, {})
        with jax.default_device(jax.devices()[2]):
            assert load_params(sys.argv[1] + "/p")[0]["a"].devices() == {jax.devices()[2]}
        assert load_params(sys.argv[1] + "/p")[0]["a"].devices() == {jax.devices()[0]}
    """
    run(program, tmp_path, devices=4)


def same_bits(dtype):
    def check(a, b):
        assert a.dtype == dtype
        assert np.asarray(a).tobytes() == np.asarray(jnp.asarray(b, dtype)).tobytes()

    return check


@pytest.mark.parametrize(("config", "kind"), CASES)
def test_on_one_device_params_are_those_of_the_whole_file(tmp_path, config, kind):
    stored, count = counted(opened(config, tmp_path, kind))
    whole = stored.whole()[1]
    sizes = dict(count)
    count.clear()
    jax.tree.map(same_bits("float32"), stored.params("float32", None), whole)
    assert count == sizes


def test_opening_reads_no_tensor(tmp_path, monkeypatch):
    """And a dimension that the mesh does not divide is found before one is read."""
    import safetensors

    write_directory(tmp_path / "m", CONFIG, random_params(CONFIG), BytesTokenizer(), None)
    read = []

    class Handle:
        def __init__(self, *a, **k):
            self.handle = safetensors_open(*a, **k)

        def keys(self):
            return self.handle.keys()

        def get_slice(self, name):
            part = self.handle.get_slice(name)

            class Part:
                get_shape, get_dtype = part.get_shape, part.get_dtype

                def __getitem__(self, index):
                    read.append(name)
                    return part[index]

            return Part()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    safetensors_open = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", Handle)
    stored = open_directory(tmp_path / "m")
    assert read == []
    abstract = jax.sharding.AbstractMesh((1, 1, 3, 1, 1), MESH_AXES)
    with pytest.raises(ValueError, match="which the mesh splits 3 ways"):
        stored.params("float32", abstract)
    assert read == []
    stored.params("float32", None)
    assert len(read) == len(set(read)) == 21


def test_the_fingerprint_is_of_the_files_in_order(tmp_path):
    model = load_model(sharded(CONFIG, tmp_path / "m", shards=2))
    again = load_model(sharded(CONFIG, tmp_path / "again", shards=2), "bfloat16")
    assert model.fingerprint == again.fingerprint and len(model.fingerprint) == 16
    other = load_model(sharded(CONFIG, tmp_path / "other", shards=2, seed=1))
    assert other.fingerprint != model.fingerprint


def test_each_of_two_hosts_reads_its_slices(tmp_path):
    """By the bytes that leave the files: half of all that the mesh splits, twice what it does not.

    The two put together have what one process reads.
    """
    program = """
        import json, sys
        from pathlib import Path
        from cai_jax import hosts
        hosts.start()
        import jax, stored_test
        print(json.dumps(stored_test.on_one_of_two(Path(sys.argv[1]))))
    """
    folder = sharded(CONFIG, tmp_path / "m", shards=3)
    pair = [start(program, folder, 2, **joined) for joined in processes.two()]
    found = [ended(process) for process in pair]
    stored, count = counted(open_directory(folder))
    stored.whole()
    for name, size in count.items():
        share = 1 if name.endswith("norm.weight") else 2
        assert [f["read"][name] for f in found] == [size // share] * 2, name
    total = sum(count.values())
    assert [sum(f["read"].values()) / total < 0.51 for f in found] == [True, True]
    whole = dict(weights_test.leaves(random_params(CONFIG)))
    for name, array in whole.items():
        sums = {tuple(s): v for f in found for s, v in f["sums"][name]}
        assert sum(sums.values()) == pytest.approx(float(array.sum(dtype=np.float64)), abs=1e-3)


def on_one_of_two(folder):
    mesh = make_mesh(dict(zip(MESH_AXES, (1, 1, 4, 1, 1), strict=True)))
    stored, count = counted(open_directory(folder))
    params = stored.params("float32", mesh)
    sums = {
        name: [
            (str(s.index), float(np.asarray(s.data).sum(dtype=np.float64)))
            for s in array.addressable_shards
        ]
        for name, array in weights_test.leaves(params)
    }
    return {"read": count, "sums": sums}


# About a gigabyte in bfloat16: of the size of Llama's kernels, not of their number.
LARGE = ModelConfig(
    vocab_size=16384, embed=2048, layers=8, heads=16, kv_heads=4, head_dim=128, mlp=8192,
    rope_theta=10000.0, norm_eps=1e-5, tied_embeddings=True, context=64,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_a_gigabyte_is_loaded_with_little_more(tmp_path, devices):
    """Peak growth of a process that loads 1 GB as it is stored, over eight devices and on one."""
    if (Path("/proc/meminfo").exists() and free_memory() < 4 << 30) or free_disk(
        tmp_path
    ) < 4 << 30:
        pytest.skip("needs 4 GB of memory and of disk")
    folder = sharded(LARGE, tmp_path / "m", shards=4, zeros=True)
    program = """
        import json, sys
        from pathlib import Path
        import stored_test
        print(json.dumps(stored_test.growth(Path(sys.argv[1]))))
    """
    found = ended(start(program, folder, devices))
    (folder / "0.safetensors").unlink()
    assert found["size"] > 1e9 * 0.9
    assert found["grown"] < 1.75 * found["size"], found


def growth(folder):
    """Bytes of the params, and by how much the process's peak grew while they were loaded."""
    mesh = make_mesh(dict.fromkeys(MESH_AXES, 1) | {"fsdp": -1})
    jax.block_until_ready(jnp.zeros(8) + 1)
    before = peak()
    stored = open_directory(folder)
    params = stored.params("bfloat16", mesh if jax.device_count() > 1 else None)
    return {"size": sum(x.nbytes for x in jax.tree.leaves(params)), "grown": peak() - before}


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory():
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def free_disk(folder):
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def sharded(config, folder, shards, seed=0, zeros=False):
    """A directory in Hugging Face layout in several files, bfloat16 where it is `zeros`."""
    write_directory(folder, CONFIG, random_params(CONFIG), BytesTokenizer(), None)
    (folder / "model.safetensors").unlink()
    raw = json.loads((folder / "config.json").read_text())
    from cai_jax.weights.hugging_face import json_of

    (folder / "config.json").write_text(json.dumps(raw | json_of(config, BytesTokenizer())))
    if zeros:
        tensors = [
            (name, np.zeros(names.file_shape(row, config), ml_dtypes.bfloat16))
            for row in names.rows(config)
            for name in names.file_names(row, config, "hugging_face")
        ]
    else:
        tensors = list(names.disassemble(random_params(config, seed), config, "hugging_face"))
    parts = [dict(tensors[n::shards]) for n in range(shards)]
    for number, part in enumerate(parts):
        save_file(part, folder / f"{number}.safetensors")
    where = {name: f"{n}.safetensors" for n, part in enumerate(parts) for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def start(program, folder, devices, **joined):
    environment = {**os.environ, **joined}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [Path(__file__).parents[1], *sys.path]))
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(folder)],
        cwd=Path(__file__).parent, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def run(program, folder, devices):
    process = start(program, folder, devices)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]


def test_gguf_rows_are_turned_by_whole_heads(tmp_path):
    """A slice of q's rows is turned as the whole is."""
    stored = opened(CONFIG, tmp_path, "gguf")
    name = "blk.1.attn_q.weight"
    whole = stored.read(name)
    part = stored.read(name, (slice(8, 24), slice(4, 12)))
    np.testing.assert_array_equal(part, whole[8:24, 4:12])
    assert not np.array_equal(whole, llama_cpp_rows(whole, CONFIG.heads))
