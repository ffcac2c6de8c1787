import dataclasses
import json

import numpy as np
import pytest

from cai_jax import records
from cai_jax.conversation import Conversation, Turn

PROVENANCE = records.Provenance("tiny@0f3a", "house@91bc", 7, "abc123")
PROMPT = Conversation(
    (Turn("human", "Héllo\u2028 \n\n"), Turn("assistant", "Hi."), Turn("human", '日本 \\ " ?'))
)


def comparison(**changes):
    values = {
        "id": "c-1",
        "kind": "red_team",
        "prompt": PROMPT,
        "response_a": "No.",
        "response_b": "Yes — \t fine",
        "prob_a": 0.25,
        "principle": "harm",
        "labeler": "tiny",
        "mode": "multiple_choice",
        "option_logprobs": [[-1.5, -0.25], [-2.0, -3.0]],
        "swapped_prob_a": None,
        "source": "ai",
        "provenance": PROVENANCE,
    }
    return records.Comparison(**values | changes)


def revision():
    step = records.RevisionStep("harm", "It is rude.", "Better.", "end", "length")
    return records.Revision("r-1", "red_team", PROMPT, "Bad.", (step, step), PROVENANCE)


def response(number=0):
    return records.Response(f"p-{number}", "helpful", PROMPT, "ok", (5, 9), "end", 1, PROVENANCE)


@pytest.mark.parametrize(
    "record", [comparison(), comparison(swapped_prob_a=1), revision(), response()]
)
def test_round_trip_is_exact(record):
    again = records.from_json(type(record), json.loads(records.to_line(record)))
    assert again == record
    assert records.to_line(again) == records.to_line(record)


def test_bytes_of_a_record_are_fixed():
    assert records.to_line(PROVENANCE) == (
        '{"commit": "abc123", "constitution": "house@91bc", "model": "tiny@0f3a", "seed": 7}\n'
    )
    line = records.to_line(comparison(prob_a=1 / 3))
    assert '"prob_a": 0.333333,' in line
    assert "日本" in line
    assert '{"role": "assistant", "text": "Hi."}' in line


def test_floats_are_rounded_when_made_so_memory_equals_disk():
    record = comparison(
        prob_a=np.float32(0.1),
        option_logprobs=np.array([[-123.4567891, -0.0]]),
    )
    assert record.prob_a == 0.1 and type(record.prob_a) is float
    assert record.option_logprobs == ((-123.457, 0.0),)
    assert "-0.0" not in records.to_line(record)
    assert records.Response(
        "a", "helpful", PROMPT, "", np.arange(2), "end", 0, PROVENANCE
    ).tokens == (
        0,
        1,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prob_a": float("nan")}, "Comparison.prob_a is nan; records hold finite numbers only."),
        ({"prob_a": 1.5}, r"Comparison.prob_a is 1.5, not in \[0, 1\]."),
        ({"option_logprobs": [[float("-inf")]]}, "Comparison.option_logprobs is -inf"),
    ],
)
def test_bad_values(change, message):
    with pytest.raises(ValueError, match=message):
        comparison(**change)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda o: o.pop("labeler"), "f.jsonl, line 3: Comparison lacks the field labeler."),
        (lambda o: o.update(extra=1), "f.jsonl, line 3: Comparison has no field extra; remove it."),
        (lambda o: o.update(prob_a="x"), 'f.jsonl, line 3: prob_a must be a number, not "x".'),
        (lambda o: o.update(id=4), "f.jsonl, line 3: id must be text, not 4."),
        (lambda o: o.update(source="cat"), "source must be one of 'ai', 'human', not \"cat\"."),
        (lambda o: o["provenance"].pop("seed"), "Provenance lacks the field provenance.seed."),
        (lambda o: o["provenance"].update(seed=True), "provenance.seed must be a whole number"),
        (lambda o: o["prompt"][1].pop("text"), "Turn lacks the field prompt[1].text."),
        (lambda o: o.update(prompt="hi"), 'prompt must be a list, not "hi".'),
        (lambda o: o.update(prob_a=2), "Comparison.prob_a is 2.0, not in [0, 1]."),
    ],
)
def test_bad_rows_name_place_and_field(edit, message):
    obj = records.to_json(comparison())
    edit(obj)
    with pytest.raises(ValueError) as caught:
        records.from_json(records.Comparison, obj, "f.jsonl, line 3")
    assert message in str(caught.value)
    assert str(caught.value).startswith("f.jsonl, line 3: ")


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROVENANCE.seed = 8
