"""Over-refusal: what is asked of the model and of the judge, and the rates that come of it."""

import math

import pytest
from scripted import ScriptedEngine, forced

from cai_jax.conversation import Conversation, PaperFormat
from cai_jax.datasets.xstest import Item
from cai_jax.evaluation.over_refusal import (
    Judgement,
    Settings,
    judge,
    react,
    summary,
)
from cai_jax.records import Provenance
from cai_jax.script import Sample

SETTINGS = Settings(response_tokens=7, temperature=0.5, top_p=1.0, shard_size=2)
SOURCE = Provenance("model@0", "", 0, "")
ITEMS = [
    Item(f"xstest-{n}", Conversation().human(f"question-{n}"), kind, safe, "", "")
    for n, (kind, safe) in enumerate(
        [("homonyms", True), ("homonyms", True), ("contrast_homonyms", False)]
    )
]
REPLIES = ["Use kill and the process id.", "I can't help with that.", "I can't help with that."]


def replies(script, segment):
    assert isinstance(segment, Sample)
    return REPLIES[int(script.id.split("-")[-1].split("/")[0])]


def sees_refusals(script, segment):
    """Prefers the option that is true of the response, and likes (A) on top."""
    declined = "can't" in forced(script)
    first_is_declining = "(A) The assistant declines" in forced(script)
    lead = (2.0 if declined == first_is_declining else -2.0) + 1.0
    return (lead, 0.0)


def reacted(folder):
    return react(
        SETTINGS, ScriptedEngine(replies), PaperFormat(), ITEMS, folder, 0, "tiny", SOURCE,
        lambda done, total: None,
    )  # fmt: skip


@pytest.fixture(params=["paper", "chat"])
def form(request, chat_model):
    return PaperFormat() if request.param == "paper" else chat_model.format


def test_rates_by_kind(tmp_path, form):
    reactions = reacted(tmp_path / "r")
    assert [r.response for r in reactions] == REPLIES
    engine = ScriptedEngine(sees_refusals)
    args = (SETTINGS, engine, form, reactions, tmp_path / "j", 0, "judge", lambda d, t: None)
    judgements = judge(*args)
    assert engine.runs == [4, 2]
    expected = (1 / (1 + math.exp(-3)) + 1 / (1 + math.exp(-1))) / 2
    assert judgements[1].refused() == pytest.approx(expected)
    assert judgements[0].refused() == pytest.approx(1 - expected)
    found = summary(reactions, judgements)
    assert list(found) == ["safe", "unsafe", "homonyms", "contrast_homonyms"]
    for name in ("refusal by phrases", "refusal by the judge"):
        assert (found["safe"][name]["value"], found["safe"][name]["n"]) == (0.5, 2)
        assert (found["unsafe"][name]["value"], found["unsafe"][name]["n"]) == (1.0, 1)
    assert found["safe"]["phrases and judge agree"]["value"] == 1
    assert judge(*args) == judgements and engine.runs == [4, 2]  # read, not asked again


def test_the_judge_sees_the_response_and_both_orders(tmp_path, form):
    engine = ScriptedEngine(sees_refusals)
    reactions = reacted(tmp_path / "r")
    judge(SETTINGS, engine, form, reactions, tmp_path / "j", 0, "judge", lambda d, t: None)
    first, swapped = map(forced, engine.scripts[:2])
    assert "Human: question-0\n\nAssistant: Use kill and the process id.\n\n" in first
    assert "(A) The assistant answers" in first and "(B) The assistant answers" in swapped
    assert first.endswith("The answer is:")


def test_a_liking_for_a_letter_cancels():
    assert Judgement("a", ((5.0, 0.0), (5.0, 0.0)), "judge").refused() == pytest.approx(0.5)
    assert Judgement("a", ((0.0, 5.0), (5.0, 0.0)), "judge").refused() > 0.99
    assert Judgement("a", ((-1e4, 0.0), (0.0, -1e4)), "judge").refused() == pytest.approx(1)
