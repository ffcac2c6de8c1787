"""What several test modules share. Only `smollm2` may touch a network, on its first fetch."""

import io
import os

# Before transformers is imported: the models compared with are written by the tests themselves.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before gcsfs is, whoever imports it: it would ask the real store what kind of bucket the stand-in
# is, again and again, and make an hour of the tests.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# Before jax is: most of the tests' time is compilation, of programs that run once.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

from pathlib import Path

import jax
import pytest
from fakes import tiny_model

from cai_jax import cli, storage
from cai_jax.weights.load import load_model

PROCESS = 4e9  # bytes that one of the tests' processes may take, with those that it starts
# Linux maps no more than 65,530 areas for a process, and a compiled program takes several.
MOST_MAPPED = 20_000


def pytest_xdist_auto_num_workers() -> int:
    """Processes for `-n auto`: one a core, as far as memory goes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, int(memory / PROCESS)))


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_forgotten():
    """Forgets what earlier modules compiled, before a whole run of the tests has no room to map."""
    yield
    mapped = Path("/proc/self/maps")
    if mapped.exists() and mapped.read_text().count("\n") > MOST_MAPPED:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _buckets_forgotten(monkeypatch):
    """A command names the buckets that it was asked for, not those of the tests before it."""
    monkeypatch.setattr(storage, "_named", [])


@pytest.fixture
def typed(monkeypatch, capsys):
    """typed(arguments, lines of stdin) -> (exit code, stdout, stderr)."""

    def run(*arguments, lines=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capsys.readouterr()
        code = cli.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def model():
    """The tiny model that reads the paper's plain text."""
    return tiny_model()


@pytest.fixture(scope="session")
def chat_model():
    """The tiny model that reads ChatML."""
    return tiny_model(chat=True)


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory):
    """A cache folder for tiny runs: compiled programs and prepared prompts, one for all tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose folders lie in one of all processes
        folder = folder.parent
    (folder / "cache").mkdir(exist_ok=True)
    return folder / "cache"


@pytest.fixture(scope="session")
def finished(tiny_cache, tmp_path_factory):
    """(experiment, workdir) of a whole tiny run in the paper's format; not to be changed."""
    import tiny_run

    experiment = tiny_run.write(tmp_path_factory.mktemp("experiment"))
    workdir = tmp_path_factory.mktemp("finished") / "run"
    ended = tiny_run.run_apart(experiment.command("run", workdir), tiny_cache)
    assert ended.returncode == 0, ended.stderr
    return experiment, workdir


@pytest.fixture(scope="session")
def served():
    """The stand-in for a bucket, which this process and those that it starts reach."""
    import fsspec
    import gcs_stand_in

    with gcs_stand_in.Store().serve() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        fsspec.config.set_conf_env(fsspec.config.conf)  # read once, when fsspec is imported
        yield store


@pytest.fixture
def store(served):
    """An empty bucket of that stand-in."""
    served.clear()
    return served


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct from the user's cache, fetched if need be."""
    try:
        return load_model("smollm2-135m-instruct")
    except (ValueError, OSError) as error:
        pytest.skip(f"SmolLM2 is not cached and cannot be fetched: {error}")


@pytest.fixture(scope="session")
def smollm2_in_transformers(smollm2, tmp_path_factory):
    """The same weights through our writer and transformers' reader."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from cai_jax.weights.safetensors import write_directory

    folder = tmp_path_factory.mktemp("smollm2")
    template = smollm2.format.template
    write_directory(folder, smollm2.config, smollm2.params, smollm2.tokenizer, template)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for file in folder.glob("*.safetensors"):
        file.unlink()  # half a gigabyte, no longer needed
    return loaded.eval()
