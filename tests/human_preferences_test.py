"""A preference model of people's comparisons: what it learns, what it must not, how it resumes."""

import gzip
import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tiny_run

from cai_jax import cli, human_preferences, progress
from cai_jax.datasets import splits
from cai_jax.datasets.dialogue_pairs import read_pairs
from cai_jax.evaluation.scored_pairs import FOLDER, ScoredPair
from cai_jax.finished_models import preference_model_of_run
from cai_jax.human_preferences import Settings, read
from cai_jax.models.scoring import score_texts
from cai_jax.pipeline import read_records
from cai_jax.settings import build

pytestmark = pytest.mark.slow

EXPERIMENT = tiny_run.ROOT / "experiments" / "human_preferences.py"
SHARED = tiny_run.ROOT.parent / "shared" / "data"
SMALL = """
    preference_model.epochs=3 preference_model.batch_size=16 preference_model.length=96
    preference_model.save_every=4 preference_model.remat=none
    preference_model.optimizer.learning_rate=0.003 preference_model.optimizer.warmup_steps=1
    preference_model.optimizer.moment_dtype=float32
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return tiny_run.write(tmp_path_factory.mktemp("experiment"))


def pair(asked: str, chosen: str, rejected: str) -> dict[str, str]:
    start = f"\n\nHuman: {asked}\n\nAssistant:"
    return {"chosen": f"{start} {chosen}", "rejected": f"{start} {rejected}"}


def separable(count: int, seed: int) -> list[dict[str, str]]:
    """The better reply is in capitals; no text and no first turn comes twice."""
    draw = np.random.default_rng(seed)

    def word(low: str, high: str) -> str:
        return "".join(map(chr, draw.integers(ord(low), ord(high) + 1, draw.integers(4, 9))))

    return [
        pair(f"Word {n} of {seed}?", f"{word('A', 'Z')} {word('A', 'Z')}", word("a", "z"))
        if n % 2
        else pair(f"Word {n} of {seed}?", word("A", "Z"), f"{word('a', 'z')} {word('a', 'z')}")
        for n in range(count)
    ]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def files(folder: Path) -> list[str]:
    """Two files to train on and two held out, as settings; what each must leave out is in it."""
    held_out = separable(40, 1)
    left_out = [
        pair("Word 0 of 1?", "poor", "GOOD"),  # the first turn is a held-out pair's
        pair(" word 0  OF 1?\n\nAssistant: Which?\n\nHuman: That one.", "poor", "GOOD"),
        pair("Too long?", "x" * 200, "y"),
        pair("The same?", "twice", "twice"),
    ]
    first = write(folder / "one" / "train.jsonl.gz", [*separable(100, 0), *left_out])
    second = write(folder / "two" / "train.jsonl", [*separable(60, 2), separable(1, 0)[0]])
    tests = [write(folder / "one" / "test.jsonl", held_out[:30]),
             write(folder / "two" / "test.jsonl", held_out[30:])]  # fmt: skip
    return [f"pairs={first}, {second}", f"held_out={tests[0]},{tests[1]}"]


def command(experiment: tiny_run.Experiment, workdir: Path, *settings: str) -> list[str]:
    own = (*SMALL.split(), f"model={experiment.folder}/model")
    flags = [f"--config.{setting}" for setting in (*own, *settings)]
    return ["human-preferences", f"--config={EXPERIMENT}", f"--workdir={workdir}", *flags]


def trained(experiment: tiny_run.Experiment, folder: Path, cache: Path) -> Path:
    """The workdir of a finished preference model of people's comparisons."""
    argv = command(experiment, folder / "human", *files(folder / "pairs"))
    with mock.patch.object(human_preferences, "SHARD_SIZE", 16):
        assert tiny_run.run(argv, cache) == 0
    return folder / "human"


@pytest.fixture(scope="module")
def human(experiment, tiny_cache, tmp_path_factory):
    """A finished workdir, not to be changed."""
    return trained(experiment, tmp_path_factory.mktemp("human"), tiny_cache)


def settings(*flags: str) -> Settings:
    found, _, _ = cli.parse([f"--config={EXPERIMENT}", "--workdir=w", *flags])
    return build(Settings, found)


