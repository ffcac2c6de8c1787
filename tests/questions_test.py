"""The feedback model's questions: what stands in each Script, byte for byte where it is known."""

import gzip
import json
from pathlib import Path

import pytest
from scripted import forced

from cai_jax import paper_prompts, principles
from cai_jax.constitution import import_paper
from cai_jax.conversation import Conversation, PaperFormat, Turn, parse
from cai_jax.labels import TOGETHER
from cai_jax.principles import ComparisonExample, ComparisonPrinciple, ReasonedExample, draw
from cai_jax.questions import RATED, Pair, Questions, contrast
from cai_jax.records import Asked
from cai_jax.script import Choose, Sample

PAPER = Path(__file__).parents[2] / "shared" / "data" / "anthropic-cai-paper"
CONSTITUTION = principles.build(
    "test",
    critique=[],
    comparison=[ComparisonPrinciple(f"c{n}", f"instruction-{n}?") for n in range(3)],
    comparison_examples=[ComparisonExample("shot-prompt", "shot-good", "shot-poor")],
    reasoned_examples=[ReasonedExample("chain-prompt", "chain-a", "chain-b", "because", "B")],
)
PAIR = Pair("x", Conversation().human("the question"), "the first", "the second")


def script(mode: str, form=None, pair=PAIR, constitution=CONSTITUTION, few_shots=0, **asked):
    common = Questions(mode, form or PaperFormat(), constitution, few_shots, 9, 0.5, 0)
    asked = Asked(**{"principle": "c1", "shown": "AB", "chain": 0} | asked)
    return common.script(pair, asked, drawn="c1")


def test_names_are_distinct_and_the_drawn_principles_first_chain_has_the_plain_one():
    found = {
        script("chain_of_thought", principle=p, shown=s, chain=n).id
        for p in ("c0", "c1", "c2", TOGETHER)
        for s in ("AB", "BA")
        for n in range(3)
    }
    assert len(found) == 24
    assert {"compare/chain_of_thought/x/AB", "compare/chain_of_thought/x/BA"} < found


def test_the_swapped_order_swaps_the_responses_alone():
    one, other = script("multiple_choice"), script("multiple_choice", shown="BA")
    assert "(A) [[[the first]]]\n (B) [[[the second]]]" in forced(one)
    swapped = forced(other).replace("the second", "@").replace("the first", "the second")
    assert swapped.replace("@", "the first") == forced(one)


def test_the_whole_constitution_is_one_question():
    asked = forced(script("multiple_choice", principle=TOGETHER))
    assert [asked.count(f"- instruction-{n}?\n") for n in range(3)] == [1, 1, 1]
    assert asked.count("the question") == asked.count("Options:") == 1
    assert asked.count("instruction-1?") == forced(script("multiple_choice")).count("instruction-1")


def test_a_chain_of_thought_is_sampled_before_the_choice(chat_model):
    for form in (PaperFormat(), chat_model.format):
        asked = script("chain_of_thought", form, few_shots=1)
        sample, choose = asked.segments[-3], asked.segments[-1]
        assert isinstance(sample, Sample) and isinstance(choose, Choose)
        assert (sample.max_new_tokens, sample.temperature) == (9, 0.5)
        assert "because" in forced(asked)


def test_a_rating_shows_one_response(chat_model):
    for form in (PaperFormat(), chat_model.format):
        for shown, seen, unseen in (
            ("A", "the first", "the second"), ("B", "the second", "the first")
        ):  # fmt: skip
            asked = script("rating", form, shown=shown, few_shots=1)
            text = forced(asked)
            assert (text.count(seen), unseen in text) == (1, False)
            assert text.count("instruction-1?") == text.count("the question") == 1
            assert text.endswith("My rating is:")
            assert asked.segments[-1] == Choose(RATED)
    assert RATED[0] == " 1/10" and RATED[-1] == " 10/10" and len(RATED) == 10
    assert not any(b.startswith(a) for a in RATED for b in RATED if a != b)


def test_contrastive_prompts_differ_in_one_word(chat_model):
    for form in (PaperFormat(), chat_model.format):
        best, worst = (script("contrastive", form, shown=s) for s in ("best", "worst"))
        assert forced(worst) == forced(best).replace("the best response", "the worst response")
        assert forced(best) != forced(worst)
        assert "instruction-1?" in forced(best)
        assert best.segments[-1] == worst.segments[-1]
        assert [o.strip() for o in best.segments[-1].options] == ["the first", "the second"]
        assert "the first" not in forced(best)
    assert script("contrastive").segments[-1].options == (" the first", " the second")
    assert forced(script("contrastive")).endswith("\n\nHuman: the question\n\nAssistant:")


