"""Multiple-choice evaluations: what is asked, what is left out, and what is kept of the answers."""

import math
from pathlib import Path

import numpy as np
import pytest
from scripted import ScriptedEngine, forced, words

from cai_jax import principles
from cai_jax.constitution import import_paper
from cai_jax.conversation import Conversation, PaperFormat
from cai_jax.datasets import cai_paper
from cai_jax.datasets.cai_paper import HHHQuestion, Question
from cai_jax.evaluation import accuracy
from cai_jax.evaluation.multiple_choice import ASKED, Choice, Settings, ask, parted, score
from cai_jax.principles import (
    ComparisonExample,
    ComparisonPrinciple,
    CritiquePrinciple,
    ReasonedExample,
)
from cai_jax.records import Provenance
from cai_jax.script import Choose, Sample

PAPER = Path(__file__).parents[2] / "shared" / "data" / "anthropic-cai-paper"
SETTINGS = Settings(few_shots=2, chains=3, chain_tokens=9, chain_temperature=0.5, shard_size=2)
SOURCE = Provenance("model@0", "test@0", 0, "")
CONSTITUTION = principles.build(
    "test",
    critique=[CritiquePrinciple("p", "criticise", "rewrite")],
    comparison=[ComparisonPrinciple("c", "instruction?")],
    comparison_examples=[ComparisonExample("shot", "good-4", "poor-4")],
    reasoned_examples=[ReasonedExample("chain", "poor-1 ", "good-1", "thoughts", "B")],
)


def comparison(n: int) -> HHHQuestion:
    said, correct = Conversation().human(f"question-{n}"), n % 2
    options = (f"good-{n}", f"poor-{n}")[:: -1 if correct else 1]
    prompt = (
        f"\n\nConsider the following conversation between a human and an assistant:"
        f"\n\nHuman: question-{n}\n\n\nWhich is best? Options:\n (A) [[[{options[0]}]]]"
        f"\n (B) [[[{options[1]}]]]\n\nThe answer is:"
    )
    better, worse = said.assistant(f"good-{n}"), said.assistant(f"poor-{n}")
    parts = (f"hhh-{n}", n, prompt, said, "Which is best?", options, correct)
    return HHHQuestion(*parts, better=better, worse=worse)


def classes(n: int) -> Question:
    said = Conversation().human(f"question-{n}").assistant("Reply.")
    prompt = (
        f"Here is a conversation between a human and an assistant:\n\nHuman: question-{n}"
        "\n\nAssistant: Reply.\n\nWhich? Options:\n (A) One\n (B) Two\n (C) Three\nThe answer is:"
    )
    return Question(f"harm_classes-{n}", n, prompt, said, "Which?", ("One", "Two", "Three"), n % 3)


COMPARISONS = [comparison(n) for n in range(5)]
CLASSES = [classes(n) for n in range(7)]


def certain(correct_if):
    """Chooses rightly where `correct_if(script)`, else the option after."""

    def answer(script, segment):
        if isinstance(segment, Sample):
            return words(script, segment)
        n = int(script.id.split("/")[0].split("-")[-1])
        k = len(segment.options)
        right = n % k
        chosen = right if correct_if(script) else (right + 1) % k
        return tuple(math.log(0.8) if i == chosen else math.log(0.2 / k) for i in range(k))

    return answer


def asked(engine, mode, questions, folder, form=None, **changes):
    settings = Settings(**{**vars(SETTINGS), **changes})
    return ask(
        settings, mode, engine, form or PaperFormat(), CONSTITUTION, questions, folder, 0, "tiny",
        SOURCE, lambda done, total: None,
    )  # fmt: skip


@pytest.mark.parametrize("questions", [COMPARISONS, CLASSES], ids=["hhh", "classes"])
def test_zero_shot_is_the_published_prompt(tmp_path, questions):
    engine = ScriptedEngine(certain(lambda s: True))
    found = asked(engine, "zero_shot", questions, tmp_path)
    assert [forced(s) for s in engine.scripts] == [q.prompt for q in questions]
    assert {s.segments[-1] for s in engine.scripts} == {Choose(questions[0].choices)}
    assert [(c.id, c.correct) for c in found] == [(q.id, q.correct) for q in questions]
    assert accuracy.accuracies(found)["zero_shot"].value == 1


