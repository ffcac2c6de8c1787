import functools
import json
import os
import socket
import subprocess
import sys

import pytest

from cai_jax.conversation import Conversation, Turn
from cai_jax.datasets import cache as prepared_files
from cai_jax.datasets import cai_prompts
from cai_jax.datasets import prompts as readers

SHIPPED = {
    "red_team": [
        {
            "id": "r0",
            "split": "train",
            "category": "theft",
            "turns": [{"role": "human", "text": "Ä?"}],
        },
        {"id": "r1", "split": "test", "category": "x", "turns": [{"role": "human", "text": "No?"}]},
    ],
    "helpful": [
        {
            "id": "h0",
            "split": "train",
            "category": "x",
            "turns": [
                {"role": "human", "text": "Hi"},
                {"role": "assistant", "text": "Hello\n\nthere"},
                {"role": "human", "text": "2+2?"},
            ],
            "good": "4",
            "poor": "日",
        },
        {
            "id": "h1",
            "split": "test",
            "category": "x",
            "turns": [{"role": "human", "text": "3+3?"}],
            "good": "6",
            "poor": "7",
        },
    ],
    "label_pairs": [
        {
            "id": "p0",
            "kind": "benign",
            "turns": [{"role": "human", "text": "Sky?"}],
            "better": "Blue.",
            "worse": "Go away.",
        }
    ],
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_JAX_CACHE", str(tmp_path / "cache"))

    def refuse(*args):
        raise AssertionError(f"the network was touched: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path / "cache"


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    folder = tmp_path / "shipped"
    folder.mkdir()
    for kind, rows in SHIPPED.items():
        write(folder / f"{kind}.jsonl", rows)
    monkeypatch.setattr(cai_prompts, "FOLDER", folder)
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_come_through_tfds_unchanged_and_silently(cache, shipped, capfd):
    assert readers.prompts("red_team", "train") == [
        readers.PromptRow("r0", "red_team", "theft", Conversation((Turn("human", "Ä?"),)))
    ]
    assert [row.id for row in readers.prompts("red_team", "test")] == ["r1"]
    dialogue = Conversation(
        (Turn("human", "Hi"), Turn("assistant", "Hello\n\nthere"), Turn("human", "2+2?"))
    )
    assert readers.helpful_comparisons("train") == [
        readers.HelpfulComparison("h0", dialogue, "4", "日")
    ]
    assert readers.label_pairs() == [
        readers.LabelPair(
            "p0", "benign", Conversation((Turn("human", "Sky?"),)), "Blue.", "Go away."
        )
    ]
    assert capfd.readouterr() == ("", "")


def test_files_are_array_records_prepared_once_and_again_after_an_edit(cache, shipped, monkeypatch):
    readers.prompts("red_team", "train")
    [first] = (cache / "datasets").iterdir()
    assert first.name == cai_prompts.content_hash()
    assert list(first.rglob("*.array_record-00000-of-00001"))
    assert [p.name for p in first.iterdir()] == ["red_team"]  # no scratch folder stays

    with monkeypatch.context() as patch:
        patch.setattr(prepared_files, "prepare", lambda *_: pytest.fail("prepared twice"))
        readers.prompts("red_team", "test")

    edited = [dict(SHIPPED["red_team"][0], turns=[{"role": "human", "text": "New"}])]
    write(shipped / "red_team.jsonl", edited + SHIPPED["red_team"][1:])
    assert readers.prompts("red_team", "train")[0].conversation.turns[0].text == "New"
    assert len(list((cache / "datasets").iterdir())) == 2


def test_a_process_that_was_faster_wins(cache, shipped, monkeypatch):
    folder = cache / "datasets" / "x" / "red_team"
    builder = functools.partial(cai_prompts._builder, "red_team")
    prepared_files.prepare(builder, folder)
    prepared_files.prepare(builder, folder)
    assert [p.name for p in folder.parent.iterdir()] == ["red_team"]


def test_unwritable_cache(tmp_path, shipped, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CAI_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        OSError, match=r"Cannot prepare the shipped prompts .* set CAI_JAX_CACHE to"
    ):
        readers.prompts("red_team", "train")


def test_no_tensorflow_is_imported(cache):
    code = (
        "import sys\n"
        "from cai_jax.datasets import prompts\n"
        "print(len(prompts.label_pairs()), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "60 False\n", "")


def test_shipped_files_hold_what_the_quickstart_needs(cache):
    sizes = {
        (kind, split): len(readers.prompts(kind, split))
        for kind in ("red_team", "helpful")
        for split in ("train", "test")
    }
    assert sizes[("red_team", "train")] >= 48 and sizes[("helpful", "train")] >= 32
    assert sizes[("red_team", "test")] >= 16 and sizes[("helpful", "test")] >= 16
    kinds = [pair.kind for pair in readers.label_pairs()]
    assert len(kinds) == 60 and kinds.count("benign") == 30
    rows = [row for kind, split in sizes for row in readers.prompts(kind, split)]
    assert len({row.id for row in rows}) == len({row.conversation for row in rows}) == len(rows)
    pairs = readers.helpful_comparisons("train") + readers.helpful_comparisons("test")
    assert all(pair.good.strip() and pair.poor.strip() and pair.good != pair.poor for pair in pairs)
    for kind in SHIPPED:  # the same files pass the checks a user's file must pass
        path = cai_prompts.FOLDER / f"{kind}.jsonl"
        assert len(readers.read_prompts(path)) == len(path.read_text().splitlines())


def test_own_prompts(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '\ufeff{"prompt": "One?", "note": 1}\n\n'
        '{"id": "b", "category": "c", "turns": [{"role": "system", "text": "Be kind."}, '
        '{"role": "human", "text": "Two?"}]}\r\n'
        '{"prompt": "\\n\\nHuman: Three?\\n\\nAssistant: Yes.\\n\\nHuman: Why?\\n\\nAssistant:"}',
        encoding="utf-8",
    )
    one, two, three = readers.read_prompts(path, "helpful")
    assert one.conversation == Conversation((Turn("human", "One?"),))
    assert (one.kind, one.category) == ("helpful", "")
    assert (two.id, two.category, len(two.conversation.turns)) == ("b", "c", 2)
    assert [turn.text for turn in three.conversation.turns] == ["Three?", "Yes.", "Why?"]
    path.write_text('{"prompt": "Zero?"}\n{"prompt": "One?"}\n')
    assert readers.read_prompts(path)[1].id == one.id  # the id does not hang on the line number


HUMAN = {"role": "human", "text": "Hi"}
ASSISTANT = {"role": "assistant", "text": "Hello"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x"', "not valid JSON (Expecting ',' delimiter at column 15); each line"),
        ('["x"]', "the row must be a JSON object such as"),
        ('{"text": "x"}', 'give the field "prompt" or the field "turns", not neither.'),
        ('{"prompt": "x", "turns": []}', 'give the field "prompt" or the field "turns", not both.'),
        ('{"prompt": 3}', "prompt must be text, not 3."),
        ('{"prompt": " \\n"}', "prompt is empty; write its text or remove the row."),
        ('{"prompt": "\\ud800"}', "prompt holds half of a surrogate pair"),
        ('{"prompt": "x", "id": 7}', "id must be text, not 7."),
        ('{"prompt": "x", "id": "a"}', "the id 'a' already stands on line 1; keep one of them."),
        ('{"prompt": "first"}', "the prompt already stands on line 2; keep one of them."),
        ('{"turns": []}', "turns must be a list of"),
        ('{"turns": [{"role": "human"}]}', "turns[0] lacks the field text."),
        ('{"turns": ["Hi"]}', "turns[0] lacks the field role."),
        ('{"turns": [{"role": "user", "text": "x"}]}', "turns[0].role must be system, human or"),
        ({"turns": [HUMAN, {"role": "human", "text": ""}]}, "turns[1].text is empty"),
        ({"turns": [HUMAN, ASSISTANT]}, "the last turn must be human"),
        ({"turns": [HUMAN, HUMAN]}, "turns must alternate human, assistant, human"),
        ({"turns": [ASSISTANT, HUMAN]}, "turns must alternate human, assistant, human"),
        ({"turns": [{"role": "system", "text": "x"}]}, "the last turn must be human"),
    ],
)
def test_bad_prompt_files(tmp_path, line, message):
    path = tmp_path / "mine.jsonl"
    line = line if isinstance(line, str) else json.dumps(line)
    path.write_text('{"prompt": "fine", "id": "a"}\n{"prompt": "first"}\n' + line + "\n")
    with pytest.raises(ValueError) as caught:
        readers.read_prompts(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_and_missing_prompt_files(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n  \n")
    with pytest.raises(ValueError, match=r"empty.jsonl: the file holds no prompts; write one JSON"):
        readers.read_prompts(tmp_path / "empty.jsonl")
    with pytest.raises(OSError, match=r"absent.jsonl"):
        readers.read_prompts(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("read", "row", "problem"),
    [
        (readers.read_comparisons, {"good": "4"}, "line 1: poor must be text, not null"),
        (readers.read_comparisons, {"good": " ", "poor": "5"}, "line 1: good is empty"),
        (
            readers.read_label_pairs,
            {"kind": "rude", "better": "4", "worse": "5"},
            "line 1: kind must be harmful or benign, not 'rude'",
        ),
        (readers.read_label_pairs, {"kind": "benign", "better": "4"}, "line 1: worse must be text"),
    ],
)
def test_a_users_own_comparisons_and_pairs(tmp_path, read, row, problem):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "2 + 2?", **row}) + "\n")
    with pytest.raises(ValueError, match=problem):
        read(path)
    whole = {"prompt": "2 + 2?", "good": "4", "poor": "5", "kind": "benign"}
    whole |= {"better": "4", "worse": "5"}
    path.write_text(json.dumps(whole) + "\n")
    (found,) = read(path)
    assert found.prompt == Conversation().human("2 + 2?")
    assert found.id.startswith("prompt-")
    path.write_text(2 * (json.dumps(whole) + "\n"))
    with pytest.raises(ValueError, match=r"line 2: the (comparison|pair) already stands on line 1"):
        read(path)
    path.write_text("")
    with pytest.raises(ValueError, match="the file holds no"):
        read(path)
