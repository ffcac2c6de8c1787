"""Every data set through TFDS, its leak-free splits, its card; no TensorFlow, no network."""

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cai_paper_test import WRITTEN as EVALUATIONS
from hhh_alignment_test import EXAMPLES
from red_team_attempts_test import BARE, FULL

from cai_jax.conversation import Conversation
from cai_jax.datasets import catalog, measure, public, splits

SHARED = Path(__file__).parents[2] / "shared" / "data"
CSV = "id,prompt,type,label,focus,note\n1,Kill time?,homonyms,safe,kill,\n"


def talk(first, reply):
    return f"\n\nHuman: {first}\n\nAssistant: B.\n\nHuman: C?\n\nAssistant: {reply}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twins of every publisher's files, in the publishers' layouts."""
    monkeypatch.setenv("CAI_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was touched"))
    train = [("A?", "Yes."), ("Shared?", "Yes."), ("B?", "Ä\n\n日")]
    test = [("shared? ", "Sure."), ("D?", "Yes.")]
    written = {
        "hhh_alignment/honest/task.json": json.dumps({"examples": EXAMPLES}),
        "red-team-attempts/red_team_attempts.jsonl.gz": json.dumps([FULL, BARE] * 20),
        "xstest_prompts.csv": CSV,
        "harmless-base/train.jsonl": lines(train),
        "harmless-base/test.jsonl": lines(test),
    }
    written |= {f"evals/{name}": json.dumps(row) for name, (row,) in EVALUATIONS.items()}
    for name, text in written.items():
        path = tmp_path / "data" / name.removeprefix("hhh_alignment/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "data"


def lines(rows):
    return "".join(
        json.dumps({"chosen": talk(first, reply), "rejected": talk(first, "No.")}) + "\n"
        for first, reply in rows
    )


NAMES = [
    "hh_rlhf/harmless-base",
    "red_team_attempts",
    "cai_paper/hhh",
    "cai_paper/harmful_vs_ethical",
    "cai_paper/harm_classes",
    "hhh_alignment/honest",
    "xstest",
]


@pytest.mark.parametrize("name", NAMES)
def test_rows_come_through_tfds_unchanged_and_silently(folder, name, capfd):
    dataset = catalog.dataset(name)
    loaded = public.load(dataset, folder)
    expected = {split: rows for split, rows in dataset.splits(folder).items() if rows}
    assert {split: list(rows) for split, rows in loaded.items()} == expected
    assert all(type(row) is dataset.row for rows in loaded.values() for row in rows)
    assert capfd.readouterr() == ("", "")


def test_rows_are_read_at_random(folder):
    rows = public.load(catalog.dataset("hh_rlhf/harmless-base"), folder)["train"]
    assert (rows[1].chosen, rows[-1], rows[:1]) == ("Ä\n\n日", rows[1], [rows[0]])
    with pytest.raises(IndexError, match="row 2 of 2"):
        rows[2]


def test_published_halves_lose_what_leaks(folder):
    halves = catalog.dataset("hh_rlhf/harmless-base").splits(folder)
    assert [row.id for row in halves["train"]] == ["harmless-base-train-0", "harmless-base-train-2"]
    assert len(halves["test"]) == 2 and not splits.shared(halves["train"], halves["test"])
    (folder / "harmless-base" / "test.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no harmless-base/test\.jsonl\.gz; get it"):
        catalog.dataset("hh_rlhf/harmless-base").splits(folder)


def test_one_published_file_is_parted_by_prompt(folder):
    halves = catalog.dataset("red_team_attempts").splits(folder)
    assert len(halves["train"]) + len(halves["test"]) == 40
    assert not splits.shared(halves["train"], halves["test"])


def test_own_files_and_another_content(folder):
    path = folder / "mine.jsonl"
    path.write_text(lines([(f"Question {i}?", "Yes.") for i in range(50)]))
    dataset = catalog.dataset("comparisons")
    loaded = public.load(dataset, path)
    assert {len(loaded["train"]), len(loaded["test"])} == {
        len(rows) for rows in dataset.splits(path).values()
    }
    path.write_text(lines([("Question 3?", "Well.")]))
    assert [row.chosen for rows in public.load(dataset, path).values() for row in rows] == ["Well."]


def test_files_that_are_missing_and_rows_that_are_bad(folder):
    with pytest.raises(FileNotFoundError, match="helpful-base/test"):
        public.load(catalog.dataset("hh_rlhf/helpful-base"), folder)
    (folder / "xstest_prompts.csv").write_text(CSV + "2,Why?,x,perhaps,a,b\n")
    with pytest.raises(ValueError, match=r"xstest_prompts\.csv, line 3: label must be one of"):
        public.load(catalog.dataset("xstest"), folder)


def test_cards_count_what_is_at_hand(folder):
    told = measure.card(catalog.dataset("hh_rlhf/harmless-base"), folder)
    assert "3 rows; 3 different first human turns; 3 to 3 turns, median 3" in told
    assert "train.jsonl, NOT as published" in told
    assert "1 first human turns stand in both; 3 rows of train are 2 without them" in told
    told = measure.card(catalog.dataset("hhh_alignment/honest"), folder)
    assert "task.json, no checksum known" in told
    told = measure.card(
        catalog.dataset("xstest"), folder / "nowhere", folder / "xstest_prompts.csv"
    )
    assert "`cai-jax fetch xstest`, or get it from github.com/paul-rottger/xstest" in told
    told = measure.card(
        catalog.dataset("hh_rlhf/harmless-base"), folder, folder / "harmless-base" / "test.jsonl"
    )
    assert "1 of these first human turns, in 1 rows, are also in" in told
    assert "2 of these first human turns, in 2 rows, are also in" in told


def test_every_data_set_has_a_card():
    for name, dataset in catalog.datasets().items():
        told = [dataset.what, dataset.licence, dataset.source, dataset.defects]
        assert all(told) and dataset.name == name
        hints = public._fields(dataset.row)
        assert Conversation in hints.values() and dataclasses.is_dataclass(dataset.row)
    with pytest.raises(ValueError, match="no data set is called 'x'; there are hh_rlhf/harmless"):
        catalog.dataset("x")


def test_no_tensorflow_is_imported(folder):
    program = (
        "import sys\nfrom pathlib import Path\nfrom cai_jax.datasets import catalog, public\n"
        f"rows = public.load(catalog.dataset('xstest'), Path({str(folder)!r}))\n"
        "print(rows['test'][0].id, 'tensorflow' in sys.modules, 'jax' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("xstest-1 False False\n", "")


def test_published_evaluation(tmp_path, monkeypatch):
    source = SHARED / "anthropic-cai-paper"
    if not source.exists():
        pytest.skip("the paper's files are not beside this checkout")
    monkeypatch.setenv("CAI_JAX_CACHE", str(tmp_path))
    dataset = catalog.dataset("cai_paper/hhh")
    assert list(public.load(dataset, source)["test"]) == dataset.splits(source)["test"]
    assert "as published\n           438 rows; 186 different" in measure.card(dataset, source)
