"""Critique and revision: what each step reads, what is drawn, and what the records hold."""

import dataclasses
from collections import Counter

import pytest
from scripted import ScriptedEngine, forced, words

from cai_jax import principles
from cai_jax.chat_template import ChatFormat
from cai_jax.conversation import Conversation, PaperFormat
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding import Engine
from cai_jax.principles import ComparisonPrinciple, CritiqueExample, CritiquePrinciple
from cai_jax.records import Provenance
from cai_jax.script import Sample
from cai_jax.stages.critique_revision import Settings, answer_helpful, revise

SETTINGS = Settings(
    rounds=3, critique=True, principles=0, few_shots=1, response_tokens=5, critique_tokens=6,
    revision_tokens=7, temperature=0.7, top_p=0.9, helpful_samples=2, shard_size=2,
)  # fmt: skip
CONSTITUTION = principles.build(
    "test",
    critique=[CritiquePrinciple(f"p{n}", f"criticise-{n}", f"rewrite-{n}") for n in range(5)],
    comparison=[ComparisonPrinciple("c", "Which is better?")],
    critique_examples=[
        CritiqueExample("shot-prompt", "shot-response", "shot-criticise", "shot-critique",
                        "shot-rewrite", "shot-revision"),
        CritiqueExample("second", "second", "second", "second", "second", "second"),
    ],
)  # fmt: skip
ROWS = [
    PromptRow(f"row{n}", "red_team", "", Conversation().human(f"question-{n}")) for n in range(5)
]
SOURCE = Provenance("model@0", "test@0", 0, "")


