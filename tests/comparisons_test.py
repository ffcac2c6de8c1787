"""A user's own comparisons, in every form that is read."""

import json

import pytest

from cai_jax.conversation import Conversation
from cai_jax.datasets import comparisons
from cai_jax.datasets.comparisons import HumanComparison
from cai_jax.records import Provenance

TALK = "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?"
PROMPT = Conversation().human("A?").assistant("B.").human("C?")


def write(tmp_path, *rows):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_three_forms_say_the_same(tmp_path):
    path = write(
        tmp_path,
        {
            "id": "1",
            "chosen": f"{TALK}\n\nAssistant: Yes.",
            "rejected": f"{TALK}\n\nAssistant: No.",
        },
        {"id": "2", "prompt": f"{TALK}\n\nAssistant:", "chosen": "Yes.", "rejected": "No."},
        {"id": "3", "prompt": TALK, "response_a": "Yes.", "response_b": "No.", "preferred": "a"},
        {"id": "4", "prompt": TALK, "response_a": "No.", "response_b": "Yes.", "preferred": "b"},
    )
    found = comparisons.read(path, "helpful")
    assert found == [HumanComparison(i, "helpful", PROMPT, "Yes.", "No.") for i in "1234"]


def test_csv_and_one_human_turn(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "prompt,response_a,response_b,preferred,note\n"
        '"One, two?",Three.,"No,\nnever.",a,x\n"Human: hm?",Yes.,No.,b,\n'
    )
    one, two = comparisons.read(path, "red_team")
    assert one.prompt == Conversation().human("One, two?")
    assert (one.chosen, one.rejected, one.kind) == ("Three.", "No,\nnever.", "red_team")
    assert (two.prompt.turns[0].text, two.chosen) == ("Human: hm?", "No.")
    assert one.id.startswith("comparison-") and one.id != two.id
    path.write_text(path.read_text().replace('"Human: hm?",Yes.,No.,b,\n', ""))
    assert comparisons.read(path, "red_team")[0].id == one.id


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "chosen is missing or empty."),
        ({"prompt": "A?", "chosen": "B", "rejected": " "}, "rejected is missing or empty."),
        ({"prompt": "A?", "chosen": "B"}, "rejected is missing or empty."),
        ({"prompt": "A?", "response_a": "B", "response_b": "C"}, 'preferred must be "a" or "b".'),
        (
            {"prompt": "A?", "response_a": "B", "response_b": "C", "preferred": "c"},
            "preferred must be one of",
        ),
        ({"response_a": "B", "response_b": "C", "preferred": "a"}, "prompt is missing or empty."),
        (
            {"prompt": TALK + "\n\nAssistant: D.", "chosen": "B", "rejected": "C"},
            "prompt must end with a human turn",
        ),
        (
            {"prompt": "A?", "chosen": f"{TALK}\n\nAssistant: D.", "rejected": "C"},
            "chosen must be the reply alone, since prompt is given.",
        ),
        ({"chosen": "B", "rejected": "C"}, "chosen: a conversation starts with"),
        ({"chosen": TALK, "rejected": TALK}, "chosen and rejected must be the same dialogue but"),
        ({"id": "first", "prompt": "A?", "chosen": "B", "rejected": "C"}, "the comparison 'first'"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    path = write(tmp_path, {"id": "first", "prompt": "A?", "chosen": "B", "rejected": "C"}, row)
    with pytest.raises(ValueError) as caught:
        comparisons.read(path, "helpful")
    assert str(caught.value).startswith(f"{path}, line 2: {message}")
    assert "\n" not in str(caught.value)


def test_records_draw_the_order_and_keep_the_label():
    made = [HumanComparison(str(i), "helpful", PROMPT, "Yes.", "No.") for i in range(40)]
    provenance = Provenance("m", "c", 0, "")
    records = [c.record("crowd", provenance, seed=3) for c in made]
    assert 8 < sum(r.prob_a for r in records) < 32
    for r in records:
        assert (r.response_a if r.prob_a else r.response_b) == "Yes."
        assert (r.source, r.mode, r.labeler, r.prompt) == ("human", "human", "crowd", PROMPT)
    assert records == [c.record("crowd", provenance, seed=3) for c in made]
    assert records != [c.record("crowd", provenance, seed=4) for c in made]
