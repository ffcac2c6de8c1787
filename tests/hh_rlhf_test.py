"""hh-rlhf, in the published test split, single-turn files that derive from it, and a small twin."""

import gzip
import json
from pathlib import Path

import pytest

from cai_jax.conversation import Conversation, render
from cai_jax.datasets import hh_rlhf

SHARED = Path(__file__).parents[2] / "shared" / "data"
ASKED = "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C\n\nd?\n\nAssistant:"
ROWS = [
    (ASKED + " Good.\n\nMore.", ASKED + " Bad."),
    (ASKED + " Same.", ASKED + " Same."),
    (ASKED + " One.\n\nAssistant: Two.", ASKED + " Bad."),
    (ASKED + " ", ASKED + " Bad."),
    ("\n\nHuman: X?\n\nAssistant: Y.", "\n\nHuman: Z?\n\nAssistant: Y."),
    ("\n\nHuman: Hm?\n\nAssistant: Human: no.", "\n\nHuman: Hm?\n\nAssistant:  Two spaces."),
]


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "harmless-base" / "train.jsonl.gz"
    file.parent.mkdir()
    rows = [json.dumps({"chosen": a, "rejected": b}) for a, b in ROWS]
    file.write_bytes(gzip.compress("\n".join(rows).encode()))
    return file


def test_dialogues_are_kept_whole(file):
    rows = hh_rlhf.dialogues(file)
    assert [row.id for row in rows] == [f"harmless-base-train-{i}" for i in range(6)]
    assert [render(row.chosen) for row in rows] == [a for a, _ in ROWS]
    assert [render(row.rejected) for row in rows] == [b for _, b in ROWS]


def test_comparisons_have_a_prompt_and_one_reply_each(file):
    first, last = hh_rlhf.comparisons(file)
    assert first.prompt == Conversation().human("A?").assistant("B.").human("C\n\nd?")
    assert (first.id, first.kind) == ("harmless-base-train-0", "red_team")
    assert (first.chosen, first.rejected) == ("Good.\n\nMore.", "Bad.")
    assert (last.id, last.chosen) == ("harmless-base-train-5", "Human: no.")
    assert last.rejected == " Two spaces."
    assert {c.kind for c in hh_rlhf.comparisons(file, "helpful")} == {"helpful"}


def test_the_kind_is_read_from_the_name(tmp_path, file):
    helpful = tmp_path / "hh-single-turn" / "helpful_train_gt.jsonl.gz"
    helpful.parent.mkdir()
    helpful.write_bytes(file.read_bytes())
    assert hh_rlhf.comparisons(helpful)[0].kind == "helpful"
    unnamed = file.rename(tmp_path / "rows.jsonl.gz")
    with pytest.raises(ValueError, match="neither harmless nor helpful"):
        hh_rlhf.comparisons(unnamed)
    assert hh_rlhf.comparisons(unnamed, "red_team")[0].kind == "red_team"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"chosen": "x"}', ", line 2: the row lacks the field rejected."),
        ('{"chosen": "x", "rejected": 1}', ", line 2: rejected must be text, not 1."),
        ('{"chosen": "x", "rejected": "y"}', ", line 2: a conversation starts with"),
        ('["x"]', ", line 2: the row must be a JSON object."),
        ('{"chosen": "x', ", line 2: not valid JSON (Unterminated string"),
        (b"\xff", ", line 2: not UTF-8 text"),
    ],
)
def test_a_bad_row_is_named(tmp_path, line, message):
    path = tmp_path / "harmless.jsonl"
    good = json.dumps(dict(zip(("chosen", "rejected"), ROWS[0], strict=True))).encode()
    path.write_bytes(good + b"\n" + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(ValueError) as caught:
        hh_rlhf.dialogues(path)
    assert str(caught.value).startswith(f"{path}{message}") and "\n" not in str(caught.value)


def test_a_file_cut_short_is_refused(file):
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train\.jsonl\.gz: a damaged gzip file; fetch it again"):
        hh_rlhf.dialogues(file)


@pytest.mark.parametrize(
    ("name", "rows", "read"),
    [
        ("anthropic-hh-rlhf/harmless-base/test", 2312, 2303),
        ("hh-single-turn/harmless_train_gt", 4000, 3990),
        ("hh-single-turn/harmless_train_w2s", 4000, 3988),
        ("hh-single-turn/helpful_train_gt", 4000, 3987),
        ("hh-single-turn/helpful_train_w2s", 4000, 3985),
    ],
)
def test_published(name, rows, read):
    path = SHARED / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{name} is not beside this checkout")
    whole, comparisons = hh_rlhf.dialogues(path), hh_rlhf.comparisons(path)
    assert (len(whole), len(comparisons)) == (rows, read)
    by_id = {row.id: row for row in whole}
    for c in comparisons:
        assert by_id[c.id].chosen == c.prompt.assistant(c.chosen)
        assert by_id[c.id].rejected == c.prompt.assistant(c.rejected)
        assert c.chosen != c.rejected
