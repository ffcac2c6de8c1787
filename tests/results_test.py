"""A run's numbers from answers, scores and labels whose right results are known by hand."""

import dataclasses

import numpy as np
import pytest

from cai_jax.conversation import Conversation
from cai_jax.evaluation import results
from cai_jax.evaluation.snapshots import Answer
from cai_jax.records import Provenance

SOURCE = Provenance("model@0", "test@0", 0, "")
SCORES = {"initial": 0.0, "sl_cai": 1.0, "rl_cai": 2.0}
TEXTS = {
    "initial": "Here is how you do it.",
    "sl_cai": "I can't help with that.",
    "rl_cai": "I can't help with that, since somebody could be hurt. Ask a locksmith instead.",
}
PERPLEXITY = {s: (np.log([4.0, 4.0]), np.array([3, 5])) for s in results.SNAPSHOTS}


def answers(kinds=("red_team", "helpful"), prompts=6, samples=2):
    return [
        Answer(
            snapshot=snapshot, id=f"{kind}-{n}", kind=kind, prompt=Conversation().human("?"),
            response=TEXTS[snapshot] if kind == "red_team" else "A pear and an apple.",
            tokens=(1, 2), stop_reason="end", sample=sample, kl=SCORES[snapshot],
            provenance=SOURCE,
        )
        for snapshot in results.SNAPSHOTS
        for kind in kinds
        for n in range(prompts)
        for sample in range(samples)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def measures():
    rows = answers()
    scores = [SCORES[a.snapshot] + (0.01 * a.sample if a.kind == "helpful" else 0) for a in rows]
    found = results.compare_snapshots(rows, scores, PERPLEXITY, 0, 50)
    return {m.name: m for m in found}


def values(measure) -> list[float | None]:
    return [v and v.value for v in (measure.by_snapshot[s] for s in results.SNAPSHOTS)]


def test_scores_are_means_over_prompts(measures):
    assert values(measures["PM score, red-team"]) == [0, 1, 2]
    assert values(measures["PM score, helpful"]) == pytest.approx([0.005, 1.005, 2.005])
    interval = measures["PM score, red-team"].by_snapshot["initial"]
    assert interval.n == 6, "samples of one prompt are one item"


def test_whoever_scores_higher_wins(measures):
    by = measures["win rate over initial, red-team"].by_snapshot
    assert by["initial"] is None
    assert by["sl_cai"].value == by["rl_cai"].value == 1
    elo = measures["harmlessness Elo"].by_snapshot
    assert elo["sl_cai"].value == 0, "figure 8 starts at SL-CAI"
    assert elo["initial"].value < -100
    assert elo["rl_cai"].value > 100


def test_refusals_and_evasions(measures):
    assert values(measures["refusal rate, red-team"]) == [0, 1, 1]
    assert values(measures["evasive rate, red-team"]) == [0, 1, 0]
    assert values(measures["refusal rate, helpful"]) == [0, 0, 0]
    assert measures["refusal rate, red-team"].by_snapshot["initial"].n == 12


def test_lengths_and_drift(measures):
    words = [len(TEXTS[s].split()) for s in results.SNAPSHOTS]
    assert values(measures["response length in words, red-team"]) == words
    assert values(measures["KL from the start in nats, red-team"]) == [0, 1, 2]


def test_perplexity_weighs_tokens():
    rows = answers(prompts=2, samples=1)
    nats, tokens = np.log([2.0, 8.0]), np.array([30, 10])
    found = results.compare_snapshots(
        rows, [SCORES[a.snapshot] for a in rows],
        dict.fromkeys(results.SNAPSHOTS, (nats, tokens)), 0, 50,
    )  # fmt: skip
    (measure,) = (m for m in found if m.name.startswith("perplexity"))
    expected = np.exp((30 * np.log(2) + 10 * np.log(8)) / 40)
    assert values(measure) == pytest.approx([expected] * 3)


def test_equal_snapshots_tie():
    rows = answers(samples=1)
    found = {
        m.name: m for m in results.compare_snapshots(rows, [0.5] * len(rows), PERPLEXITY, 0, 50)
    }
    assert values(found["harmlessness Elo"]) == pytest.approx([0, 0, 0], abs=1e-6)
    assert values(found["win rate over initial, red-team"])[1:] == [0.5, 0.5]


def test_the_best_of_n_is_one_more_column():
    """It is no model, so it has no perplexity."""
    rows = answers(samples=1)
    rows += [
        dataclasses.replace(a, snapshot="best_of", kl=1.5) for a in rows if a.snapshot == "sl_cai"
    ]
    scores = [{**SCORES, "best_of": 1.5}[a.snapshot] for a in rows]
    found = {m.name: m for m in results.compare_snapshots(rows, scores, PERPLEXITY, 0, 50)}
    for name, measure in found.items():
        assert ("best_of" in measure.by_snapshot) == (not name.startswith("perplexity")), name
    assert found["PM score, red-team"].by_snapshot["best_of"].value == 1.5
    assert found["KL from the start in nats, helpful"].by_snapshot["best_of"].value == 1.5
    elo = found["harmlessness Elo"].by_snapshot
    assert elo["rl_cai"].value > elo["best_of"].value > elo["sl_cai"].value == 0


def test_every_value_has_an_interval_around_it(measures):
    for measure in measures.values():
        assert measure.style in ("share", "number", "whole")
        assert set(measure.by_snapshot) == set(results.SNAPSHOTS)
        for value in measure.by_snapshot.values():
            assert value is None or value.low <= value.value <= value.high


def test_the_quality_of_labels():
    # Four pairs; response_a is the better one of the first two. The labeler says (A) every time.
    better = [True, True, False, False]
    harmful = [True, False, True, False]
    first, swapped = [0.9, 0.9, 0.9, 0.9], [0.2, 0.2, 0.2, 0.2]
    prob = [0.55] * 4
    found = results.label_quality(better, harmful, prob, first, swapped, 0)
    assert found["accuracy, both orders averaged"].value == 0.5
    assert found["accuracy, one order as in the paper"].value == 0.5
    assert found["accuracy, harmful pairs"].value == 0.5
    assert found["accuracy, harmful pairs"].n == 2
    assert found["choice stays when the order is swapped"].value == 0
    assert found["says (A)"].value == 1
    assert found["expected calibration error"].value == pytest.approx(0.05)

    sure = results.label_quality(better, harmful, [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], 0)
    assert sure["accuracy, both orders averaged"].value == 1
    assert sure["choice stays when the order is swapped"].value == 1
    assert sure["choice stays when the order is swapped"].high == 1
    assert sure["says (A)"].value == 0.5
    assert sure["label entropy in bits"].value == 0
    assert sure["expected calibration error"].value == 0


def test_a_kind_without_pairs_has_no_line():
    found = results.label_quality([True], [True], [0.8], [0.8], [0.8], 0)
    assert "accuracy, harmful pairs" in found
    assert "accuracy, benign pairs" not in found
