"""The label ablation: what is asked once, what a restart asks again, and what it prints."""

import dataclasses
import io
import json
import math
import re
import shutil

import pytest
import tiny_run
from scripted import ScriptedEngine, forced, words

from cai_jax import cli, label_ablation
from cai_jax.label_ablation import run, settings_of
from cai_jax.progress import Progress
from cai_jax.script import Sample
from cai_jax.settings import ConfigError
from cai_jax.workdir import Workdir, WorkdirError

FILE = tiny_run.ROOT / "experiments" / "label_ablation.py"
ONE = {"name": "one"}
BOTH = {"name": "both", "both_orders": True}
ALL = {"name": "all", "principles": "all", "both_orders": True}
HARD = {"name": "hard", "target": "hard"}
ZERO = {"name": "zero", "few_shots": 0}
CHAINS = {"name": "chains", "mode": "chain_of_thought", "chains": 3}
RATING = {"name": "rating", "mode": "rating"}
CONTRAST = {"name": "contrast", "mode": "contrastive", "per_token": True}


def judge(script, segment):
    """Prefers the response that has the word good in it, and (A) a little, with some noise."""
    if isinstance(segment, Sample):
        return words(script, segment)
    if len(segment.options) == 10:
        liked = 9 if "good" in re.search(r"\[\[\[(.*)\]\]\]", forced(script))[1] else 2
        return tuple(-abs(n - liked) for n in range(1, 11))
    if "always gives" in forced(script):
        best = "best" in forced(script).split("always gives")[1]
        return tuple(-len(o) + 2.0 * (("good" in o) == best) for o in segment.options)
    first = "good" in re.findall(r"\(A\) \[*([^\]]*)\]", forced(script))[-1]
    p = 1 / (1 + math.exp(-(1 if first else -1) - 0.3))
    return math.log(p), math.log(1 - p)


@pytest.fixture
def engines(monkeypatch, chat_model):
    """The engines that runs made, in order; they answer as `judge`."""
    made = []

    def engine(size, model):
        made.append(ScriptedEngine(judge, fits))
        return made[-1]

    def fits(script):
        return "too long" not in forced(script) or not script.id.startswith("compare/multiple")

    monkeypatch.setattr(label_ablation, "engine_of", engine)
    monkeypatch.setattr(label_ablation, "load_model", lambda *_: chat_model)
    return made


@pytest.fixture
def pairs(tmp_path):
    rows = []
    for n in range(6):
        start = f"\n\nHuman: question {n}?\n\nAssistant:"
        rows.append({"chosen": f"{start} good {'x ' * n}", "rejected": f"{start} poor {n}"})
    return write(tmp_path / "pairs.jsonl", rows)


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def ablate(tmp_path, pairs, *modes, **changes):
    """Runs the modes; returns (results, what was printed)."""
    found, _, _ = cli.parse([f"--config={FILE}", f"--workdir={tmp_path}"])
    config = found.to_dict()
    config["constitution"] = str(tiny_run.ROOT / "constitutions" / "general.yaml")
    config["pairs"], config["modes"] = str(pairs), modes
    config["compare"] |= {"shard_size": 4, "few_shots": 1}
    out = io.StringIO()
    workdir = Workdir(tmp_path / "labels")
    with Progress(out, terminal=False) as progress:
        run(config | changes, workdir, progress)
    return workdir.read_json("results.json"), out.getvalue()


def test_modes_share_what_they_ask(tmp_path, pairs, engines):
    ablate(tmp_path, pairs, ONE, BOTH, ALL, HARD)
    # Three principles in both orders: all that any of the four needs.
    assert len(engines[0].scripts) == 6 * 3 * 2
    ablate(tmp_path / "more", pairs, ONE, ZERO, CHAINS, RATING, CONTRAST)
    assert len(engines[1].scripts) == 6 * (1 + 1 + 3 + 2 + 2)


def test_a_mode_is_what_it_is_by_itself(tmp_path, pairs, engines):
    modes = (ONE, BOTH, ALL, HARD, ZERO, CHAINS, RATING, CONTRAST)
    together, _ = ablate(tmp_path, pairs, *modes)
    assert list(together) == [mode["name"] for mode in modes]
    for mode in modes:
        alone, _ = ablate(tmp_path / mode["name"], pairs, mode)
        assert alone[mode["name"]]["report"] == together[mode["name"]]["report"]


def test_what_is_measured(tmp_path, pairs, engines):
    found, said = ablate(tmp_path, pairs, ONE, BOTH, ALL, HARD, RATING, CONTRAST)
    for mode in ("both", "all", "rating", "contrast"):
        assert found[mode]["report"]["accuracy"]["value"] == 1
        assert found[mode]["report"]["accuracy"]["n"] == 6
    assert found["one"]["accuracy_over_first"] is None
    assert found["both"]["report"]["flip_rate"]["value"] == 0
    assert found["one"]["report"]["flip_rate"] is None
    assert found["hard"]["report"]["entropy"]["value"] == 0
    assert len(found["all"]["report"]["principles"]) == 3
    assert found["contrast"]["settings"]["per_token"] is True
    for text in ("accuracy", "over the first", "flips", "length bias", "Brier", "influence",
                 "calibration error", "The principles in 'all'", *found):  # fmt: skip
        assert text in said


def test_a_restart_asks_nothing_again(tmp_path, pairs, engines):
    first = ablate(tmp_path, pairs, ONE, CHAINS)[0]
    assert ablate(tmp_path, pairs, ONE, CHAINS)[0] == first
    assert not engines[1].scripts
    next((tmp_path / "labels").glob("answers-chain*/00001*")).unlink()
    assert ablate(tmp_path, pairs, ONE, CHAINS)[0] == first
    assert len(engines[2].scripts) == 2 * 3, "the second shard's two pairs"


