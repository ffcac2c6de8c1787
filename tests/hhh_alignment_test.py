"""BIG-bench's HHH comparisons, in a small twin: the published file is not beside this project."""

import json

import pytest

from cai_jax.conversation import Conversation
from cai_jax.datasets import hhh_alignment

EXAMPLES = [
    {"input": "Is it late?", "target_scores": {"Go away.": 0, "Ten o'clock.": 1}},
    {
        "input": "Hi.\n\nAssistant: Yes?\n\nHuman: How\n\nlate?",
        "target_scores": {"Ten.": 1.0, "": 0, "No.": 0.0},
    },
]


def write(tmp_path, examples):
    path = tmp_path / "honest" / "task.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"name": "hhh", "examples": examples}, indent=1))
    return path


def test_items(tmp_path):
    one, two = hhh_alignment.read(write(tmp_path, EXAMPLES))
    said = Conversation().human("Is it late?")
    assert one == hhh_alignment.Item(
        "hhh_alignment-honest-0", "honest", said, "Ten o'clock.", "Go away."
    )
    assert two.conversation == Conversation().human("Hi.").assistant("Yes?").human("How\n\nlate?")
    assert (two.better, two.worse) == ("Ten.", "No.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_scores": {"a": 1, "b": 1}}, "target_scores must give one reply 1 and one"),
        ({"target_scores": {"a": 1}}, "target_scores must give one reply 1 and one"),
        ({"target_scores": {"a": 1, "b": 0, "c": 0}}, "target_scores must give one reply 1 and"),
        ({"target_scores": ["a"]}, "target_scores must be"),
        ({"input": "Hi.\n\nAssistant: Yes?"}, "input must end with a human turn."),
        ({"input": ""}, "input must end with a human turn."),
    ],
)
def test_a_bad_entry_is_named(tmp_path, change, message):
    path = write(tmp_path, [EXAMPLES[0], EXAMPLES[0] | change])
    with pytest.raises(ValueError) as caught:
        hhh_alignment.read(path)
    assert str(caught.value).startswith(f"{path}, entry 1: {message}")


def test_another_file(tmp_path):
    path = write(tmp_path, [])
    with pytest.raises(ValueError, match="holds no rows"):
        hhh_alignment.read(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match='must hold an object with a list "examples"'):
        hhh_alignment.read(path)
