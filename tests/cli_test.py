"""The command line: bad input gets one sentence and exit code 2, before anything is computed."""

import collections
import json
import shutil
import signal
import sys

import jax.numpy as jnp
import pytest
import tiny_run

from cai_jax import cli, pipeline
from cai_jax import run as run_module
from cai_jax.conversation import Conversation
from cai_jax.progress import Progress
from cai_jax.records import Provenance, Response
from cai_jax.run import Run
from cai_jax.saved_params import save_params
from cai_jax.settings import differences, run_settings
from cai_jax.shards import Shards
from cai_jax.training.checkpoint import Checkpoints
from cai_jax.workdir import Workdir


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return tiny_run.write(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(autouse=True)
def surroundings(tiny_cache, monkeypatch):
    monkeypatch.setenv("CAI_JAX_CACHE", str(tiny_cache))
    monkeypatch.delenv("CAI_JAX_TRACEBACK", raising=False)
    # A config that is loaded a second time in one process would find the first one's names.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)


@pytest.fixture
def computes_nothing(monkeypatch):
    """Any use of the engine, of a training loop or of a checkpoint is a failure."""

    def refuse(*args, **kwargs):
        raise AssertionError("computed before everything was checked")

    monkeypatch.setattr(run_module, "engine_of", refuse)
    monkeypatch.setattr(run_module, "load_params", refuse)


def complaint(capsys, *argv: str) -> str:
    """The one sentence that a command ends with."""
    assert cli.main(list(argv)) == 2
    error = capsys.readouterr().err
    assert error.startswith("cai-jax: ")
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    return error.removeprefix("cai-jax: ").rstrip("\n")


def test_help(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in ("run", *cli.STAGES, *cli.TOOLS, *cli.CURVES, "doctor"))
    assert cli.main([]) == 2


def test_an_unknown_verb(capsys):
    said = complaint(capsys, "train")
    assert said.startswith("there is no verb 'train'; known verbs: run, revise,")


@pytest.mark.parametrize("verb", ["run", *cli.STAGES])
def test_every_stage_needs_a_config_and_a_workdir(capsys, experiment, verb):
    assert complaint(capsys, verb) == (
        "--config=FILE.py is missing, such as experiments/quickstart.py."
    )
    said = complaint(capsys, verb, f"--config={experiment.config}")
    assert said == "--workdir=DIR is missing: the folder for records and checkpoints."


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--config.nosuch=1"],
            "there is no setting 'nosuch'; known there: algorithm, compare, const",
        ),
        (["--config.ppo.nosuch=1"], "there is no setting 'nosuch'; known there: advantage"),
        (["--config.seed.nosuch=1"], "there is no setting 'nosuch'; nothing is below it."),
        (["--config.ppo.updates=x"], "--config.ppo.updates=x: 'x' is no whole number."),
        (["--config.ppo.temperature=x"], "--config.ppo.temperature=x: 'x' is no number."),
        (["--config.ppo=1"], "--config.ppo=1"),
        (["--config.ppo.updates=0"], "config.ppo.updates is 0; it must be at least 1."),
        (["--config.ppo.minibatches=3"], "ppo.batch_size (4) is not a multiple"),
        (["--nosuch=1"], "nosuch"),
        (["--force=maybe"], "force"),
        (["stray"], "'stray' is not understood"),
        (["--workdir="], "--workdir=DIR is missing"),
        (["--config.prompts.red_team=nowhere.jsonl"], "nowhere.jsonl"),
        (["--config.constitution=nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--config.model=nowhere"], "no model at 'nowhere'"),
        (["--config.feedback_model=nowhere"], "no model at 'nowhere'"),
        (["--config.dtype=int8"], "config.dtype is 'int8'"),
        (["--config.engine.max_length=64"], "prompts.red_team: prompt 'red_team-0' has"),
        (["--config.mesh.data=3"], "data=3"),
    ],
)
@pytest.mark.usefixtures("computes_nothing")
def test_bad_flags(capsys, experiment, tmp_path, flags, sentence):
    said = complaint(capsys, *experiment.command("run", tmp_path / "run", *flags))
    assert sentence in said
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def get_config(:", "tiny.py"),
        ("raise RuntimeError('out of tea')", "out of tea"),
        ("def get_config():\n    return 1 / 0", "division by zero"),
        ("def get_config():\n    raise KeyError('tea')", "tea"),
        ("import nosuch_module", "nosuch_module"),
        ("x = 1", "get_config"),
        ("def get_config():\n    return None", "tiny.py"),
        ("def get_config():\n    return {'seed': 0}", "config.algorithm is missing"),
        ("def get_config():\n    open('no tea')", "No such file or directory: 'no tea'"),
        ("def get_config():\n    raise ValueError('no tea.')", "tiny.py cannot be used: no tea."),
        ("import sys\nsys.exit(3)", "tiny.py"),
    ],
)
def test_a_config_file_that_fails(capsys, tmp_path, text, sentence):
    file = tmp_path / "tiny.py"
    file.write_text(text + "\n")
    said = complaint(capsys, "run", f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert sentence in said


def test_a_config_file_that_is_not_there(capsys, tmp_path):
    said = complaint(capsys, "run", "--config=nowhere.py", f"--workdir={tmp_path}")
    assert said == "--config: there is no file nowhere.py."
    said = complaint(capsys, "run", f"--config={tmp_path}", f"--workdir={tmp_path}")
    assert said == f"--config: there is no file {tmp_path}."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the file holds no prompts"),
        ("\n\n", "the file holds no prompts"),
        ('{"prompt": "a"}\n{"prompt": }\n', "line 2: not valid JSON"),
        ('{"prompt": "a"}\n{"text": "b"}\n', 'line 2: give the field "prompt" or'),
        ('{"prompt": "a"}\n{"prompt": ""}\n', "line 2: prompt is empty"),
        ('{"prompt": "a"}\n{"prompt": "a"}\n', "line 2: the prompt already stands on line 1"),
        (b'{"prompt": "\xff"}\n', "line 1: not UTF-8 text"),
    ],
)
@pytest.mark.usefixtures("computes_nothing")
def test_prompts_that_cannot_be_read(capsys, experiment, tmp_path, text, sentence):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    flag = f"--config.prompts.held_out_helpful={file}"
    said = complaint(capsys, *experiment.command("run", tmp_path / "run", flag))
    assert said.startswith(str(file))
    assert sentence in said


