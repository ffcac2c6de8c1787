import dataclasses
import errno
import json
import os
import subprocess
import sys
import textwrap

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


def test_shards_come_back_in_order(tmp_path):
    shards = records.Shards(tmp_path / "sub", count=3)
    assert shards.done() == set() and shards.read(records.Response) == []
    shards.write(2, [response(4)])
    shards.write(0, [response(0), response(1)])
    assert shards.done() == {0, 2}
    assert [r.id for r in shards.read(records.Response)] == ["p-0", "p-1", "p-4"]
    assert sorted(os.listdir(shards.directory)) == ["00000-of-00003.jsonl", "00002-of-00003.jsonl"]
    assert records.Shards(tmp_path / "open").write(12, []).name == "00012.jsonl"
    assert records.Shards(tmp_path / "open").done() == {12}
    with pytest.raises(IndexError):
        shards.write(3, [])


def test_shards_of_another_count_are_refused(tmp_path):
    records.Shards(tmp_path, count=3).write(0, [])
    with pytest.raises(
        ValueError, match=r"00000-of-00003.jsonl is not one of 4 shards; .* workdir"
    ):
        records.Shards(tmp_path, count=4).done()


def test_a_killed_write_leaves_nothing_that_counts(tmp_path):
    script = f"""
        import os
        from cai_jax import records
        os.fsync = lambda fd: os.kill(os.getpid(), 9)
        p = records.Provenance("m", "c", 1, "")
        records.Shards({str(tmp_path)!r}).write(5, [p] * 1000)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode == -9
    shards = records.Shards(tmp_path)
    assert len(os.listdir(tmp_path)) == 1 and shards.done() == set()
    shards.write(5, [PROVENANCE])
    assert os.listdir(tmp_path) == ["00005.jsonl"]
    assert shards.read(records.Provenance) == [PROVENANCE]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-20], "line 2: the shard is cut short; delete it and run again."),
        (lambda b: b[:40] + b"\xff" + b[41:], "line 1: not UTF-8 text"),
        (lambda b: b"\0" * 30 + b"\n" + b, "line 1: not valid JSON"),
        (lambda b: b"[1]\n", "line 1: the row must be a JSON object, not [1]."),
    ],
)
def test_damaged_shards(tmp_path, damage, message):
    shards = records.Shards(tmp_path)
    path = shards.write(0, [PROVENANCE, PROVENANCE])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError) as caught:
        shards.read(records.Provenance)
    assert f"{path}, {message}" in str(caught.value)


def test_full_disk_leaves_the_old_shard(tmp_path, monkeypatch):
    shards = records.Shards(tmp_path)
    path = shards.write(0, [PROVENANCE])
    before = path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"^Cannot write .*00000.jsonl: No space left on device; "):
        shards.write(0, [PROVENANCE] * 2)
    assert os.listdir(tmp_path) == ["00000.jsonl"] and path.read_bytes() == before


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^Cannot write .*file/stage/00000.jsonl: .*workdir"):
        records.Shards(tmp_path / "file" / "stage").write(0, [PROVENANCE])


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROVENANCE.seed = 8
