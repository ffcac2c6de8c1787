"""chat, fetch, data and constitution, as typed; bad input gives one sentence."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from fakes import CHATML, tiny_model
from paper_prompts_test import PAPER, TWIN

from cai_jax import cli, tools
from cai_jax.constitution import load
from cai_jax.conversation import Conversation
from cai_jax.datasets import xstest
from cai_jax.decoding.respond import Reply
from cai_jax.saved_params import save_params
from cai_jax.weights import fetch as weights
from cai_jax.weights.safetensors import write_directory

ROOT = Path(__file__).parents[1]
GENERAL, DEFAULT = (ROOT / "constitutions" / f"{n}.yaml" for n in ("general", "default"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of the tiny models, "plain" and "chat"."""
    folder = tmp_path_factory.mktemp("models")
    for name, template in (("plain", None), ("chat", CHATML)):
        model = tiny_model(chat=template is not None)
        write_directory(folder / name, model.config, model.params, model.tokenizer, template)
    return folder


@pytest.fixture(scope="module")
def workdir(models, tmp_path_factory):
    """A run that has finished finetuning: its params are the start's, and 1 more in a norm."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(
        json.dumps({"model": str(models / "plain"), "dtype": "float32"})
    )
    params = tiny_model().params
    params = params | {"final_norm": {"scale": params["final_norm"]["scale"] + 1}}
    save_params(folder / "finetune" / "params", params, {})
    (folder / "finetune" / "done.json").write_text("{}")
    return folder


@pytest.fixture
def typed(monkeypatch, capsys):
    """typed(arguments, lines of stdin) -> (exit code, stdout, stderr)."""

    def run(*arguments, lines=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capsys.readouterr()
        code = cli.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def echo(monkeypatch):
    """Stands in for the model: answers with the human turns it was given; keeps that."""
    asked = []

    def respond(engine, form, prompts, **options):
        ((name, conversation),) = prompts
        asked.append((name, conversation, options))
        said = "+".join(t.text for t in conversation.turns if t.role == "human")
        return [[Reply(said, (), (), "end")]]

    monkeypatch.setattr(tools, "respond", respond)
    return asked


def test_constitution_check(typed):
    code, out, err = typed("constitution", "check", GENERAL)
    made = load(GENERAL)
    assert (code, err) == (0, "")
    first, *rest = out.splitlines()
    assert made.name in first and made.hash in first
    assert "3 critique principles" in rest and "3 comparison principles" in rest
    for principle in (*made.critique, *made.comparison):
        assert any(line.startswith(f"  {principle.id}: ") for line in rest)


def test_constitution_diff(typed, tmp_path):
    changed = tmp_path / "changed.yaml"
    changed.write_text(GENERAL.read_text("utf-8").replace("wise, honest", "wise, frank"), "utf-8")
    assert typed("constitution", "diff", GENERAL, GENERAL)[:2] == (0, "No difference.\n")
    _, out, _ = typed("constitution", "diff", GENERAL, changed)
    assert "comparison principle changed: good-friend" in out and "{+frank+}" in out


@pytest.mark.parametrize("source", ["twin", "published"])
def test_constitution_import(typed, tmp_path, source):
    folder = tmp_path
    if source == "twin":
        for name, content in TWIN.items():
            (folder / name).write_text(json.dumps(content), "utf-8")
    elif not (folder := PAPER / "prompts").exists():
        pytest.skip("the paper's files are not beside this checkout")
    made = tmp_path / "made.yaml"
    command = ("constitution", "import", f"--from={folder}", f"--to={made}")
    code, out, _ = typed(*command)
    assert code == 0 and load(made).hash in out
    before = made.read_bytes()
    code, _, err = typed(*command)
    assert code == 2 and "--force" in err and made.read_bytes() == before
    assert typed(*command, "--force")[0] == 0


def test_fetch_names_file_and_checksum(typed, monkeypatch, tmp_path):
    data = b"weights"
    source = weights.Source("nothing==1", "somewhere/tiny.gguf", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(weights, "SOURCES", {"tiny": source})
    monkeypatch.setenv("CAI_JAX_CACHE", str(tmp_path))
    (tmp_path / "tiny.gguf").write_bytes(data)
    code, out, _ = typed("fetch", "tiny")
    assert code == 0 and str(tmp_path / "tiny.gguf") in out and source.sha256 in out


def test_fetch_and_data_of_a_data_set(typed, monkeypatch, tmp_path):
    monkeypatch.setenv("CAI_JAX_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "xstest_prompts.csv"
    source.write_text("id,prompt,type,label,focus,note\n1,Kill time?,homonyms,safe,kill,\n")
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    file = dataclasses.replace(xstest.FILE, url=source.as_uri(), checksum=sha256)
    monkeypatch.setattr(xstest, "FILE", file)
    code, out, _ = typed("data")
    assert code == 0 and "xstest                            0/1" in out
    code, out, _ = typed("fetch", "xstest")
    kept = tmp_path / "cache" / "downloads" / "xstest" / "xstest_prompts.csv"
    assert (code, out) == (0, f"{kept}\n") and kept.read_bytes() == source.read_bytes()
    for command in (("data", "xstest"), ("data", "xstest", f"--manual_dir={tmp_path}")):
        code, out, _ = typed(*command)
        assert code == 0 and "as published" in out and "CC BY 4.0" in out
        assert "1 rows; 1 different first human turns" in out
    assert "xstest                            1/1" in typed("data")[1]


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_chat_in_a_pipe(typed, models, kind):
    command = ("chat", f"--model={models / kind}", "--max_new_tokens=8", "--seed=3")
    code, out, err = typed(*command, lines=["Hello", "", "And?", "/quit", "never read"])
    assert code == 0 and "/quit ends it" in err
    assert (code, out) == typed(*command, lines=["Hello", "And?"])[:2]
    other = typed("chat", f"--model={models / kind}", "--max_new_tokens=8", "--seed=4",
                  lines=["Hello", "And?"])  # fmt: skip
    assert out and out != other[1]


def test_chat_keeps_and_resets_its_history(typed, models, echo):
    command = ("chat", f"--model={models / 'plain'}", "--temperature=0.5")
    _, out, _ = typed(*command, lines=["a", "b", "/reset", "c"])
    assert out.splitlines() == ["a", "a+b", "c"]
    assert echo[1][1] == Conversation().human("a").assistant("a").human("b")
    assert len({name for name, _, _ in echo}) == 3  # each reply has random numbers of its own
    assert echo[0][2]["temperature"] == 0.5


def test_chat_cuts_a_long_history_from_the_front(typed, models, echo):
    command = ("chat", f"--model={models / 'plain'}", "--max_new_tokens=1000")
    _, out, err = typed(*command, lines=["a" * 400, "b" * 300, "c" * 2000, "d"])
    assert out.splitlines() == ["a" * 400, "b" * 300, "b" * 300 + "+d"]
    assert "its first 2 turns are forgotten" in err
    assert "this message alone is too long" in err


def test_chat_with_a_run_uses_its_newest_params(typed, workdir, monkeypatch):
    used = []
    monkeypatch.setattr(tools, "Engine", lambda model, *_: used.append(model))
    assert typed("chat", f"--workdir={workdir}")[0] == 0
    scale = used[0].params["final_norm"]["scale"]
    np.testing.assert_array_equal(scale, tiny_model().params["final_norm"]["scale"] + 1)
    assert "finetune" in used[0].name


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("chat", "give either --model"),
        ("chat --model=a --workdir=b", "give either --model"),
        ("chat --model=nowhere", "no model at 'nowhere'"),
        ("chat --model=nowhere --stage=ppo", "--stage belongs to --workdir"),
        ("chat --model=PLAIN --temperature=-1", "--temperature is -1.0"),
        ("chat --model=PLAIN --max_new_tokens=0", "at least 1"),
        ("chat --model=PLAIN --max_new_tokens=9999", "below 2048"),
        ("chat --model=PLAIN --max_new_tokens=many", "invalid int value"),
        ("chat --workdir=nowhere", "has no config.json"),
        ("chat --workdir=RUN --stage=ppo", "no finished 'ppo'"),
        ("chat --workdir=RUN --stage=pretraining", "invalid choice"),
        ("fetch nothing", "no model is called 'nothing'"),
        ("fetch --all", "unrecognized arguments"),
        ("fetch hhh_alignment/other", "its checksum could not be established"),
        ("data nothing", "no data set is called 'nothing'"),
        ("data prompts --manual_dir=nowhere.jsonl", "nowhere.jsonl"),
        ("constitution", "required"),
        ("constitution burn", "invalid choice"),
        ("constitution check", "required: file"),
        ("constitution check nowhere.yaml", "no such file"),
        ("constitution import --from=nowhere --to=x.yaml", "nowhere"),
        ("export-weights --workdir=nowhere --to=x", "has no config.json"),
        ("import-weights --from=nowhere --to=x", "no model at 'nowhere'"),
        ("doctor", "--config=FILE.py is missing"),
        ("doctor --config=nowhere.py", "no file nowhere.py"),
        ("sing", "no verb 'sing'"),
    ],
)
def test_bad_input_is_one_sentence(typed, models, workdir, tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    arguments = command.replace("PLAIN", str(models / "plain")).replace("RUN", str(workdir))
    code, out, err = typed(*arguments.split(" "))
    assert (code, out) == (2, "")
    assert words in err and len(err.splitlines()) == 1 and err.startswith("cai-jax: ")


def test_params_of_another_model_are_refused(typed, workdir, models, tmp_path):
    small = tiny_model(layers=1)
    write_directory(tmp_path / "small", small.config, small.params, small.tokenizer, None)
    config = workdir / "config.json"
    before = config.read_text()
    try:
        config.write_text(json.dumps({"model": str(tmp_path / "small"), "dtype": "float32"}))
        code, _, err = typed("chat", f"--workdir={workdir}")
    finally:
        config.write_text(before)
    assert code == 2 and "of another shape" in err


def test_the_readmes_constitution_is_sound(typed, tmp_path):
    text = (ROOT / "README.md").read_text("utf-8")
    made = tmp_path / "mine.yaml"
    made.write_text(text.split("constitutions/mine.yaml <<'END'\n")[1].split("END\n")[0], "utf-8")
    code, out, _ = typed("constitution", "check", made)
    assert code == 0 and "critique principle" in out