@pytest.mark.parametrize("name", ["red_team", "helpful", "held_out_red_team", "held_out_helpful"])
@pytest.mark.usefixtures("computes_nothing")
def test_a_prompt_longer_than_the_context(capsys, experiment, tmp_path, name):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"id": "long", "prompt": "a" * 3000}) + "\n")
    flag = f"--config.prompts.{name}={file}"
    said = complaint(capsys, *experiment.command("run", tmp_path / "run", flag))
    assert f"prompts.{name}: prompt 'long' has 30" in said
    assert "2048" in said


@pytest.mark.usefixtures("computes_nothing")
def test_a_constitution_with_a_missing_field(capsys, experiment, tmp_path):
    text = (tiny_run.ROOT / "constitutions" / "general.yaml").read_text("utf-8")
    lines = text.splitlines(keepends=True)
    start = next(n for n, line in enumerate(lines) if "revision_request:" in line)
    end = next(n for n in range(start + 1, len(lines)) if lines[n].startswith("  - "))
    file = tmp_path / "mine.yaml"
    file.write_text("".join(lines[:start] + lines[end:]), "utf-8")
    flag = f"--config.constitution={file}"
    said = complaint(capsys, *experiment.command("run", tmp_path / "run", flag))
    assert said.startswith(f"{file}, line ")
    assert "revision_request" in said


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: (d / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer"),
        (lambda d: _cut(d / "model.safetensors"), "cut short"),
        (lambda d: _set(d / "config.json", "num_hidden_layers", 3), "layers.2"),
        (lambda d: _set(d / "config.json", "hidden_size", 16), "shape"),
        (lambda d: _set(d / "config.json", "model_type", "gpt2"), "only LlamaForCausalLM"),
        (lambda d: (d / "config.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "chat_template.jinja").write_text("{% for %}"), "template"),
    ],
)
@pytest.mark.usefixtures("computes_nothing")
def test_a_model_that_is_missing_or_lies(capsys, experiment, tmp_path, damage, sentence):
    folder = tmp_path / "model"
    shutil.copytree(experiment.folder / "model", folder)
    damage(folder)
    flag = f"--config.model={folder}"
    said = complaint(capsys, *experiment.command("run", tmp_path / "run", flag))
    assert sentence in said
    assert str(folder) in said


def _cut(file):
    file.write_bytes(file.read_bytes()[:-1000])


def _set(file, key, value):
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))


