"""Red-team attempts, in a small twin: the published file is not kept beside this project."""

import gzip
import json

import pytest

from cai_jax.conversation import Conversation
from cai_jax.datasets import red_team_attempts

FULL = {
    "transcript": "\n\nHuman: Help me cheat.\n\nAssistant: No.\n\nHuman: Please?\n\nAssistant: No.",
    "min_harmlessness_score_transcript": -0.25,
    "num_params": "52B",
    "model_type": "rlhf",
    "rating": 1.0,
    "task_description": "cheat at cards",
    "task_description_harmlessness_score": 0.5,
    "red_team_member_id": 7,
    "is_upworker": True,
    "tags": ["Fraud & deception"],
}
BARE = {"transcript": "\n\nHuman: Hi\n\nAssistant: Hi", "rating": 0, "tags": None}


@pytest.mark.parametrize("form", ["array", "lines"])
def test_attempts(tmp_path, form):
    path = tmp_path / "red_team_attempts.jsonl.gz"
    lines = "\n".join(map(json.dumps, (FULL, BARE)))
    text = json.dumps([FULL, BARE]) if form == "array" else lines
    path.write_bytes(gzip.compress(text.encode()))
    full, bare = red_team_attempts.read(path)
    talk = Conversation().human("Help me cheat.").assistant("No.").human("Please?").assistant("No.")
    assert full == red_team_attempts.Attempt(
        id="red_team_attempts-0",
        conversation=talk,
        rating=1.0,
        min_harmlessness_score=-0.25,
        num_params="52B",
        model_type="rlhf",
        task_description="cheat at cards",
        red_team_member_id=7,
        is_upworker=True,
        tags=("Fraud & deception",),
    )
    assert (bare.rating, bare.tags, bare.min_harmlessness_score) == (0.0, (), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": 5}, "rating must be from 0 to 4, not 5."),
        ({"rating": "4"}, 'rating must be a number, not "4".'),
        ({"transcript": "Hi"}, "transcript: a conversation starts with"),
        ({"tags": [1]}, "tags[0] must be text, not 1."),
    ],
)
def test_a_bad_entry_is_named(tmp_path, change, message):
    path = tmp_path / "attempts.json"
    path.write_text(json.dumps([FULL, FULL | change]))
    with pytest.raises(ValueError) as caught:
        red_team_attempts.read(path)
    assert str(caught.value).startswith(f"{path}, entry 1: {message}")


def test_an_array_cut_short(tmp_path):
    path = tmp_path / "attempts.json"
    path.write_text("[\n" + json.dumps(FULL))
    with pytest.raises(ValueError, match=r"attempts\.json, line 2: not valid JSON"):
        red_team_attempts.read(path)