def test_the_438_prompts_are_the_published_strings():
    if not PAPER.exists():
        pytest.skip("the paper's files are not beside this checkout")
    from cai_jax.evaluation.multiple_choice import _script

    paper = import_paper(PAPER / "prompts")
    questions = cai_paper.hhh(PAPER)
    made = [_script(SETTINGS, "zero_shot", PaperFormat(), paper, [], q, 0, 0) for q in questions]
    assert len(made) == 438
    assert [forced(s) for s in made] == [q.prompt for q in questions]
    assert {len(s.segments) for s in made} == {2}
    few = [_script(SETTINGS, "few_shot", PaperFormat(), paper, [], q, 0, 0) for q in questions]
    assert all(forced(s).endswith(q.prompt) for s, q in zip(few, questions, strict=True))
    left_out = {
        mode: {q.row for q in questions}
        - {q.row for q in parted(SETTINGS, mode, paper, questions, 0)[1]}
        for mode in ASKED
    }
    assert left_out == {
        "zero_shot": set(), "few_shot": set(), "chain_of_thought": {185, 92, 74, 375, 1, 30}
    }  # fmt: skip


def test_worked_examples_are_not_asked(tmp_path):
    engine = ScriptedEngine(certain(lambda s: True))
    for mode, missing in (
        ("zero_shot", None),
        ("few_shot", "hhh-4"),
        ("chain_of_thought", "hhh-1"),
    ):
        found = asked(engine, mode, COMPARISONS, tmp_path / mode)
        assert {q.id for q in COMPARISONS} - {c.id for c in found} == {missing} - {None}


def test_few_shots_of_other_questions_are_questions_that_are_not_scored(tmp_path):
    engine = ScriptedEngine(certain(lambda s: True))
    shown, rest = parted(SETTINGS, "few_shot", CONSTITUTION, CLASSES, 0)
    assert len(shown) == 2 and len({q.correct for q in shown}) == 2
    found = asked(engine, "few_shot", CLASSES, tmp_path)
    assert [c.id for c in found] == [q.id for q in rest]
    assert len(rest) == len(CLASSES) - 2
    before = "".join(f"{q.prompt}{q.choices[q.correct]}\n\n" for q in shown)
    assert [forced(s) for s in engine.scripts] == [before + q.prompt for q in rest]


def test_few_shots_leave_something_to_ask():
    with pytest.raises(ValueError, match="few_shots is 2, and there are 2 questions"):
        parted(SETTINGS, "few_shot", CONSTITUTION, CLASSES[:2], 0)


@pytest.mark.parametrize("questions", [COMPARISONS, CLASSES], ids=["hhh", "classes"])
def test_a_chat_model_is_asked_in_turns(tmp_path, questions, chat_model):
    engine = ScriptedEngine(certain(lambda s: True))
    for mode in ASKED:
        asked(engine, mode, questions, tmp_path / mode, chat_model.format)
    for script in engine.scripts:
        text = forced(script)
        assert text.startswith("<|im_start|>user\n")
        assert text.endswith("answer is:")
        assert text.count("<|im_start|>assistant\n") == text.count("<|im_start|>user\n")
    (script, *_) = [s for s in engine.scripts if "/few_shot/" in s.id]
    assert re_count(script, "The answer is: (") == (1 if questions is COMPARISONS else 2)


def re_count(script, text):
    return forced(script).count(text)


@pytest.mark.parametrize("questions", [COMPARISONS, CLASSES], ids=["hhh", "classes"])
def test_chains_are_kept_and_averaged(tmp_path, questions):
    engine = ScriptedEngine(certain(lambda s: not s.id.endswith("/1")))  # one of three is wrong
    found = asked(engine, "chain_of_thought", questions, tmp_path)
    assert len(engine.scripts) == 3 * len(found)
    assert len({s.id for s in engine.scripts}) == len(engine.scripts)
    for choice in found:
        assert len(choice.option_logprobs) == len(choice.reasoning) == 3
        assert choice.reasoning[0].startswith("said-")
        assert choice.probs() == pytest.approx(choice.chain_probs().mean(0))
        assert choice.probs().sum() == pytest.approx(1)
    by_mode = accuracy.accuracies(found)
    assert by_mode["chain_of_thought"].value == pytest.approx(2 / 3)
    assert by_mode["ensembled_chain_of_thought"].value == 1
    script = engine.scripts[0]
    assert [type(s) for s in script.segments[-3:-2]] == [Sample]
    assert forced(script).endswith("Let's think step by step:\n\nHuman:\nSo the answer is:")
    assert forced(script).startswith("\n\nHuman: ")


