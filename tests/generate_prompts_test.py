"""`cai-jax generate-prompts`: its files, counts, restarts and complaints."""

import json

import pytest
import tiny_run
from scripted import ScriptedEngine, words

from cai_jax import cli, generate_prompts
from cai_jax.datasets.prompts import read_prompts

FILE = tiny_run.ROOT / "experiments" / "generate_prompts.py"


@pytest.fixture
def engines(monkeypatch, model, tmp_path):
    """The engines that commands made; every third text is an example's, the others new."""
    made = []

    def write(script, segment):
        number = int(script.id.rsplit("/", 1)[1])
        if number % 3 == 0:
            return " What is number 1?"
        digits = str.maketrans("0123456789", "ghijklmnop")
        name = words(script, segment).strip().removeprefix("said-").translate(digits)
        return f" Please explain {name * 2} to me."

    def engine(*_):
        made.append(ScriptedEngine(write))
        return made[-1]

    monkeypatch.setattr(generate_prompts, "engine_of", engine)
    monkeypatch.setattr(generate_prompts, "load_model", lambda *_: model)
    rows = [json.dumps({"id": f"e{n}", "prompt": f"What is number {n}?"}) for n in range(6)]
    (tmp_path / "examples.jsonl").write_text("\n".join(rows) + "\n")
    return made


def command(tmp_path, *flags, config=FILE):
    given = {"examples.red_team": tmp_path / "examples.jsonl", "generate.red_team": 7,
             "generate.helpful": 0, "generate.shown": 4, "generate.shard_size": 3}  # fmt: skip
    return cli.main(
        ["generate-prompts", f"--config={config}", f"--workdir={tmp_path / 'made'}",
         *(f"--config.{key}={value}" for key, value in given.items()), *flags]
    )  # fmt: skip


def test_a_file_that_a_run_can_take_with_its_counts(tmp_path, engines, capsys):
    assert command(tmp_path) == 0
    folder = tmp_path / "made" / "red_team"
    rows = read_prompts(folder / "prompts.jsonl", "red_team")
    assert [row.id for row in rows] == [f"generated-red_team-{n}" for n in (1, 2, 4, 5)]
    assert all(row.category == "generated" for row in rows)
    counts = json.loads((folder / "counts.json").read_text())
    assert (counts["sampled"], counts["kept"]) == (7, 4)
    assert counts["dropped"] == {"copy of an example": 3}
    assert counts["filters"]["similarity"] == 0.6
    said = capsys.readouterr().out
    assert "7 sampled, 4 kept; 3 copy of an example" in said
    assert f"- {rows[0].conversation.turns[0].text}" in said
    assert not (tmp_path / "made" / "helpful").exists()


def test_a_restart_asks_what_is_missing_and_filters_anew(tmp_path, engines):
    assert command(tmp_path) == 0
    folder = tmp_path / "made" / "red_team"
    first = (folder / "prompts.jsonl").read_bytes()
    assert command(tmp_path) == 0
    assert engines[-1].scripts == []
    (folder / "samples" / "00001-of-00003.jsonl").unlink()  # as if killed before the second
    (folder / "done.json").unlink()
    assert command(tmp_path) == 0
    assert [s.id[-1] for s in engines[-1].scripts] == ["3", "4", "5"]
    assert (folder / "prompts.jsonl").read_bytes() == first
    assert command(tmp_path, "--config.filters.least_words=9") == 0
    assert engines[-1].scripts == []
    assert (folder / "prompts.jsonl").read_bytes() == b""


def test_another_setting_of_sampling_wants_another_workdir(tmp_path, engines, capsys):
    assert command(tmp_path) == 0
    assert command(tmp_path, "--config.generate.temperature=0.5") == 2
    assert "generate.temperature (1.0 then, 0.5 now)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("generate.shown=9", "config.generate.shown is 9, and there are 6 red_team prompts"),
        ("generate.red_team=0", "config.generate wants no prompt of either kind"),
        ("generate.top_p=0.0", "config.generate.top_p is 0.0; it must be above 0"),
        ("filters.similarity=1.5", "config.filters.similarity is 1.5; it must be in [0, 1]"),
        ("filters.most_words=2", "config.filters.most_words is 2, less than least_words (3)"),
        ("engine.max_length=64", "engine.max_length or the model's context is 64"),
        ("examples.red_team=nowhere.jsonl", "nowhere.jsonl"),
    ],
)
def test_each_complaint_is_one_sentence_before_anything_is_asked(
    tmp_path, engines, capsys, flag, sentence
):
    assert command(tmp_path, f"--config.{flag}") == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not any(engine.scripts for engine in engines)
    assert not (tmp_path / "made").exists()
