"""fetch, data and constitution, as typed; bad input gives one sentence."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from paper_prompts_test import PAPER, TWIN

from cai_jax.constitution import load
from cai_jax.datasets import xstest
from cai_jax.weights import fetch as weights

ROOT = Path(__file__).parents[1]
GENERAL, DEFAULT = (ROOT / "constitutions" / f"{n}.yaml" for n in ("general", "default"))


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


@pytest.mark.parametrize(
    ("command", "words"),
    [
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
def test_bad_input_is_one_sentence(typed, tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = typed(*command.split(" "))
    assert (code, out) == (2, "")
    assert words in err and len(err.splitlines()) == 1 and err.startswith("cai-jax: ")


def test_the_readmes_constitution_is_sound(typed, tmp_path):
    text = (ROOT / "README.md").read_text("utf-8")
    made = tmp_path / "mine.yaml"
    made.write_text(text.split("constitutions/mine.yaml <<'END'\n")[1].split("END\n")[0], "utf-8")
    code, out, _ = typed("constitution", "check", made)
    assert code == 0 and "critique principle" in out