def test_it_resumes_by_shard(tmp_path):
    engine = ScriptedEngine(certain(lambda s: True))
    whole = asked(engine, "zero_shot", COMPARISONS, tmp_path)
    assert engine.runs == [2, 2, 1]
    (tmp_path / "00001-of-00003.jsonl").unlink()
    again = ScriptedEngine(certain(lambda s: True))
    assert asked(again, "zero_shot", COMPARISONS, tmp_path) == whole
    assert again.runs == [2]


def test_what_does_not_fit_is_left_out(tmp_path):
    long = Question(**{**vars(CLASSES[0]), "prompt": "x" * 900 + CLASSES[0].prompt})
    engine = ScriptedEngine(certain(lambda s: True), fits=lambda s: len(forced(s)) <= 800)
    found = asked(engine, "zero_shot", [long, *CLASSES[1:]], tmp_path / "a")
    assert [c.id for c in found] == [q.id for q in CLASSES[1:]]
    with pytest.raises(ValueError, match="not one of 1 questions fits the engine"):
        asked(engine, "zero_shot", [long], tmp_path / "b")


def test_a_preference_models_scores(tmp_path):
    def by_length(texts):  # likes the good ones, except for question 3
        return np.array([("good" in r) != ("-3" in r) for _, r in texts], float)

    found = score(COMPARISONS, by_length, tmp_path, "pm", SOURCE)
    assert accuracy.accuracies(found)["preference_model"].value == pytest.approx(4 / 5)
    assert found[0].option_logprobs == ((1.0, 0.0),)
    assert found[0].probs()[0] == pytest.approx(1 / (1 + math.exp(-1)))
    assert score(COMPARISONS, None, tmp_path, "pm", SOURCE) == found  # read, not scored again


def choice(n, logprobs, correct=0, mode="zero_shot"):
    return Choice("hhh", f"hhh-{n}", mode, correct, logprobs, (), "tiny", SOURCE)


def test_ties_share_their_credit():
    assert accuracy.credit(np.array([0.5, 0.5]), 1) == 0.5
    assert accuracy.credit(np.array([0.4, 0.4, 0.2]), 2) == 0
    assert accuracy.credit(np.array([0.2, 0.8]), 1) == 1


def test_a_summary_has_everything_with_n_and_interval():
    zero = [choice(n, ((0.0, -1.0),), n % 2) for n in range(10)]  # says (A) always
    few = [
        choice(n, ((-5.0, 0.0)[:: -1 if n % 2 == 0 else 1],), n % 2, "few_shot") for n in range(8)
    ]
    found = accuracy.summary(zero + few, 12, seed=0, resamples=50)
    assert found["accuracy"]["zero_shot"]["value"] == 0.5
    assert found["accuracy"]["few_shot"] == {"value": 1.0, "low": pytest.approx(0.6756, abs=1e-3),
                                             "high": 1.0, "n": 8}  # fmt: skip
    assert found["not_scored"] == {"zero_shot": 2, "few_shot": 4}
    assert found["averaged_over_chains"]["zero_shot"]["says_first"]["value"] == 1
    assert found["averaged_over_chains"]["zero_shot"]["by_right_option"]["1"]["value"] == 0
    (pair,) = found["paired"]
    assert (pair["first"], pair["second"], pair["difference"]["n"]) == ("zero_shot", "few_shot", 8)
    assert pair["difference"]["value"] == -0.5 and pair["p"] == pytest.approx(0.125)
    expected = 1 / (1 + math.exp(-1)) - 0.5
    error = found["averaged_over_chains"]["zero_shot"]["calibration_error"]["value"]
    assert error == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="no question was answered by both"):
        accuracy.paired({"a": 1.0}, {"b": 1.0}, 0, 10)


def test_labels_of_the_first_option():
    probs, right = accuracy.first_option_labels(
        [choice(0, ((0.0, 0.0),)), choice(1, ((0.0, -9.0),), 1), choice(2, ((0.0, 0.0, 0.0),))]
    )
    assert probs == [0.5, pytest.approx(1 / (1 + math.exp(-9)))] and right == [True, False]
