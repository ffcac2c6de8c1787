"""AI feedback: which question is asked, how its answer becomes a label, and what is kept."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest
from scripted import ScriptedEngine, forced, words

from cai_jax import principles
from cai_jax.conversation import Conversation, PaperFormat
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding import Engine
from cai_jax.labels import first_of_two, raw_of
from cai_jax.labels import label as label_of
from cai_jax.principles import (
    ComparisonExample,
    ComparisonPrinciple,
    CritiquePrinciple,
    ReasonedExample,
)
from cai_jax.questions import Pair, contrast, replies
from cai_jax.records import Provenance, Response
from cai_jax.script import Choose, Force, Sample
from cai_jax.stages.ai_feedback import (
    Settings,
    compare,
    label_pairs,
    pairs_of,
    sample_pairs,
)

SETTINGS = Settings(
    response_tokens=5, temperature=1.0, top_p=1.0, mode="multiple_choice", few_shots=1,
    plain_text=False, principles="drawn", both_orders=True, chains=1, target="soft",
    clamp=(0.0, 1.0), sharpness=1.0, per_token=False, chain_tokens=9, chain_temperature=0.5,
    shard_size=2,
)  # fmt: skip
CONSTITUTION = principles.build(
    "test",
    critique=[CritiquePrinciple("p", "criticise", "rewrite")],
    comparison=[ComparisonPrinciple(f"c{n}", f"instruction-{n}?") for n in range(4)],
    comparison_examples=[ComparisonExample("shot-prompt", "shot-good", "shot-poor")],
    reasoned_examples=[
        ReasonedExample("chain-prompt", "chain-a", "chain-b", "chain-reasoning", "B")
    ],
)
PAIRS = [
    Pair(f"pair{n}", Conversation().human(f"question-{n}"), f"good-{n}", f"poor-{n}")
    for n in range(5)
]
SOURCE = Provenance("model@0", "test@0", 0, "")


@pytest.fixture(params=["paper", "chat"])
def form(request, chat_model):
    return PaperFormat() if request.param == "paper" else chat_model.format


def shown_as(script, text: str) -> str:
    """The letter under which a response stands in the live question, "A" or "B"."""
    return re.findall(r"\((A|B)\) \[*" + re.escape(text), forced(script))[-1]


def judge(bias: float, preference: float):
    """An answer of a model that likes responses called good, and the letter A."""

    def answer(script, segment):
        if isinstance(segment, Sample):
            return words(script, segment)
        good = re.search(r"good-\d", forced(script))[0]
        first = shown_as(script, good) == "A"
        logits = bias + preference * (1 if first else -1)
        p = 1 / (1 + math.exp(-logits))
        return math.log(p) - 3.0, math.log(1 - p) - 3.0  # the rest of the mass is elsewhere

    return answer


def labels(engine, form, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return label_pairs(settings, engine, form, CONSTITUTION, PAIRS, 0)


@pytest.mark.parametrize("mode", ["multiple_choice", "chain_of_thought"])
def test_a_liking_for_a_letter_cancels_in_two_orders(form, mode):
    strong = labels(ScriptedEngine(judge(bias=3.0, preference=0.0)), form, mode=mode)
    for label in strong:
        assert label.prob_a == pytest.approx(0.5)
        assert label.first_prob_a == pytest.approx(1 / (1 + math.exp(-3)))
        assert label.swapped_prob_a == pytest.approx(1 / (1 + math.exp(3)))


@pytest.mark.parametrize("mode", ["multiple_choice", "chain_of_thought"])
def test_a_preference_counts_in_both_orders(form, mode):
    for label in labels(ScriptedEngine(judge(bias=0.0, preference=2.0)), form, mode=mode):
        expected = 1 / (1 + math.exp(-2))
        assert label.prob_a == pytest.approx(expected)
        assert label.first_prob_a == label.swapped_prob_a == pytest.approx(expected)


def test_both_at_once():
    (label, *_) = labels(ScriptedEngine(judge(bias=1.0, preference=2.0)), PaperFormat())
    assert label.first_prob_a == pytest.approx(1 / (1 + math.exp(-3)))
    assert label.swapped_prob_a == pytest.approx(1 / (1 + math.exp(-1)))
    assert label.prob_a == pytest.approx((label.first_prob_a + label.swapped_prob_a) / 2)
    assert len(label.option_logprobs) == 2
    # As they were shown: (A) is likelier in the first order, and its own response in the second
    # stands at (B), which the preference for it makes likelier.
    assert label.option_logprobs[0][0] > label.option_logprobs[0][1]
    assert label.option_logprobs[1][0] < label.option_logprobs[1][1]


def test_one_order_as_in_the_paper(form):
    engine = ScriptedEngine(judge(bias=1.0, preference=0.5))
    for label in labels(engine, form, both_orders=False):
        assert label.prob_a == label.first_prob_a == pytest.approx(1 / (1 + math.exp(-1.5)))
        assert label.swapped_prob_a is None
        assert len(label.option_logprobs) == 1
    assert len(engine.scripts) == len(PAIRS)
    assert {shown_as(s, p.response_a) for s, p in zip(engine.scripts, PAIRS, strict=True)} == {"A"}


@pytest.mark.parametrize(("preference", "expected"), [(5.0, 0.6), (-5.0, 0.4), (0.1, 0.52498)])
def test_the_clamp_of_chain_of_thought(preference, expected):
    engine = ScriptedEngine(judge(bias=0.0, preference=preference))
    for label in labels(engine, PaperFormat(), mode="chain_of_thought", clamp=(0.4, 0.6)):
        assert label.prob_a == pytest.approx(expected, abs=1e-5)
        assert label.first_prob_a == pytest.approx(1 / (1 + math.exp(-preference)))


def test_the_questions_segments(form):
    engine = ScriptedEngine(judge(0.0, 0.0))
    labels(engine, form)
    labels(engine, form, mode="chain_of_thought")
    plain, reasoned = engine.asked("compare/multi")[0], engine.asked("compare/chain")[0]
    assert [type(s) for s in plain.segments if not isinstance(s, Force)] == [Choose]
    assert plain.segments[-1].options == (" (A)", " (B)")
    rest = [s for s in reasoned.segments if not isinstance(s, Force)]
    assert [type(s) for s in rest] == [Sample, Choose]
    assert (rest[0].max_new_tokens, rest[0].temperature) == (9, 0.5)
    assert isinstance(reasoned.segments[-2], Force), "the probe stands between the two"
    assert reasoned.segments[-2].text.rstrip().endswith("the answer is:")
    assert "So the answer is:" in "".join(rest[0].stop)
    before = forced(plain)
    assert ("shot-good" in before, "chain-reasoning" in before) == (True, False)
    before = forced(reasoned)
    assert ("shot-good" in before, "chain-reasoning" in before) == (False, True)
    if isinstance(form, PaperFormat):
        assert before.endswith("Let's think step by step:\n\nHuman:\nSo the answer is:")


def test_both_orders_have_ids_of_their_own():
    engine = ScriptedEngine(judge(0.0, 0.0))
    labels(engine, PaperFormat())
    ids = [s.id for s in engine.scripts]
    assert len(set(ids)) == 2 * len(PAIRS)
    assert ids[:2] == ["compare/multiple_choice/pair0/AB", "compare/multiple_choice/pair0/BA"]
    first, second = engine.scripts[:2]
    assert (shown_as(first, "good-0"), shown_as(second, "good-0")) == ("A", "B")
    assert forced(second) == forced(first).replace("good-0", "x").replace(
        "poor-0", "good-0"
    ).replace("x", "poor-0")


def test_a_principle_is_drawn_for_each_pair_and_asked_in_both_orders():
    engine = ScriptedEngine(judge(0.0, 0.0))
    found = labels(engine, PaperFormat(), few_shots=0)
    for label, n in zip(found, range(0, 10, 2), strict=True):
        for script in engine.scripts[n : n + 2]:
            assert f"instruction-{label.principle[1:]}?" in forced(script)
    assert len({label.principle for label in found}) > 1


def responses(*texts: tuple[str, str]) -> list[Response]:
    return [
        Response(f"pair{n}", "red_team", Conversation().human(f"question-{n}"), text, (1,), "end",
                 sample, SOURCE)
        for n, pair in enumerate(texts)
        for sample, text in enumerate(pair)
    ]  # fmt: skip


def test_equal_responses_make_no_pair():
    found = pairs_of(responses(("good-0", "poor-0"), ("same", "same"), ("good-2", "poor-2")))
    assert [(p.id, p.response_a, p.response_b) for p in found] == [
        ("pair0", "good-0", "poor-0"), ("pair2", "good-2", "poor-2")
    ]  # fmt: skip
    assert pairs_of([]) == []


def compared(folder, engine, **changes):
    return compare(
        dataclasses.replace(SETTINGS, **changes), engine, PaperFormat(), CONSTITUTION,
        responses(*[(f"good-{n}", f"poor-{n}") for n in range(5)], ("same", "same")),
        folder, 0, "judge@1", SOURCE, lambda done, total: None,
    )  # fmt: skip


def test_labels_and_draws_do_not_depend_on_the_shard_size(tmp_path):
    engines = [ScriptedEngine(judge(1.0, 2.0)) for _ in range(3)]
    found = [
        compared(tmp_path / str(size), engine, shard_size=size)
        for size, engine in zip((1, 2, 9), engines, strict=True)
    ]
    assert found[0] == found[1] == found[2]
    assert [r.id for r in found[0]] == [f"pair{n}" for n in range(5)]
    assert engines[1].runs == [4, 4, 2]
    assert len({r.principle for r in found[0]}) > 1


def test_records_keep_what_was_said(tmp_path):
    (record, *_) = compared(tmp_path, ScriptedEngine(judge(1.0, 2.0)))
    assert (record.labeler, record.mode, record.source) == ("judge@1", "multiple_choice", "ai")
    again = first_of_two(*record.option_logprobs[0])
    swapped = first_of_two(*record.option_logprobs[1][::-1])
    assert record.swapped_prob_a == pytest.approx(swapped, abs=1e-5)
    assert record.prob_a == pytest.approx((again + swapped) / 2, abs=1e-5)


def test_finished_shards_are_not_asked_again(tmp_path):
    first = compared(tmp_path, ScriptedEngine(judge(1.0, 2.0)))
    engine = ScriptedEngine(judge(-1.0, -2.0))
    assert compared(tmp_path, engine) == first
    assert engine.scripts == []


def test_two_responses_to_each_prompt(tmp_path):
    engine = ScriptedEngine(words)
    rows = [PromptRow(f"row{n}", "red_team", "", p.prompt) for n, p in enumerate(PAIRS)]
    found = sample_pairs(
        SETTINGS, engine, PaperFormat(), rows, tmp_path, 0, SOURCE, lambda done, total: None
    )
    assert [(r.id, r.sample) for r in found] == [(f"row{n}", s) for n in range(5) for s in (0, 1)]
    assert len({r.response for r in found}) == 10
    assert engine.runs == [4, 4, 2]


@pytest.mark.slow
def test_with_a_real_engine_labels_do_not_depend_on_slots(model):
    found = []
    for slots in (1, 3):
        engine = Engine(model, slots, 2048)
        found.append(labels(engine, model.format, few_shots=0))
    for a, b in zip(*found, strict=True):
        assert a.principle == b.principle
        assert a.prob_a == pytest.approx(b.prob_a, abs=1e-5)


@pytest.mark.parametrize("clamp", [(0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (0.55, 0.7)])
def test_a_clamp_that_would_turn_labels_round_is_refused(clamp):
    with pytest.raises(ValueError, match="clamp is"):
        dataclasses.replace(SETTINGS, clamp=clamp)


def test_all_principles_hold_the_drawn_ones_answers(form):
    drawn = ScriptedEngine(judge(0.3, 1.0))
    labels(drawn, form)
    every = ScriptedEngine(judge(0.3, 1.0))
    found = labels(every, form, principles="all")
    assert len(every.scripts) == 4 * len(drawn.scripts)
    assert set(drawn.scripts) < set(every.scripts)
    for label, pair in zip(found, PAIRS, strict=True):
        assert [a.principle for a in label.asked] == [f"c{n}" for n in range(4) for _ in (0, 1)]
        assert label.id == pair.id


def test_chains_differ_and_the_first_is_the_only_one_asked_alone():
    one, three = ScriptedEngine(judge(0.0, 1.0)), ScriptedEngine(judge(0.0, 1.0))
    labels(one, PaperFormat(), mode="chain_of_thought", both_orders=False)
    labels(three, PaperFormat(), mode="chain_of_thought", both_orders=False, chains=3)
    assert len(three.scripts) == 3 * len(one.scripts)
    assert set(one.scripts) < set(three.scripts)


def test_the_thought_behind_each_choice_is_kept(tmp_path):
    """In the order of the questions, through the records; other modes have none."""

    def answer(script, segment):
        known = judge(0.0, 1.0)(script, segment)
        return f"  thought of {script.id} \n" if isinstance(segment, Sample) else known

    how = {"mode": "chain_of_thought", "chains": 2, "principles": "all"}
    records = compared(tmp_path / "chains", ScriptedEngine(answer), **how)
    for record in records:
        assert len(record.chains) == len(record.asked) == 4 * 2 * 2
        for asked, thought in zip(record.asked, record.chains, strict=True):
            assert thought.startswith(f"thought of compare/chain_of_thought/{record.id}/")
            assert f"/{asked.shown}" in thought and thought == thought.strip()
            assert (f"/{asked.principle}" in thought) or asked.principle == record.principle
            assert (f"chain {asked.chain}" in thought) == (asked.chain > 0)
    assert {r.chains for r in compared(tmp_path / "plain", ScriptedEngine(answer))} == {()}
    assert raw_of(records[0]).chains == records[0].chains


def test_the_whole_constitution_is_asked_once_an_order():
    engine = ScriptedEngine(judge(0.0, 2.0))
    found = labels(engine, PaperFormat(), principles="together", few_shots=0)
    assert len(engine.scripts) == 2 * len(PAIRS)
    assert all(f"- instruction-{n}?" in forced(s) for s in engine.scripts for n in range(4))
    assert all(a.principle == "*" for label in found for a in label.asked)
    assert found[0].prob_a == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-5)


def test_a_chat_model_can_be_asked_in_plain_text(chat_model):
    plain, own = ScriptedEngine(judge(0.0, 0.0)), ScriptedEngine(judge(0.0, 0.0))
    labels(plain, chat_model.format, plain_text=True)
    labels(own, PaperFormat())
    assert plain.scripts == own.scripts


def test_ratings_of_each_response(form):
    def answer(script, segment):
        rating = 8 if "good-" in forced(script) else 3
        return tuple(-1.0 if n == rating else -99.0 for n in range(1, 11))

    for label in labels(ScriptedEngine(answer), form, mode="rating", sharpness=0.5):
        assert label.prob_a == pytest.approx(1 / (1 + math.exp(-2.5)), abs=1e-5)
        assert label.swapped_prob_a is None


def test_contrasts_and_how_long_the_responses_are(form):
    def answer(script, segment):
        good, poor = segment.options
        assert good.strip().startswith("good-") and poor.strip().startswith("poor-")
        return (-9.0, -30.0) if "the best response" in forced(script) else (-11.0, -29.0)

    space = isinstance(form, PaperFormat)
    for label in labels(ScriptedEngine(answer), form, mode="contrastive"):
        assert label.prob_a == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-5)
        assert label.response_tokens == (6 + space, 6 + space)  # bytes


def test_an_empty_response_is_as_likely_under_both_prompts(chat_model):
    engine = ScriptedEngine(lambda script, segment: tuple(-5.0 for _ in segment.options))
    settings = dataclasses.replace(SETTINGS, mode="contrastive")
    pair = Pair("x", Conversation().human("?"), "", "something")
    (label,) = label_pairs(settings, engine, chat_model.format, CONSTITUTION, [pair], 0)
    assert label.option_logprobs == ((0.0, -5.0), (0.0, -5.0))
    assert label.response_tokens == (0, 9)


def test_labels_are_what_the_records_alone_give(tmp_path):
    for mode in ("multiple_choice", "chain_of_thought"):
        changes = {"mode": mode, "principles": "all", "chains": 2, "clamp": (0.3, 0.7)}
        settings = dataclasses.replace(SETTINGS, **changes)
        for record in compared(tmp_path / mode, ScriptedEngine(judge(0.7, 0.4)), **changes):
            again = label_of(settings, raw_of(record), [p.id for p in CONSTITUTION.comparison])
            assert again.prob_a == record.prob_a
            assert again.swapped_prob_a == record.swapped_prob_a


def test_a_whole_response_is_an_option_of_the_real_engine(model):
    """Its log-likelihood, of more tokens than one call scores, is that of a plain forward pass."""
    long = Pair("x", Conversation().human("?"), "ab " * 120, "A short one.")
    engine = Engine(model, 2, 2048)
    settings = dataclasses.replace(SETTINGS, mode="contrastive", principles="all")
    (label,) = label_pairs(settings, engine, model.format, CONSTITUTION, [long], 0)
    assert label.response_tokens == (361, 13)
    for asked, found in zip(label.asked, label.option_logprobs, strict=True):
        principle = next(p for p in CONSTITUTION.comparison if p.id == asked.principle)
        forces = contrast(model.format, principle, long.prompt, asked.shown == "best")
        context = [model.tokenizer.bos_id, *(t for f in forces for t in
                   model.tokenizer.encode(f.text))]  # fmt: skip
        for text, logprob in zip(replies(model.format, long), found, strict=True):
            option = model.tokenizer.encode(text)
            tokens = jnp.asarray([[*context, *option]])
            scores = jax.nn.log_softmax(model.logits(tokens)[0, len(context) - 1 : -1])
            expected = scores[jnp.arange(len(option)), jnp.asarray(option)].sum()
            assert logprob == pytest.approx(float(expected), rel=1e-5, abs=1e-3)