@pytest.mark.usefixtures("computes_nothing")
def test_a_workdir_that_cannot_be_written(capsys, experiment, tmp_path):
    (tmp_path / "run").write_text("")
    said = complaint(capsys, *experiment.command("run", tmp_path / "run"))
    assert said.startswith(f"workdir {tmp_path / 'run'} cannot be written")


@pytest.mark.usefixtures("computes_nothing")
def test_a_full_disk(capsys, experiment, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    said = complaint(capsys, *experiment.command("run", tmp_path / "run"))
    assert "0.0 GB free" in said


@pytest.mark.parametrize(
    ("verb", "needed"),
    [
        ("finetune", "revise"),
        ("compare", "finetune"),
        ("train-pm", "compare"),
        ("train-rl", "finetune"),
        ("evaluate", "finetune"),
        ("figures", "evaluation"),
    ],
)
@pytest.mark.usefixtures("computes_nothing")
def test_a_stage_before_its_time(capsys, experiment, tmp_path, verb, needed):
    said = complaint(capsys, *experiment.command(verb, tmp_path / "run"))
    assert f"has no finished '{needed}'" in said


@pytest.fixture
def mark_finished(experiment, tmp_path):
    """Marks stages as finished whose outputs a test then spoils."""

    def mark(*stages: str) -> None:
        config, workdir, _ = cli.parse(experiment.command("run", tmp_path / "run")[1:])
        run = Run(run_settings(config), Workdir(workdir), Progress())
        for stage in stages:
            run.workdir.begin(stage, run.inputs(stage))
            run.workdir.finish(stage, {})

    return mark


def test_params_of_another_shape(capsys, experiment, tmp_path, mark_finished):
    mark_finished("revise", "finetune")
    other = {"embed": {"embedding": jnp.ones((3, 5))}}
    save_params(tmp_path / "run" / "finetune" / "params", other, {})
    said = complaint(capsys, *experiment.command("compare", tmp_path / "run"))
    assert "embed/embedding" in said
    assert "float32[3,5]" in said
    assert "needs float32[" in said


def test_truncated_params(capsys, experiment, tmp_path, mark_finished):
    mark_finished("revise", "finetune")
    params = tmp_path / "run" / "finetune" / "params"
    save_params(params, {"embed": {"embedding": jnp.ones((300, 500))}}, {})
    largest = max(params.rglob("*"), key=lambda f: f.stat().st_size if f.is_file() else 0)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    said = complaint(capsys, *experiment.command("compare", tmp_path / "run"))
    assert f"{params} cannot be read" in said
    shutil.rmtree(params)
    said = complaint(capsys, *experiment.command("compare", tmp_path / "run"))
    assert said == f"There are no saved parameters at {params}."


def test_a_checkpoint_of_another_shape(capsys, experiment, tmp_path, mark_finished):
    mark_finished("revise")
    for name in ("revisions", "helpful"):
        (tmp_path / "run" / "revise" / name).mkdir()
    _write_records(tmp_path / "run" / "revise")
    checkpoints = Checkpoints(tmp_path / "run" / "finetune" / "checkpoints", 1)
    checkpoints.save(3, {"step": jnp.int32(3)}, {})
    checkpoints.close()
    said = complaint(capsys, *experiment.command("finetune", tmp_path / "run"))
    assert "where this run's config needs" in said


def _write_records(folder):
    prompt, source = Conversation().human("Name a fruit."), Provenance("m", "c", 0, "")
    rows = [Response("a", "helpful", prompt, "A pear.", (1,), "end", 0, source)]
    Shards(folder / "helpful", 1).write(0, rows)


def test_a_damaged_shard(capsys, experiment, tmp_path, mark_finished):
    mark_finished("revise")
    _write_records(tmp_path / "run" / "revise")
    shard = tmp_path / "run" / "revise" / "helpful" / "00000-of-00001.jsonl"
    shard.write_bytes(shard.read_bytes()[:-20])
    said = complaint(capsys, *experiment.command("finetune", tmp_path / "run"))
    assert said == f"{shard}, line 1: the shard is cut short; delete it and run again."


def test_records_that_hold_nothing_to_learn(capsys, experiment, tmp_path, mark_finished):
    mark_finished("revise")
    said = complaint(capsys, *experiment.command("finetune", tmp_path / "run"))
    assert "no examples" in said


def test_the_commands_own_process(experiment, tiny_cache):
    """Through the interpreter, as the installed script does; standard error holds the sentence."""
    ended = tiny_run.run_apart(["run", f"--config={experiment.config}"], tiny_cache)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        "cai-jax: --workdir=DIR is missing: the folder for records and checkpoints."
    )
    assert "Traceback" not in ended.stderr


