"""Questions of your own: the published forms of ARC and MMLU, our plain one, and bad rows."""

import gzip
import json

import pytest

from cai_jax.datasets import capability

PLAIN = {"question": "What is 2 + 2?", "choices": ["Three", "Four", "Five"], "answer": 1}
HUGGING_FACE = {
    "id": "Mercury_1",
    "question": "Which is a mammal?",
    "choices": {"text": ["Trout", "Whale"], "label": ["1", "2"]},
    "answerKey": "2",
}
AI2 = {
    "id": "Mercury_2",
    "question": {
        "stem": "Which is a metal?",
        "choices": [{"text": "Iron", "label": "A"}, {"text": "Oak", "label": "B"}],
    },
    "answerKey": "A",
}


def written(folder, *rows, name="ARC-Easy.jsonl"):
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_every_published_form_is_read(tmp_path):
    plain, other, nested = capability.read(written(tmp_path, PLAIN, HUGGING_FACE, AI2))
    assert plain.prompt == "What is 2 + 2?\n (A) Three\n (B) Four\n (C) Five\nThe answer is:"
    assert plain.choices[plain.correct] == " (B)" and plain.id == "arc_easy-0"
    assert (other.options, other.correct) == (("Trout", "Whale"), 1)
    assert (nested.instruction, nested.options) == ("Which is a metal?", ("Iron", "Oak"))
    assert (nested.correct, nested.row, nested.id) == (0, 2, "arc_easy-2")


@pytest.mark.parametrize("header", ["", "question,A,B,C,D,answer\n"])
def test_mmlu_is_csv_with_or_without_a_header(tmp_path, header):
    file = tmp_path / "anatomy_test.csv.gz"
    text = header + '"Which, if any?",None,One,"Two, or so",All,C\nWhere?,Here,There,D3,D4,A\n'
    file.write_bytes(gzip.compress(text.encode()))
    first, second = capability.read(file)
    assert (first.instruction, first.options[2], first.correct) == (
        "Which, if any?", "Two, or so", 2,
    )  # fmt: skip
    assert (second.id, second.correct) == ("anatomy_test-1", 0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"question": " "}, "line 2: question is missing or empty."),
        ({"choices": ["One"]}, "line 2: choices must be 2 to 26 texts."),
        ({"choices": ["One", 2]}, "line 2: choices must be 2 to 26 texts."),
        ({"choices": "Four"}, "line 2: choices must be 2 to 26 texts."),
        ({"answer": 3}, "line 2: the answer must be one of the 3 choices."),
        ({"answer": "Four"}, "line 2: the answer must be one of the 3 choices."),
        ({"choices": {"text": ["a", "b"], "label": ["A", "B"]}}, "the answer must be one of the 2"),
        ({"choices": {"text": ["a", "b"], "label": 2}}, "the answer must be one of the 2"),
        ({"choices": [{"text": "a", "label": "A"}, "b"]}, "choices must be 2 to 26 texts"),
    ],
)
def test_a_bad_row_has_its_sentence(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        capability.read(written(tmp_path, PLAIN, PLAIN | change))


def test_a_row_without_a_question_and_a_file_without_rows(tmp_path):
    with pytest.raises(ValueError, match="line 1: the row must be a JSON object with a question"):
        capability.read(written(tmp_path, {"stem": "What?"}))
    for name in ("none.jsonl", "none.csv"):
        (tmp_path / name).write_text("")
        with pytest.raises(ValueError, match=name):
            capability.read(tmp_path / name)
    (tmp_path / "short.csv").write_text("Where?\n")
    with pytest.raises(ValueError, match=r"short\.csv, line 1: choices must be 2 to 26 texts"):
        capability.read(tmp_path / "short.csv")
    (tmp_path / "bad.csv").write_text("Where?,Here,There,E\n")
    with pytest.raises(ValueError, match=r"bad\.csv, line 1: the answer must be one of the 2"):
        capability.read(tmp_path / "bad.csv")
