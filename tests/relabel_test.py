"""`compare --relabel`: labels from the records alone, all at once or not at all."""

import dataclasses
import json
import shutil
import sys
import zlib

import pytest
import tiny_run
from scripted import ScriptedEngine

from cai_jax import cli, constitution
from cai_jax.conversation import Conversation, PaperFormat
from cai_jax.labels import LabelError
from cai_jax.pipeline import read_records
from cai_jax.records import Comparison, Provenance, Response
from cai_jax.relabel import relabel
from cai_jax.settings import run_settings
from cai_jax.stages import ai_feedback
from cai_jax.workdir import Workdir, WorkdirError

GENERAL = tiny_run.ROOT / "constitutions" / "general.yaml"


class Said:
    """What `Progress.say` was told."""

    def __init__(self):
        self.lines = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def common():
    sys.path.insert(0, str(tiny_run.ROOT / "experiments"))
    try:
        from common import get_config
    finally:
        sys.path.pop(0)

    def settings(**compare):
        config = get_config()
        config.constitution = str(GENERAL)
        config.compare.update({"shard_size": 2, **compare})
        return run_settings(config.to_dict())

    return settings


def judge(script, segment):
    """Log-probabilities that follow from the Script's name."""
    a = zlib.crc32(script.id.encode()) % 7 / 2
    return (-a, -1.6)


@pytest.fixture
def labelled(common, tmp_path):
    """Makes a workdir with a finished `compare` under some settings."""

    def make(**compare) -> Workdir:
        settings = common(**compare)
        workdir = Workdir(tmp_path / "run")
        workdir.prepare(settings, 0)
        asked = dataclasses.asdict(settings.compare)
        assert workdir.begin("compare", {"compare": asked, "finetune": "abc"})
        made = constitution.load(GENERAL)
        source = Provenance("model@0", f"{made.name}@{made.hash}", 0, "")
        prompt = Conversation().human("A line\u2028break?")
        responses = [
            Response(f"r{n}", "red_team", prompt, "word " * (n + s), (1,), "end", s, source)
            for n in range(5)
            for s in (0, 1)
        ]
        ai_feedback.compare(
            settings.compare, ScriptedEngine(judge), PaperFormat(), made, responses,
            workdir.path / "compare" / "comparisons", 0, "judge", source, lambda done, total: None,
        )  # fmt: skip
        workdir.finish("compare", {})
        return workdir

    return make


def records(workdir: Workdir) -> list[Comparison]:
    return read_records(workdir.path / "compare" / "comparisons", Comparison)


EVERYTHING = {"principles": "all", "both_orders": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "hard"},
        {"clamp": (0.4, 0.6)},
        {"both_orders": False, "principles": "drawn"},
        {"principles": "drawn"},
    ],
)
def test_it_gives_what_asking_anew_gives(common, labelled, tmp_path, changes):
    workdir = labelled(**EVERYTHING)
    before = records(workdir)
    new = common(**{**EVERYTHING, **changes})
    said = Said()
    relabel(new, workdir, said)
    after = records(workdir)
    made = constitution.load(GENERAL)
    pairs = [ai_feedback.Pair(r.id, r.prompt, r.response_a, r.response_b) for r in before]
    asked = ai_feedback.label_pairs(
        new.compare, ScriptedEngine(judge), PaperFormat(), made, pairs, 0
    )
    assert [(r.prob_a, r.swapped_prob_a) for r in after] == [
        (label.prob_a, label.swapped_prob_a) for label in asked
    ]
    assert [r.prob_a for r in after] != [r.prob_a for r in before]
    for old, record in zip(before, after, strict=True):
        kept = dataclasses.replace(record, prob_a=old.prob_a, swapped_prob_a=old.swapped_prob_a)
        assert kept == old, "all but the label stays"
    for key in changes:
        assert any(f"{key} {EVERYTHING.get(key, '')}" in line for line in said.lines)
    assert "5 comparisons" in said.lines[0]


def test_it_can_be_undone(common, labelled):
    workdir = labelled(**EVERYTHING)
    files = sorted((workdir.path / "compare" / "comparisons").iterdir())
    before = [file.read_bytes() for file in files]
    relabel(common(target="hard", clamp=(0.3, 0.6)), workdir, Said())
    assert [file.read_bytes() for file in files] != before
    relabel(common(**EVERYTHING), workdir, Said())
    assert [file.read_bytes() for file in files] == before


def test_the_stage_is_then_that_of_the_new_settings(common, labelled):
    workdir = labelled(**EVERYTHING)
    new = common(target="hard")
    relabel(new, workdir, Said())
    asked = {"compare": dataclasses.asdict(new.compare), "finetune": "abc"}
    assert not workdir.begin("compare", asked), "finished, and made from these"
    old = {"compare": dataclasses.asdict(common(**EVERYTHING).compare), "finetune": "abc"}
    with pytest.raises(WorkdirError, match=r"another compare\.both_orders \(False then, True now"):
        workdir.begin("compare", old)
    assert workdir.read_json("config.json")["compare"]["target"] == "hard"
    assert workdir.read_json("compare/labels.json")["pairs"] == 5
    assert workdir.read_json("compare/done.json") == {"comparisons": 5, "flip_rate": None}
    relabel(common(**EVERYTHING), workdir, Said())
    assert workdir.read_json("compare/done.json")["flip_rate"]["n"] == 5