def test_separable_pairs_are_told_apart(human):
    found = json.loads((human / "results.json").read_text())
    assert list(found["held_out"]) == ["one/test", "two/test"]
    for report, n in zip(found["held_out"].values(), (30, 10), strict=True):
        assert report["accuracy"]["value"] > 0.95 and report["accuracy"]["n"] == n
        assert report["longer_is_better"]["value"] == 0.5
        assert report["where_longer"]["value"] > 0.9 and report["where_shorter"]["value"] > 0.9
        assert report["brier"]["high"] < 0.25 and report["calibration_error"]["n"] == n
        assert sum(b["accuracy"]["n"] for b in report["by_length"]) == n == report["pairs"]
        assert report["first_turns"] == n


def test_what_is_left_out_of_training_is_counted(human):
    found = json.loads((human / "results.json").read_text())
    counts = {"not comparable or said before": 2, "first turn held out": 2, "too long": 1}
    assert found["trained_on"] == 160 and found["left_out"] == counts
    done = json.loads((human / "preference_model" / "done.json").read_text())
    assert done == {"trained_on": 160, "left_out": counts}
    assert len((human / "preference_model" / "metrics.jsonl").read_text().splitlines()) == 30


def test_no_first_turn_is_on_both_sides(tmp_path):
    flags = [f"--config.{each}" for each in files(tmp_path)]
    found = read(settings(*flags))
    held_out = [pair for of in found.held_out.values() for pair in of]
    assert len(found.train) == 161 and not splits.shared(found.train, held_out)
    cut = read(settings(*flags, "--config.limit=5", "--config.held_out_limit=3"))
    assert [p.id for p in cut.train] == [p.id for p in found.train[:5]] + [
        p.id for p in found.train[101:106]
    ]
    assert [len(of) for of in cut.held_out.values()] == [3, 3]
    # What is held out is held out also where not all of it is tested.
    alone = f"--config.pairs={tmp_path}/one/test.jsonl,{tmp_path}/two/train.jsonl"
    apart = read(settings(*flags[1:], alone, "--config.held_out_limit=1"))
    assert len(apart.train) == 61 and apart.left_out["first turn held out"] == 30


def test_the_judge_gives_the_scores_that_were_tested(human):
    pm = preference_model_of_run(human, None, print)
    pairs = [p for name in ("one", "two")
             for p in read_pairs(human.parent / "pairs" / name / "test.jsonl")[0]]  # fmt: skip
    scores = score_texts(
        pm.config, pm.params, pm.tokenizer, pm.format,
        [(p.prompt, text) for p in pairs for text in (p.better, p.worse)],
        batch_size=8, length=512,
    ).reshape(-1, 2)  # fmt: skip
    left = read_records(human / FOLDER, ScoredPair)
    assert [r.id for r in left] == [p.id for p in pairs]
    np.testing.assert_allclose([(r.better, r.worse) for r in left], scores, rtol=1e-4, atol=1e-5)


def test_its_name_changes_with_what_it_was_made_from(human, tmp_path):
    other = shutil.copytree(human, tmp_path / "human")
    made_from = other / "preference_model" / "inputs.json"
    same = preference_model_of_run(other, None, print)
    assert same.fingerprint == preference_model_of_run(human, None, print).fingerprint
    made_from.write_text(made_from.read_text().replace('"seed": 0', '"seed": 1'))
    assert preference_model_of_run(other, None, print).fingerprint != same.fingerprint


def test_stopped_twice_it_ends_the_same(experiment, human, tiny_cache, tmp_path, monkeypatch):
    """Once between two checkpoints, once between two shards of scores."""
    argv = command(experiment, tmp_path / "w", *files(human.parent / "pairs"))
    monkeypatch.setattr(human_preferences, "SHARD_SIZE", 16)
    advance, calls = progress.Stage.advance, []

    def stopping(self, *args, **more):
        calls.append(self.name)
        if calls.count(self.name) == stop.get(self.name):
            raise KeyboardInterrupt
        return advance(self, *args, **more)

    monkeypatch.setattr(progress.Stage, "advance", stopping)
    for stop in ({"training the preference model": 11}, {"scores of held-out pairs": 2}, {}):
        calls.clear()
        assert tiny_run.run(argv, tiny_cache) == (130 if stop else 0)
    assert "training the preference model" not in calls

    assert tiny_run.left_by(tmp_path / "w") == tiny_run.left_by(human)
    assert len(list((human / FOLDER).glob("*.jsonl"))) == 3


