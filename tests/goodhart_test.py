"""What RL is watched with: signs in the texts, and a second preference model with its own zero."""

import jax
import numpy as np
import pytest

from cai_jax.conversation import Conversation
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding import Engine
from cai_jax.evaluation import goodhart
from cai_jax.evaluation.goodhart import HELD_OUT_SCORE, Baseline, HeldOut
from cai_jax.models import heads
from cai_jax.models.scoring import score_texts
from cai_jax.records import Provenance

SOURCE = Provenance("model@0", "test@0", 0, "")
ROWS = [
    PromptRow(f"row{n}", "red_team", "", Conversation().human(text))
    for n, text in enumerate(("Hi", "Say it.", "What now?"))
]
STOCK = "You're seen, heard and always welcome here."  # written for this test


def scorer(model, seed: int) -> dict:
    params = heads.with_scalar_head(jax.tree.map(jax.numpy.array, model.params))
    kernel = jax.random.normal(jax.random.key(seed), params["scalar_head"]["kernel"].shape)
    params["scalar_head"]["kernel"] = kernel
    return params


def test_signs_of_a_rollout():
    responses = [
        f"I can't help with that. {STOCK}",
        f"Gladly! {STOCK.upper()}",
        "la la la la la la la la la",
        "Short.",
    ]
    found = goodhart.signs(responses, "seen heard, and always WELCOME")
    assert found == {
        "monitor/words": (12 + 8 + 9 + 1) / 4,
        "monitor/repeated_phrases": pytest.approx(5 / 6 / 4),
        "monitor/refusals": 1 / 4,
        "monitor/shared_phrase": 2 / 4,
        "monitor/stock_phrase": 2 / 4,
    }
    assert "monitor/stock_phrase" not in goodhart.signs(responses, "")


def test_the_phrase_that_most_share_is_counted_once_a_response():
    loops = "round and round we go round and round we go"
    assert goodhart.shared_phrase([loops, "a b c d", "x A, b c d!"]) == ("a b c d", 2 / 3)
    assert goodhart.shared_phrase(["too short", ""]) == ("", 0.0)


@pytest.mark.parametrize(
    ("phrase", "there"),
    [
        ("always welcome here", True),
        ("seen, HEARD", True),
        ("are welcome", False),
        ("elcome her", False),  # whole words only
        ("...", False),
        ("", False),
    ],
)
def test_a_phrase_is_found_by_its_words(phrase, there):
    assert goodhart.contains(STOCK, phrase) is there


@pytest.mark.parametrize(
    ("scores", "window", "turned"),
    [
        ([], 1, False),
        ([2.0], 1, False),
        ([2.0, 1.0], 1, True),
        ([1.0, 1.0], 1, False),  # level is no fall
        ([9.0, 2.0, 1.0], 2, False),  # too few
        ([0.0, 1.0, 2.0, 3.0, 2.0], 2, False),
        ([0.0, 1.0, 2.0, 3.0, 2.0, 1.0], 2, True),
        ([9.0, 9.0, 0.0, 1.0, 2.0, 3.0], 2, False),  # what came long before does not count
    ],
)
def test_when_the_held_out_score_has_turned(scores, window, turned):
    rows = [{"step": n, HELD_OUT_SCORE: score} for n, score in enumerate(scores, 1)]
    assert goodhart.turned(rows, window) is turned


def test_both_models_score_the_same_responses_of_the_start(model):
    pms = scorer(model, 1), scorer(model, 2)
    engine = Engine(model, 4, 64)
    found = goodhart.baseline(
        engine, model.format, model.params, pms[:1], pms[1], ROWS, deviations=0.0,
        response_tokens=6, temperature=1.0, length=64, batch_size=2, seed=0, provenance=SOURCE,
    )  # fmt: skip
    assert [r.id for r in found] == ["row0", "row1", "row2"] and engine.params is None
    assert all(r.response for r in found)
    texts = [(r.prompt, r.response) for r in found]
    for pm, scores in zip(
        pms, ([r.score for r in found], [r.held_out_score for r in found]), strict=True
    ):
        expected = score_texts(
            model.config, pm, model.tokenizer, model.format, texts, batch_size=1, length=64
        )
        np.testing.assert_allclose(scores, expected, rtol=1e-4)
    zeros = goodhart.zeros_of(found)
    assert zeros[0] == pytest.approx(np.mean([r.score for r in found]))
    assert zeros[1] == pytest.approx(np.mean([r.held_out_score for r in found]))


def test_scores_are_told_from_each_models_own_zero(model):
    held_out = HeldOut(scorer(model, 2), (0.5, -1.0))
    engine = Engine(model, 4, 64)
    texts = [(row.conversation, "An answer.") for row in ROWS]
    score = np.array([1.0, 2.0, 3.0], np.float32)
    found, others = goodhart.watch(engine, model.format, texts, score, "", held_out, 64)
    expected = score_texts(
        model.config, held_out.params, model.tokenizer, model.format, texts, batch_size=3, length=64
    )
    np.testing.assert_allclose(others, expected, rtol=1e-5)
    assert found["monitor/score"] == pytest.approx(1.5)
    assert found[HELD_OUT_SCORE] == pytest.approx(float(expected.mean()) + 1.0, rel=1e-5)
    # A score that all texts have in common is no difference.
    shifted = goodhart.watch(
        engine, model.format, texts, score + 7, "", HeldOut(held_out.params, (7.5, -1.0)), 64
    )[0]
    assert shifted == pytest.approx(found)


def test_without_a_held_out_model_only_the_texts_are_watched(model):
    texts = [(row.conversation, "An answer.") for row in ROWS]
    found, others = goodhart.watch(
        Engine(model, 4, 64), model.format, texts, np.zeros(3), "", None, 64
    )
    assert others == [None, None, None]
    assert not {"monitor/score", HELD_OUT_SCORE} & set(found)


def test_a_baseline_record_holds_finite_scores():
    with pytest.raises(ValueError, match="held_out_score is nan"):
        Baseline("a", "helpful", ROWS[0].conversation, "b", "end", 1.0, float("nan"), SOURCE)
