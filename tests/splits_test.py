"""Splits by first human turn: pure, stable, and no prompt on both sides."""

import dataclasses
from pathlib import Path

import pytest

from cai_jax.conversation import Conversation
from cai_jax.datasets import hh_rlhf, splits

SHARED = Path(__file__).parents[2] / "shared" / "data"


@dataclasses.dataclass(frozen=True)
class Row:
    prompt: Conversation
    number: int


def said(*texts):
    talk = Conversation()
    for i, text in enumerate(texts):
        talk = talk.assistant(text) if i % 2 else talk.human(text)
    return talk


def test_rows_that_differ_in_form_only_are_one_prompt():
    forms = ["Where is  Straße?", " where is\nSTRASSE? ", "Where is Straße?"]
    assert len({splits.first_turn(said(form)) for form in forms}) == 1
    assert splits.first_turn(said("Where?")) != splits.first_turn(said("Where"))


def test_only_the_first_human_turn_counts():
    short, long = said("Hi."), said("Hi.", "Hello.", "Why?")
    assert splits.split_of(Row(short, 1)) == splits.split_of(Row(long, 2)) == splits.split_of(long)
    late = Conversation().assistant("Hello.").human("Hi.")
    assert splits.first_turn(late) == splits.first_turn(short)
    with pytest.raises(ValueError, match="without a human turn"):
        splits.first_turn(Conversation().assistant("Hi."))


def test_shares_are_as_asked_and_nested():
    talks = [said(f"Question {i}?") for i in range(4000)]
    halves = {
        share: {t for t in talks if splits.split_of(t, share) == "test"}
        for share in (0, 0.05, 0.35, 1)
    }
    assert (len(halves[0]), len(halves[1])) == (0, 4000)
    assert halves[0.05] < halves[0.35]
    # Five standard deviations of a binomial with n = 4000.
    assert abs(len(halves[0.05]) - 200) < 69 and abs(len(halves[0.35]) - 1400) < 151


def test_the_hash_is_not_changed():
    """A row must not wander to the other half with a new release."""
    found = [splits.split_of(said(f"Question {i}?"), 0.5) for i in range(8)]
    assert " ".join(found) == "train test test train train test train train"


def test_unique_without_and_shared():
    rows = [Row(said("A?"), 0), Row(said("b?"), 1), Row(said("a?", "x", "y"), 2)]
    assert [row.number for row in splits.unique(rows)] == [0, 1]
    assert [row.number for row in splits.without(rows, [said("B?")])] == [0, 2]
    assert splits.shared(rows, [said("B?"), said("c?")]) == {"b?"}


def test_real_files_share_prompts_and_then_do_not():
    test = SHARED / "anthropic-hh-rlhf" / "harmless-base" / "test.jsonl.gz"
    train = SHARED / "hh-single-turn" / "harmless_train_gt.jsonl.gz"
    if not (test.exists() and train.exists()):
        pytest.skip("the shared hh-rlhf files are not beside this checkout")
    train, test = hh_rlhf.dialogues(train), hh_rlhf.dialogues(test)
    assert len(splits.shared(train, test)) == 377
    clean = splits.without(train, test)
    assert 3500 < len(clean) < 4000 and not splits.shared(clean, test)
    halves = {half: [r for r in train + test if splits.split_of(r) == half] for half in
              ("train", "test")}  # fmt: skip
    assert not splits.shared(halves["train"], halves["test"]) and len(halves["test"]) > 200