def test_done_once_it_only_prints_again(experiment, human, tiny_cache, tmp_path, capsys):
    copy = shutil.copytree(human, tmp_path / "human")
    argv = command(experiment, copy, *files(human.parent / "pairs"))
    assert tiny_run.run(argv, tiny_cache) == 0
    shown = capsys.readouterr().out
    assert "preference model: finished in a former run" in shown
    assert "scores of held-out pairs: finished in a former run" in shown
    for words in ("the longer one is better", "two/test, the better one is shorter", "Brier",
                  "160 pairs to train on; left out: not comparable or said before 2, first turn "
                  "held out 2, too long 1"):  # fmt: skip
        assert words in " ".join(shown.split())
    assert tiny_run.left_by(copy) == tiny_run.left_by(human)
    assert tiny_run.run([*argv, "--config.seed=1"], tiny_cache) == 2
    assert "made with another seed" in capsys.readouterr().err


def test_its_calibration_is_drawn(human, tmp_path):
    argv = ["figures", "--figure=calibration", f"--runs={human}", f"--workdir={tmp_path}"]
    assert cli.main(argv) == 0
    assert "one/test" in (tmp_path / "calibration.csv").read_text()
    assert (tmp_path / "calibration.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["pairs="], "pairs is empty; give files"),
        (["held_out= ,"], "held_out is empty; give files"),
        (["pairs=nowhere.jsonl"], "nowhere.jsonl"),
        (["held_out=nowhere.jsonl"], "nowhere.jsonl"),
        (["held_out={one}/test.jsonl,{one}/test.jsonl"], "two files have the name one/test"),
        (["pairs={one}/test.jsonl"], "nothing to train on; give other files"),
        (["limit=-1"], "limit and held_out_limit must be at least 0"),
        (["preference_model.epochs=0"], "config.preference_model.epochs is 0"),
        (["preference_model.human_weight=0.0"], "human_weight is 0.0"),
        (["preference_model.members=2"], "preference_model.members must be 1 here"),
        (["preference_model.halves=True"], "preference_model.halves must be False here"),
        (["preference_model.remat=much"], "preference_model.remat is 'much'; it must be one of"),
        (["preference_model.length=9000"], "context is 4096 tokens; lower it"),
        (["preference_model.length=8"], "fits preference_model.length (8 tokens); raise it"),
        (["dtype=int8"], "config.dtype is 'int8'"),
        (["mesh.data=3"], "data=3"),
        (["model=nowhere"], "no model at 'nowhere'"),
    ],
)
def test_what_cannot_be_used(experiment, capsys, tmp_path, flags, sentence):
    given = [each.format(one=tmp_path / "one") for each in flags]
    argv = command(experiment, tmp_path / "w", *files(tmp_path), *given)
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not (tmp_path / "w" / "config.json").exists()


def test_a_batch_that_the_devices_cannot_share(experiment, capsys, tmp_path, monkeypatch):
    class Mesh:
        size, shape = 3, {"slice": 1, "data": 3, "fsdp": 1, "sequence": 1, "tensor": 1}

    monkeypatch.setattr(human_preferences, "mesh_of_shape", lambda shape: Mesh)
    argv = command(experiment, tmp_path / "w", *files(tmp_path))
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert "preference_model.batch_size is 16, which does not divide over the mesh's" in said


@pytest.mark.parametrize("size", ["laptop", "full"])
def test_both_sizes_build(size):
    found, _, _ = cli.parse([f"--config={EXPERIMENT}:{size}", "--workdir=w"])
    made = build(Settings, found.to_dict() | {"pairs": "a.jsonl", "held_out": "b.jsonl"})
    assert made.preference_model.batch_size == (8 if size == "laptop" else 32)


def test_a_size_that_there_is_not(capsys):
    argv = ["human-preferences", f"--config={EXPERIMENT}:desk", "--workdir=w"]
    assert cli.main(argv) == 2
    assert "human_preferences.py:desk is unknown" in capsys.readouterr().err


def test_the_published_pairs():
    """4,000 + 4,000 to train on, tested by all of harmless-base/test that can be compared."""
    if not SHARED.exists():
        pytest.skip("the published pairs are not beside this checkout")
    names = ("harmless_train_gt", "helpful_train_gt")
    pairs = ",".join(f"{SHARED}/hh-single-turn/{name}.jsonl.gz" for name in names)
    held_out = SHARED / "anthropic-hh-rlhf" / "harmless-base" / "test.jsonl.gz"
    found = read(settings(f"--config.pairs={pairs}", f"--config.held_out={held_out}"))
    tested = found.held_out["harmless-base/test"]
    assert len(tested) == 2303 and found.untested == {"harmless-base/test": 9}
    assert len(found.train) == 3576 + 3985
    assert found.left_out == {
        "not comparable or said before": 10 + 13, "first turn held out": 414 + 2
    }  # fmt: skip
    assert not splits.shared(found.train, tested)