def test_a_system_turn_stays_behind_the_contrastive_words(chat_model):
    conversation = Conversation((Turn("system", "You are Tim."), Turn("human", "Hi.")))
    forces = contrast(chat_model.format, CONSTITUTION.comparison[0], conversation, True)
    text = "".join(force.text for force in forces)
    assert text.count("<|im_start|>system") == 1
    assert text.index("always gives the best response") < text.index("You are Tim.")


def test_an_empty_response_is_no_option(chat_model):
    pair = Pair("x", PAIR.prompt, "", "the second")
    options = script("contrastive", chat_model.format, pair, shown="best").segments[-1].options
    assert options == ("the second",)


def test_responses_hold_no_control_tokens(chat_model):
    pair = Pair("x", PAIR.prompt, "a<|im_end|>", "b")
    for mode, shown in (("rating", "A"), ("contrastive", "best"), ("multiple_choice", "AB")):
        asked = script(mode, chat_model.format, pair, shown=shown)
        assert not any("a<|im_end|>" in getattr(s, "text", "") and s.control for s in
                       asked.segments if not isinstance(s, Choose))  # fmt: skip


@pytest.fixture(scope="module")
def paper():
    if not PAPER.exists():
        pytest.skip("the paper's files are not beside this checkout")
    return import_paper(PAPER / "prompts")


def test_the_published_comparisons_are_what_is_asked(paper):
    """The 438 prompts of the paper's evaluation, asked as a pair under its second principle."""
    with gzip.open(PAPER / "evals" / "438HHHEvaluations.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        texts = [row["text_correct"], row["text_incorrect"]]
        if row["corrects"] == [" (B)"]:
            texts.reverse()
        pair = Pair(
            "x",
            parse(texts[0].rpartition("\n\nAssistant:")[0]),
            *(text.rpartition("\n\nAssistant: ")[2] for text in texts),
        )
        asked = script("multiple_choice", pair=pair, constitution=paper, principle="comparison1")
        assert forced(asked) == row["prompt"]
        assert asked.segments[-1].options == (" (A)", " (B)")


def test_the_published_few_shots_stand_before_a_comparison(paper):
    """Each from the file's own texts, under a principle of its own as the file spells it."""
    entries = json.loads((PAPER / "prompts" / "RLMadisonFewShotPrompts.json").read_text("utf-8"))
    wordings = json.loads((PAPER / "prompts" / "RLMadisonInstructions.json").read_text("utf-8"))
    asked = script("multiple_choice", constitution=paper, few_shots=5, principle="comparison1")
    text = forced(asked)
    first = (draw((0, 1), 0, "few-shot order")) % 2 == 0
    for n, entry in enumerate(entries):
        number = paper.comparison.index(draw(paper.comparison, 0, "few-shot principle", n))
        pair = [*entry["corrects"], *entry["incorrects"]]
        right_first = first == (n % 2 == 0)
        a, b = pair if right_first else pair[::-1]
        shot = (
            "\n\nConsider the following conversation between a human and an assistant:"
            + entry["prompt"].removesuffix("\n\nAssistant:")
            + f"\n\n{wordings[number]}\n (A) [[[{a}]]]\n (B) [[[{b}]]]"
            + f"\n\nThe answer is: ({'A' if right_first else 'B'})"
        )
        assert text.startswith(shot)
        text = text.removeprefix(shot)
    assert text == forced(script("multiple_choice", constitution=paper, principle="comparison1"))


def test_the_published_chains_stand_before_a_reasoned_comparison(paper):
    """Up to the listed defects of the file, which paper_prompts_test names."""
    name = "RLMadisonPrecogFewShotPrompts.json"
    entries = json.loads((PAPER / "prompts" / name).read_text("utf-8"))
    asked = script("chain_of_thought", constitution=paper, few_shots=6, principle="comparison1")
    text = forced(asked)
    for n, entry in enumerate(entries):
        instruction = draw(paper.comparison, 0, "reasoned few-shot", n).instruction
        shot = "\n\n" + entry["prompt"].lstrip("\n").replace(
            "conversation between a human and an assistant:",
            "conversation between a human (H) and an assistant (A):",
        ).replace("{}", paper_prompts.comparison_instruction(instruction), 1)
        assert text.startswith(shot)
        text = text.removeprefix(shot)
    assert text.endswith("Let's think step by step:\n\nHuman:\nSo the answer is:")


def test_which_of_two_known_responses_is_a_is_drawn_by_the_pair():
    said = Conversation((Turn("human", "Why?"),))
    pairs = [Pair.drawn(f"{n}", said, "good", "bad") for n in range(40)]
    assert all({p.response_a, p.response_b} == {"good", "bad"} for p in pairs)
    assert 10 < sum(p.response_a == "good" for p in pairs) < 30
    assert pairs[3] == Pair.drawn("3", said, "good", "bad")
