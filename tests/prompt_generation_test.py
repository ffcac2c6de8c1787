"""Prompts by example: what a list shows, what is dropped and why, and what a restart asks again."""

import dataclasses

import pytest
from scripted import ScriptedEngine, forced, words

from cai_jax.conversation import Conversation
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding import Engine
from cai_jax.records import Provenance
from cai_jax.script import Sample
from cai_jax.stages.prompt_generation import (
    HEADERS,
    REASONS,
    Filters,
    Generated,
    Settings,
    drawn,
    keep,
    listed,
    one_line,
    sample,
)

SETTINGS = Settings(
    red_team=5, helpful=0, shown=3, prompt_tokens=9, temperature=0.8, top_p=0.9, shard_size=2
)
FILTERS = Filters(least_words=3, most_words=8, letters=0.7, ngram=5, similarity=0.6)
SOURCE = Provenance("model@0", "", 0, "")
ROWS = [
    PromptRow(f"row{n}", "red_team", "", Conversation().human(f"What is\n number {n}?"))
    for n in range(8)
]


def sampled(folder, engine, count=5, seed=0, rows=ROWS, **changes):
    seen = []
    found = sample(
        dataclasses.replace(SETTINGS, **changes), engine, "red_team", count, rows, folder, seed,
        SOURCE, lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    return found, seen


def made(*texts, stop_reason="stop"):
    return [
        Generated(f"g{n}", "red_team", text, stop_reason, (), SOURCE)
        for n, text in enumerate(texts)
    ]


def test_a_list_of_prompts_byte_for_byte():
    header, lines = listed("red_team", ROWS[:2])
    assert header.text == HEADERS["red_team"] and header.text.endswith(":\n\n")
    assert lines.text == "1. What is number 0?\n2. What is number 1?\n3."
    talk = Conversation().human("First.").assistant("Yes?").human("Second.")
    assert one_line(PromptRow("x", "helpful", "", talk)) == "First."
    assert set(HEADERS) == {"red_team", "helpful"}


def test_every_list_has_its_own_examples(tmp_path):
    engine = ScriptedEngine(words)
    found, _ = sampled(tmp_path, engine, count=40)
    assert [s.id for s in engine.scripts] == [f"generate/red_team/{n}" for n in range(40)]
    lists = [record.examples for record in found]
    assert all(len(set(shown)) == 3 for shown in lists)
    assert len(set(lists)) > 30
    assert {row for shown in lists for row in shown} == {row.id for row in ROWS}
    for script, shown in zip(engine.scripts, lists, strict=True):
        lines = [f"{k}. What is number {row[3:]}?" for k, row in enumerate(shown, start=1)]
        assert forced(script).endswith("\n".join([*lines, "4."]))
        (written,) = (s for s in script.segments if isinstance(s, Sample))
        assert written == Sample(9, ("\n",), 0.8, 0.9)
    assert drawn(ROWS, 3, 0, "red_team", 7) != drawn(ROWS, 3, 1, "red_team", 7)
    assert {row.id for row in drawn(ROWS, 8, 0, "red_team", 0)} == {row.id for row in ROWS}


def test_too_few_examples():
    with pytest.raises(ValueError, match=r"generate\.shown is 9, and there are 8 red_team prompts"):
        drawn(ROWS, 9, 0, "red_team", 0)


def test_shards_are_kept_and_change_nothing(tmp_path):
    first, seen = sampled(tmp_path / "a", ScriptedEngine(words))
    assert [r.id for r in first] == [f"generated-red_team-{n}" for n in range(5)]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert all(r.text.startswith("said-") and r.text == r.text.strip() for r in first)
    (tmp_path / "a" / "00001-of-00003.jsonl").unlink()
    engine = ScriptedEngine(words)
    assert sampled(tmp_path / "a", engine)[0] == first
    assert [s.id for s in engine.scripts] == ["generate/red_team/2", "generate/red_team/3"]
    assert sampled(tmp_path / "b", ScriptedEngine(words), shard_size=4)[0] == first


def test_each_reason_to_drop():
    texts = {
        "": "empty",
        "Tell me": "too short",
        "a b c d e f g h i": "too long",
        "Что такое любовь вообще?": "too few Latin letters",
        "12 + 34 = ??": "too few Latin letters",
        "First you take the,": "ends in the middle",
        "what is number 3": "copy of an example",
        "Never, never cheat at chess": "copy of a held-out prompt",
    }
    held_out = [PromptRow("h", "red_team", "", Conversation().human("Never never cheat at chess!"))]
    for text, reason in texts.items():
        kept, dropped = keep(FILTERS, made(text), ROWS, held_out)
        assert (kept, dict(dropped)) == ([], {reason: 1}), text
    cut = made("Why is the sky", stop_reason="length")
    assert dict(keep(FILTERS, cut, ROWS, [])[1]) == {"cut off at the token limit": 1}
    assert {*texts.values(), "cut off at the token limit", "said before"} == set(REASONS)


def test_what_is_new_stays_in_order():
    texts = made(
        "Écris un poème d'été.", "How do trees drink water?", "how do trees drink  water",
        "How do trees drink the water?", "How do birds find home", 'Say "hello there"',
    )  # fmt: skip
    kept, dropped = keep(FILTERS, texts, ROWS, [])
    assert [t.id for t in kept] == ["g0", "g1", "g4", "g5"]
    assert dict(dropped) == {"said before": 2}
    # One that is dropped for itself stands in no other's way.
    kept, _ = keep(FILTERS, made("How do trees drink water -", "How do trees drink water?"), [], [])
    assert [t.id for t in kept] == ["g1"]


@pytest.mark.slow
def test_with_a_real_engine_nothing_depends_on_shards_or_slots(tmp_path, model):
    found = [
        sampled(tmp_path / str(size), Engine(model, size, 512), 3, shard_size=size)[0]
        for size in (1, 3)
    ]
    assert found[0] == found[1]
    assert len({r.text for r in found[0]}) == 3