@pytest.mark.parametrize(
    ("made", "changes", "said"),
    [
        ({}, {"both_orders": True}, "comparison 'r0' was not asked under principle"),
        ({}, {"principles": "all"}, "which principles=all, both_orders=False, chains=1 needs"),
        ({}, {"principles": "together"}, "principle '*'"),
        ({}, {"few_shots": 1}, "compare.few_shots (4 then, 1 now) changes what the feedback"),
        ({}, {"mode": "rating"}, "compare.mode (multiple_choice then, rating now) changes"),
        ({}, {"plain_text": True}, "compare.plain_text (False then, True now)"),
    ],
)
def test_what_needs_the_model_is_refused_in_one_sentence(common, labelled, made, changes, said):
    workdir = labelled(**made)
    before = {f: f.read_bytes() for f in workdir.path.rglob("*") if f.is_file()}
    with pytest.raises((WorkdirError, LabelError)) as caught:
        relabel(common(**{**made, **changes}), workdir, Said())
    assert said in str(caught.value)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    assert {f: f.read_bytes() for f in workdir.path.rglob("*") if f.is_file()} == before


def test_another_constitution_is_refused(common, labelled):
    workdir = labelled(**EVERYTHING)
    other = str(tiny_run.ROOT / "constitutions" / "default.yaml")
    with pytest.raises(WorkdirError, match="was labelled by another constitution"):
        relabel(dataclasses.replace(common(), constitution=other), workdir, Said())


def test_an_unfinished_stage_is_refused(common, tmp_path):
    with pytest.raises(WorkdirError, match="no finished 'compare'"):
        relabel(common(), Workdir(tmp_path), Said())


def test_old_records_without_questions_are_labelled_too(common, labelled):
    workdir = labelled(both_orders=True)
    for file in (workdir.path / "compare" / "comparisons").iterdir():
        rows = [json.loads(line) for line in file.read_bytes().split(b"\n") if line]
        for row in rows:
            del row["asked"], row["response_tokens"]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = records(workdir)
    relabel(common(both_orders=True, clamp=(0.5, 0.5)), workdir, Said())
    assert {r.prob_a for r in records(workdir)} == {0.5}
    assert [r.option_logprobs for r in records(workdir)] == [r.option_logprobs for r in before]


def test_it_says_that_the_preference_model_is_of_the_old_labels(common, labelled):
    workdir = labelled(**EVERYTHING)
    workdir.begin("preference_model", {})
    workdir.finish("preference_model", {})
    said = Said()
    relabel(common(target="hard"), workdir, said)
    assert "train-pm --force" in said.lines[-1]


def test_the_command(labelled, capsys, monkeypatch):
    """It loads no model: this config's is nowhere to be found."""
    workdir = labelled(**EVERYTHING)
    config = tiny_run.ROOT / "experiments" / "common.py"
    argv = ["compare", f"--config={config}", f"--workdir={workdir.path}", "--relabel"]
    argv += [f"--config.constitution={GENERAL}", "--config.model=nowhere"]
    argv += ["--config.compare.shard_size=2", "--config.compare.clamp=(0.4, 0.6)"]
    assert cli.main(argv) == 0
    assert "labelled again: 5 comparisons" in capsys.readouterr().out
    assert all(0.4 <= r.prob_a <= 0.6 for r in records(workdir))
    assert cli.main([*argv, "--config.compare.few_shots=0"]) == 2
    assert "changes what the feedback model is asked" in capsys.readouterr().err
    assert cli.main(["revise", *argv[1:]]) == 2
    assert "relabel" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_run_goes_on_from_the_new_labels(finished, tiny_cache, tmp_path, capsys):
    """`compare` then takes itself for finished; what was made from the old labels does not."""
    experiment, workdir = finished
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    hard = "--config.compare.target=hard"
    before = read_records(copy / "compare" / "comparisons", Comparison)
    assert tiny_run.run(experiment.command("compare", copy, hard, "--relabel"), tiny_cache) == 0
    after = read_records(copy / "compare" / "comparisons", Comparison)
    assert {r.prob_a for r in after} <= {0.0, 0.5, 1.0}
    assert [r.option_logprobs for r in after] == [r.option_logprobs for r in before]
    assert tiny_run.run(experiment.command("compare", copy, hard), tiny_cache) == 0
    assert "AI feedback: finished in a former run" in capsys.readouterr().out
    assert tiny_run.run(experiment.command("train-pm", copy, hard), tiny_cache) == 2
    assert "was made with another compare" in capsys.readouterr().err
