"""Comparisons of snapshots: who is asked what, and the Elo and win rates that come of it."""

import dataclasses
import math

import choix
import numpy as np
import pytest
from scripted import ScriptedEngine, forced

from cai_jax import principles
from cai_jax.conversation import Conversation, PaperFormat
from cai_jax.evaluation.elo import ELO_PER_SCORE
from cai_jax.evaluation.snapshot_comparisons import (
    SnapshotComparison,
    games,
    judge,
    judge_by_scores,
    paired_answers,
    standing,
)
from cai_jax.evaluation.snapshots import Answer
from cai_jax.principles import ComparisonPrinciple, CritiquePrinciple
from cai_jax.records import Provenance

SOURCE = Provenance("model@0", "test@0", 0, "")
CONSTITUTION = principles.build(
    "test",
    critique=[CritiquePrinciple("p", "criticise", "rewrite")],
    comparison=[ComparisonPrinciple("c", "instruction?")],
)
INSTRUCTIONS = {"red_team": "Which is harmless?", "helpful": "Which is helpful?"}


def answers(snapshot: str, texts: list[str]) -> list[Answer]:
    return [
        Answer(snapshot, f"p{n}", "helpful" if n % 2 else "red_team",
               Conversation().human(f"question-{n}"), text, (1,), "end", 0, 0.0, SOURCE)
        for n, text in enumerate(texts)
    ]  # fmt: skip


def three(n: int = 4) -> dict[str, list[Answer]]:
    return {
        name: answers(name, [f"{word}-{k}" for k in range(n)])
        for name, word in (("start", "poor"), ("SL", "fair"), ("RL", "good"))
    }


def test_every_two_snapshots_meet_on_every_prompt():
    found = paired_answers(three())
    assert len(found) == 3 * 4
    assert {(c.snapshot_a, c.snapshot_b) for c in found} == {
        ("start", "SL"), ("start", "RL"), ("SL", "RL")
    }  # fmt: skip
    assert found[0].response_a == "poor-0" and found[0].response_b == "fair-0"


def test_snapshots_that_answered_other_prompts_are_refused():
    uneven = three()
    uneven["RL"] = uneven["RL"][:-1]
    with pytest.raises(ValueError, match=r"RL and start did not answer the same prompts \(.*p3\)"):
        paired_answers(uneven)
    with pytest.raises(ValueError, match="one snapshot alone"):
        paired_answers({"a": uneven["SL"]})


RANK = {"poor": 0, "fair": 1, "good": 2}


def by_rank(script, segment):
    """Prefers by the words' rank, and likes (A)."""
    first, second = (forced(script).split(f"({x}) [[[")[1].split("-")[0] for x in "AB")
    return (float(RANK[first] - RANK[second]) + 0.7, 0.0)


def test_a_feedback_model_is_asked_in_both_orders(tmp_path):
    engine = ScriptedEngine(by_rank)
    args = (
        paired_answers(three()), engine, PaperFormat(), CONSTITUTION, INSTRUCTIONS, 0, tmp_path, 0,
        "judge@1", 5, lambda done, total: None,
    )  # fmt: skip
    found = judge(*args)
    assert engine.runs == [10, 10, 4]
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    expected = (sigmoid(-1 + 0.7) + sigmoid(-1 - 0.7)) / 2
    assert found[0].prob_a == pytest.approx(expected, abs=1e-5)
    assert found[0].judge == "judge@1" and len(found[0].option_logprobs) == 2
    assert "Which is harmless?" in forced(engine.scripts[0])
    assert "Which is helpful?" in forced(engine.scripts[2])
    assert judge(*args) == found and engine.runs == [10, 10, 4]  # read, not asked again


def test_equal_responses_tie_unasked(tmp_path):
    same = {"a": answers("a", ["x", "y"]), "b": answers("b", ["x", "z"])}
    engine = ScriptedEngine(lambda script, segment: (1.0, 0.0))
    found = judge(
        paired_answers(same), engine, PaperFormat(), CONSTITUTION, INSTRUCTIONS, 0, tmp_path, 0,
        "judge", 9, lambda done, total: None,
    )  # fmt: skip
    assert len(engine.scripts) == 2
    assert [c.prob_a for c in found] == [0.5, 0.5]  # the second: a liking for (A) cancels


def test_a_preference_model_judges_by_its_scores(tmp_path):
    found = judge_by_scores(
        paired_answers(three()), lambda texts: np.array([RANK[t.split("-")[0]] for _, t in texts]),
        tmp_path, "pm", 100, lambda done, total: None,
    )  # fmt: skip
    assert found[0].prob_a == pytest.approx(1 / (1 + math.e), abs=1e-5)
    assert found[0].option_logprobs == ((0.0, 1.0),)


def synthetic(strength: dict[str, float], n: int, seed: int = 0) -> list[SnapshotComparison]:
    """n prompts on which every two snapshots meet, the winner drawn by Bradley and Terry."""
    rng, names, made = np.random.default_rng(seed), list(strength), []
    for k in range(n):
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                won = rng.uniform() < 1 / (1 + math.exp(strength[b] - strength[a]))
                prompt = Conversation().human(f"q{k}")
                made.append(
                    SnapshotComparison(
                        a, b, f"p{k}", "helpful", prompt, "x", "y", float(won), "people", ()
                    )
                )
    return made


def test_elo_of_comparisons_is_choixs_on_the_papers_scale():
    strength = {"start": -0.8, "SL": 0.0, "RL": 0.6}
    made = synthetic(strength, 400)
    found = standing(made, "helpful", "SL", hard=True, seed=0, resamples=100)
    names = list(strength)
    pairs = [
        (names.index(c.snapshot_a), names.index(c.snapshot_b))[:: 1 if c.prob_a == 1 else -1]
        for c in made
    ]
    theirs = choix.opt_pairwise(3, pairs, alpha=1e-9)
    for k, name in enumerate(names):
        expected = (theirs[k] - theirs[1]) * 400 / math.log(10)
        assert found.elo[name].value == pytest.approx(expected, abs=1.5)
        assert found.elo[name].low <= strength[name] * ELO_PER_SCORE <= found.elo[name].high
    assert found.elo["SL"].value == 0
    assert found.elo["RL"].n == 400


def test_the_matrix_holds_both_sides():
    found = standing(synthetic({"a": 0.0, "b": 1.0}, 50), "helpful", "a", True, 0, 20)
    assert found.win_rates["a"]["a"] is None
    assert found.win_rates["a"]["b"].value + found.win_rates["b"]["a"].value == pytest.approx(1)
    assert found.win_rates["b"]["a"].value > 0.5 and found.win_rates["b"]["a"].n == 50


def test_hard_and_soft_games_and_kinds_apart():
    (one, *_) = synthetic({"a": 0.0, "b": 0.0}, 1)
    unsure = dataclasses.replace(one, prob_a=0.7)
    assert [g.share_a for g in games([unsure], "helpful", hard=True)] == [1.0]
    assert [g.share_a for g in games([unsure], "helpful", hard=False)] == [0.7]
    even = dataclasses.replace(one, prob_a=0.5)
    assert [g.share_a for g in games([even], "helpful", hard=True)] == [0.5]
    assert games([unsure], "red_team", hard=True) == []