def test_a_traceback_on_request(experiment, monkeypatch):
    monkeypatch.setenv("CAI_JAX_TRACEBACK", "1")
    with pytest.raises(cli.UsageError):
        cli.main(["nosuch"])


def test_an_interrupted_run_says_how_to_go_on(capsys, experiment, tmp_path, monkeypatch):
    def interrupt(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "revise", interrupt)
    assert cli.main(experiment.command("run", tmp_path / "run")) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_sigterm_has_an_exit_code_of_its_own(capsys, experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "revise", lambda run: signal.raise_signal(signal.SIGTERM))
    former = signal.getsignal(signal.SIGTERM)
    assert cli.main(experiment.command("run", tmp_path / "run")) == 143
    said = capsys.readouterr().err.strip().splitlines()
    assert said == ["Stopped by SIGTERM; run the same command again to continue."]
    assert signal.getsignal(signal.SIGTERM) == former


def test_a_run_says_what_differs_from_the_defaults(capsys, experiment, tmp_path, monkeypatch):
    def stop(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "revise", stop)
    cli.main(experiment.command("run", tmp_path / "run", "--config.ppo.gamma=0.5"))
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("settings, where they differ from their (defaults): compare: ")
    assert "finetune: batch_size 1 (32), epochs 2 (1), length 128 (1024)," in said
    assert "gamma 0.5 (1.0)" in said and " lam " not in said


@pytest.mark.parametrize("name", ["quickstart.py:smoke", "figures/fig5.py:laptop", "common.py"])
def test_the_defaults_of_an_experiment_are_those_of_common(name):
    arguments = [f"--config={tiny_run.ROOT}/experiments/{name}", "--workdir=run"]
    config, _, _ = cli.parse(arguments)
    defaults = cli.defaults_of(arguments)
    assert defaults["finetune"]["batch_size"] == 32
    assert bool(differences(config.to_dict(), defaults)) == (name != "common.py")


def test_a_config_without_a_common_has_no_defaults(tmp_path):
    assert cli.defaults_of([f"--config={tmp_path / 'mine.py'}"]) is None


def test_quickstart_builds_in_both_sizes():
    for size in ("", ":smoke", ":full"):
        flag = f"--config={tiny_run.ROOT}/experiments/quickstart.py{size}"
        config, workdir, force = cli.parse([flag, "--workdir=run", "--config.seed=3"])
        assert (config.seed, str(workdir), force) == (3, "run", False)
        config, _, force = cli.parse(
            [flag, "--workdir=run", "--config.compare.clamp=(0.4, 0.6)", "--force"]
        )
        assert (config.compare.clamp, force) == ((0.4, 0.6), True)


def test_an_argument_of_a_config_that_it_does_not_know(capsys, tmp_path):
    flag = f"--config={tiny_run.ROOT}/experiments/quickstart.py:huge"
    said = complaint(capsys, "run", flag, f"--workdir={tmp_path}")
    assert "quickstart.py:huge is unknown" in said


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, None),
        ({"XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=4"}, "16"),
        ({"JAX_NUM_CPU_DEVICES": "8"}, "32"),
        ({"JAX_NUM_CPU_DEVICES": "8", "NPROC": "3"}, "3"),
    ],
)
def test_virtual_devices_get_threads_enough_to_meet(environment, threads):
    """With too few of them a run ends with XLA's "Termination timeout", now and then."""
    cli._threads_for_virtual_devices(environment)
    assert environment.get("NPROC") == threads
