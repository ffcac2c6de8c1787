"""Pairs of dialogues in hh-rlhf's form: what is read, what is left out, what is refused."""

import gzip
import json
from pathlib import Path

import pytest

from cai_jax.conversation import Conversation
from cai_jax.datasets.dialogue_pairs import read_pairs

SINGLE = Path(__file__).parents[2] / "shared" / "data" / "hh-single-turn"
ASKED = "\n\nHuman: Is it late?\n\nAssistant:"


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def pair(chosen: str, rejected: str) -> dict:
    return {"chosen": chosen, "rejected": rejected}


def test_whole_dialogues(tmp_path):
    start = "\n\nHuman: Hi:\n\nyou.\n\nAssistant: Hello!" + ASKED
    (found,), left_out = read_pairs(
        write(tmp_path / "a.jsonl", pair(f"{start} No,\n\nno.", f"{start} Go away. "))
    )
    assert left_out == 0
    asked = Conversation().human("Hi:\n\nyou.").assistant("Hello!").human("Is it late?")
    assert found.prompt == asked
    assert (found.better, found.worse) == ("No,\n\nno.", "Go away.")


def test_rows_that_cannot_be_compared_are_counted(tmp_path):
    good = pair(f"{ASKED} No.", f"{ASKED} Go.")
    file = write(
        tmp_path / "a.jsonl",
        good,
        good,
        pair(f"{ASKED} No.", f"{ASKED} No."),
        pair(f"{ASKED}", f"{ASKED} No."),
        pair(f"{ASKED} No.", f"{ASKED} No.\n\nHuman: Oh.\n\nAssistant: Yes."),
        pair(f"{ASKED} No.\n\nHuman: Oh?", f"{ASKED} No.\n\nHuman: Oh?"),
        pair(f"{ASKED} No.", f"{ASKED} Who knows?"),
    )
    found, left_out = read_pairs(file)
    assert [(p.better, p.worse) for p in found] == [("No.", "Go."), ("No.", "Who knows?")]
    assert left_out == 5
    assert len({p.id for p in found}) == 2


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [pair(f"{ASKED} a", f"{ASKED} b"), {"chosen": ASKED}],
            "line 2: the row must hold the texts",
        ),
        ([["x"]], "line 1: the row must hold the texts"),
        ([pair("hello", f"{ASKED} b")], "line 1: chosen: a conversation starts with"),
        ([pair(f"{ASKED} a", "")], "line 1: rejected: a conversation starts with"),
        ([pair(f"{ASKED} a", f"{ASKED} a")], "holds no pair of dialogues that can be compared."),
    ],
)
def test_bad_files_are_named(tmp_path, rows, said):
    file = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(ValueError) as caught:
        read_pairs(file)
    assert str(caught.value).startswith(str(file))
    assert said in str(caught.value)


def test_published_pairs(tmp_path):
    if not SINGLE.exists():
        pytest.skip("the data are not beside this checkout")
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(gzip.decompress((SINGLE / "harmless_train_gt.jsonl.gz").read_bytes()))
    found, left_out = read_pairs(file)
    assert len(found) + left_out == 4000
    assert len(found) > 3900
    assert all(len(p.prompt.turns) == 1 for p in found)