def revised(folder, engine, form, rows=ROWS, seed=0, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    seen = []
    found = revise(
        settings, engine, form, CONSTITUTION, rows, folder, seed, SOURCE,
        lambda done, total, newest: seen.append((done, total, len(newest))),
    )  # fmt: skip
    return found, seen


@pytest.fixture(params=["paper", "chat"])
def form(request, chat_model):
    return PaperFormat() if request.param == "paper" else chat_model.format


def test_each_round_reads_the_prompt_and_the_last_revision_alone(tmp_path, form):
    engine = ScriptedEngine(words)
    found, _ = revised(tmp_path, engine, form)
    for row, record in zip(ROWS, found, strict=True):
        question = row.conversation.turns[-1].text
        latest = record.initial_response
        earlier = []
        for n, step in enumerate(record.steps):
            (script,) = engine.asked(f"revise/{row.id}/{n}")
            text = forced(script)
            assert text.count(question) == 1
            assert text.count(latest) == 1
            assert not [old for old in earlier if old in text]
            # The principle that is named in the record is the one that was asked with.
            number = step.principle[1:]
            assert text.count(f"criticise-{number}") == text.count(f"rewrite-{number}") == 1
            order = [question, latest, f"criticise-{number}", f"rewrite-{number}"]
            assert sorted(order, key=text.index) == order
            earlier += [latest, step.critique]
            latest = step.revision


def test_a_script_samples_the_critique_and_then_the_revision(tmp_path, form):
    engine = ScriptedEngine(words)
    revised(tmp_path, engine, form)
    script = engine.asked("revise/row0/0")[0]
    samples = [s for s in script.segments if isinstance(s, Sample)]
    assert [s.max_new_tokens for s in samples] == [6, 7]
    assert all((s.temperature, s.top_p) == (0.7, 0.9) for s in samples)
    place = script.segments.index(samples[0])
    before = "".join(s.text for s in script.segments[:place])
    assert "criticise-" in before
    assert "rewrite-" not in before
    if isinstance(form, PaperFormat):
        assert "\n\nCritiqueRequest:" in samples[0].stop
        assert "\n\nHuman:" in samples[1].stop
        assert before.endswith("\n\nCritique:")
    else:
        assert isinstance(form, ChatFormat)


def test_few_shots_stand_first_and_as_many_as_asked_for(tmp_path, form):
    for count in (0, 1, 2):
        engine = ScriptedEngine(words)
        revised(tmp_path / str(count), engine, form, few_shots=count)
        text = forced(engine.asked("revise/row0/1")[0])
        assert ("shot-critique" in text) == (count > 0)
        assert ("second" in text) == (count > 1)
        if count:
            assert text.index("shot-revision") < text.index("question-0")


def test_a_direct_revision_reads_no_critique_and_no_request_for_one(tmp_path, form):
    engine = ScriptedEngine(words)
    found, _ = revised(tmp_path, engine, form, critique=False)
    for row, record in zip(ROWS, found, strict=True):
        latest = record.initial_response
        for n, step in enumerate(record.steps):
            (script,) = engine.asked(f"revise/{row.id}/{n}")
            text = forced(script)
            assert [s.max_new_tokens for s in script.segments if isinstance(s, Sample)] == [7]
            assert "criticise-" not in text and "shot-critic" not in text
            if isinstance(form, PaperFormat):
                assert "Critique" not in text and text.endswith("\n\nRevision:")
            order = ["shot-revision", row.conversation.turns[-1].text, latest]
            order.append(f"rewrite-{step.principle[1:]}")
            assert sorted(order, key=text.index) == order
            assert (step.critique, step.critique_stop_reason) == ("", "")
            assert step.revision.startswith("said-") and step.revision_stop_reason == "stop"
            latest = step.revision


def test_direct_revisions_continue_after_a_kill(tmp_path):
    first, _ = revised(tmp_path, ScriptedEngine(words), PaperFormat(), critique=False)
    (tmp_path / "00001-of-00003.jsonl").unlink()
    engine = ScriptedEngine(words)
    assert revised(tmp_path, engine, PaperFormat(), critique=False)[0] == first
    assert {s.id.split("/")[1] for s in engine.asked("revise/row")} == {"row2", "row3"}


def test_so_many_principles_are_drawn_from(tmp_path):
    used = {}
    for count in (0, 1, 2, 5):
        found, _ = revised(
            tmp_path / str(count), ScriptedEngine(words), PaperFormat(), principles=count, rounds=9
        )
        used[count] = {step.principle for r in found for step in r.steps}
        assert len(used[count]) == (count or 5)
    assert used[1] < used[2]
    whole = [(tmp_path / n / "00000-of-00003.jsonl").read_bytes() for n in ("0", "5")]
    assert whole[0] == whole[1]
    with pytest.raises(ValueError, match=r"revise\.principles is 6, and the constitution has 5"):
        revised(tmp_path / "6", ScriptedEngine(words), PaperFormat(), principles=6)


def test_the_order_of_principles_follows_from_the_seed_and_the_ids():
    of = CONSTITUTION.critique
    firsts = {principles.first_principles(of, 1, seed)[0].id for seed in range(40)}
    assert len(firsts) == 5
    for seed in range(5):
        assert set(principles.first_principles(of[::-1], 2, seed)) == set(
            principles.first_principles(of, 2, seed)
        )
    assert principles.first_principles(of, 0, 3) == principles.first_principles(of, 5, 3) == of


def test_a_principle_is_drawn_for_every_step(tmp_path):
    rows = [
        PromptRow(f"row{n}", "red_team", "", Conversation().human(f"question-{n}"))
        for n in range(60)
    ]
    found, _ = revised(tmp_path, ScriptedEngine(words), PaperFormat(), rows, shard_size=60)
    chains = [tuple(step.principle for step in record.steps) for record in found]
    counts = Counter(p for chain in chains for p in chain)
    assert set(counts) == {f"p{n}" for n in range(5)}
    # 180 draws of 5: 36 each, deviation 5.4.
    assert max(abs(count - 36) for count in counts.values()) < 22
    assert len(set(chains)) > 30, "one draw serves many prompts"
    assert any(len(set(chain)) < 3 for chain in chains), "drawn without replacement"
    other, _ = revised(
        tmp_path / "other", ScriptedEngine(words), PaperFormat(), rows, seed=1, shard_size=60
    )
    assert [s.principle for r in other for s in r.steps] != [p for c in chains for p in c]


def test_nothing_depends_on_the_shard_size(tmp_path):
    alone, seen = revised(tmp_path / "a", ScriptedEngine(words), PaperFormat(), shard_size=1)
    assert seen == [(n, 5, 1) for n in range(1, 6)]
    together, seen = revised(tmp_path / "b", ScriptedEngine(words), PaperFormat(), shard_size=9)
    assert seen == [(5, 5, 5)]
    assert alone == together


def test_a_prompt_keeps_its_chain_when_others_come_and_go(tmp_path):
    whole, _ = revised(tmp_path / "a", ScriptedEngine(words), PaperFormat())
    some, _ = revised(tmp_path / "b", ScriptedEngine(words), PaperFormat(), ROWS[:0:-2])
    assert {r.id: r for r in some} == {r.id: r for r in whole if r.id in ("row4", "row2")}


def test_finished_shards_are_not_asked_again(tmp_path):
    first, _ = revised(tmp_path, ScriptedEngine(words), PaperFormat())
    engine = ScriptedEngine(words)
    again, seen = revised(tmp_path, engine, PaperFormat())
    assert again == first
    assert engine.scripts == []
    assert seen == [(2, 5, 0), (4, 5, 0), (5, 5, 0)]
    (tmp_path / "00001-of-00003.jsonl").unlink()
    assert revised(tmp_path, engine, PaperFormat())[0] == first
    assert {s.id.split("/")[1] for s in engine.asked("revise/row")} == {"row2", "row3"}


def test_texts_are_stripped_and_reasons_kept(tmp_path):
    (record, *_), _ = revised(tmp_path, ScriptedEngine(words), PaperFormat())
    for text in (record.initial_response, record.steps[0].critique, record.steps[0].revision):
        assert text == text.strip()
        assert text.startswith("said-")
    assert record.steps[0].revision_stop_reason == "stop"
    assert record.provenance == SOURCE


def test_helpful_answers(tmp_path):
    engine = ScriptedEngine(words)
    rows = [dataclasses.replace(row, kind="helpful") for row in ROWS[:3]]
    found = answer_helpful(
        SETTINGS, engine, PaperFormat(), rows, tmp_path, 0, SOURCE, lambda done, total: None
    )
    assert [(r.id, r.sample) for r in found] == [
        (f"row{n}", sample) for n in range(3) for sample in range(2)
    ]
    assert len({r.response for r in found}) == 6
    assert all(r.kind == "helpful" for r in found)
    assert forced(engine.scripts[0]) == "\n\nHuman: question-0\n\nAssistant:"


@pytest.mark.slow
def test_with_a_real_engine_nothing_depends_on_shards_or_slots(tmp_path, model):
    """Sampled at temperature 1; the model is tiny and random, its texts are noise."""
    found = []
    for name, slots, size in (("a", 1, 1), ("b", 3, 3)):
        engine = Engine(model, slots, 1024)
        records, _ = revised(
            tmp_path / name, engine, model.format, ROWS[:3], rounds=1, few_shots=0,
            shard_size=size, temperature=1.0, top_p=1.0,
        )  # fmt: skip
        found.append(records)
    assert found[0] == found[1]
    assert len({r.initial_response for r in found[0]}) == 3