def test_a_mode_that_comes_later_asks_what_it_lacks(tmp_path, pairs, engines):
    ablate(tmp_path, pairs, ONE)
    later, _ = ablate(tmp_path, pairs, ONE, BOTH, ALL)
    assert len(engines[1].scripts) == 6 * (3 * 2 - 1)
    assert not {s.id for s in engines[0].scripts} & {s.id for s in engines[1].scripts}
    fresh, _ = ablate(tmp_path / "fresh", pairs, ONE, BOTH, ALL)
    assert later == fresh


def test_other_pairs_are_refused(tmp_path, pairs, engines):
    ablate(tmp_path, pairs, ONE)
    with pytest.raises(WorkdirError, match="was made with another pairs"):
        ablate(tmp_path, pairs, ONE, limit=3)


def test_a_pair_too_long_for_one_mode_is_left_out_of_all(tmp_path, pairs, engines):
    start = "\n\nHuman: question?\n\nAssistant:"
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    rows += [{"chosen": f"{start} good too long", "rejected": f"{start} poor"}, rows[0]]
    found, said = ablate(tmp_path, write(pairs, rows), ONE, RATING)
    assert {mode["report"]["pairs"] for mode in found.values()} == {6}
    assert "1 of 7 pairs are too long" in said
    assert "1 rows of" in said and "are left out" in said
    with pytest.raises(ConfigError, match="no pair fits"):
        ablate(tmp_path / "none", write(pairs, rows[6:7]), ONE)


def test_the_shipped_pairs_are_the_default(tmp_path, engines):
    found, _ = ablate(tmp_path, "", ONE, limit=5)
    assert found["one"]["report"]["pairs"] == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modes": ()}, "config.modes is empty; name at least one mode."),
        ({"modes": (ONE, ONE)}, r"config.modes\[1\]: the name 'one' stands twice; change one."),
        ({"modes": ({"few_shots": 1},)}, r"config.modes\[0\] must be a group of settings with"),
        ({"modes": ({"name": "x", "nosuch": 1},)}, r"config.modes\[0\].nosuch is not a setting"),
        ({"modes": ({"name": "x", "chains": 0},)}, r"config.modes\[0\]: compare.chains is 0"),
        ({"modes": ({"name": "x", "chain_tokens": 0},)}, "config.compare.chain_tokens is 0"),
        ({"limit": -1}, "config.limit is -1; it must be at least 0."),
        ({"dtype": "int8"}, "config.dtype is 'int8'"),
        ({"nosuch": 1}, "config.nosuch is not a setting"),
    ],
)
def test_bad_settings_are_named(changes, said):
    found, _, _ = cli.parse([f"--config={FILE}", "--workdir=run"])
    with pytest.raises(ConfigError, match=said):
        settings_of(found.to_dict() | changes)
    with pytest.raises(ConfigError, match=r"config\.modes is missing"):
        settings_of({})


@pytest.mark.parametrize("size", ["full", "smoke"])
def test_the_experiment_has_every_mode(size):
    found, _, _ = cli.parse([f"--config={FILE}:{size}", "--workdir=run"])
    settings, modes = settings_of(found)
    assert {mode.mode for mode in modes.values()} == {
        "multiple_choice", "chain_of_thought", "rating", "contrastive"
    }  # fmt: skip
    values = {
        field.name: {getattr(mode, field.name) for mode in modes.values()}
        for field in dataclasses.fields(type(settings.compare))
    }
    assert values["target"] == {"soft", "hard"}
    assert values["both_orders"] == values["per_token"] == values["plain_text"] == {True, False}
    assert (0.4, 0.6) in values["clamp"]
    assert 0 in values["few_shots"] and max(values["chains"]) > 1
    assert values["principles"] == {"drawn", "together"} | ({"all"} if size == "full" else set())
    with pytest.raises(cli.UsageError, match=r"label_ablation.py:tiny is unknown"):
        cli.parse([f"--config={FILE}:tiny", "--workdir=run"])


def test_on_a_laptop_each_question_is_asked_by_one_principle_and_takes_one_chain():
    found, _, _ = cli.parse([f"--config={FILE}:laptop", "--workdir=run"])
    settings, modes = settings_of(found)
    assert settings.limit == 200
    assert {mode.principles for mode in modes.values()} == {"drawn"}
    assert {mode.chains for mode in modes.values()} == {1}
    kinds = {"multiple_choice", "chain_of_thought", "rating", "contrastive"}
    assert {mode.mode for mode in modes.values()} == kinds


FEW = """
from label_ablation import get_config as all_modes


def get_config():
    config = all_modes("smoke")
    config.modes = tuple(m for m in config.modes if m["name"] in ("both orders", "rating"))
    config.limit = 2
    config.constitution = {constitution!r}
    config.feedback_model = {model!r}
    config.engine.slots = 1
    config.engine.max_length = 2048
    config.compare.few_shots = 0
    config.compare.chain_tokens = 4
    return config
"""


@pytest.mark.slow
def test_the_command_with_a_real_engine(tmp_path, tiny_cache):
    """Two modes on two pairs, by a tiny model; the stage's tests have the others' Scripts run."""
    experiment = tiny_run.write(tmp_path / "experiment")
    shutil.copy(FILE, experiment.folder)
    config = experiment.folder / "few.py"
    model, general = experiment.folder / "model", tiny_run.ROOT / "constitutions" / "general.yaml"
    config.write_text(FEW.format(constitution=str(general), model=str(model)))
    argv = ["label-ablation", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    ended = tiny_run.run_apart(argv, tiny_cache)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(found) == ["both orders", "rating"]
    assert {mode["report"]["pairs"] for mode in found.values()} == {2}
    assert "Label modes on the same pairs" in ended.stdout
