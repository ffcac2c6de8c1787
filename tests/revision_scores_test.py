"""Scores by number of revisions: what is scored, what a restart scores, and the paired leads."""

import numpy as np
import pytest

from cai_jax.conversation import Conversation
from cai_jax.evaluation.revision_scores import ScoredRevisions, by_revision, score_revisions
from cai_jax.records import Provenance, Revision, RevisionStep

SOURCE = Provenance("model@0", "test@0", 0, "")
REVISIONS = [
    Revision(f"p{n}", "red_team", Conversation().human(f"asked {n}"), "a" * n,
             tuple(RevisionStep("p", "", "b" * (n + k), "end", "") for k in (1, 3)), SOURCE)
    for n in range(5)
]  # fmt: skip


def test_each_response_is_scored_after_its_own_prompt(tmp_path):
    asked = []

    def scores(texts):
        asked.extend((prompt.turns[0].text, text) for prompt, text in texts)
        return np.array([float(len(text)) for _, text in texts])

    seen = []
    go = REVISIONS, scores, tmp_path, "judge", 2, lambda done, total: seen.append((done, total))
    found = score_revisions(*go)
    assert [(r.id, r.judge, r.scores) for r in found] == [
        (f"p{n}", "judge", (float(n), n + 1.0, n + 3.0)) for n in range(5)
    ]
    assert asked[3:6] == [("asked 1", "a"), ("asked 1", "bb"), ("asked 1", "bbbb")]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    asked.clear()
    (tmp_path / "00001-of-00003.jsonl").unlink()
    assert score_revisions(*go) == found
    assert [prompt for prompt, _ in asked] == ["asked 2"] * 3 + ["asked 3"] * 3


def test_means_and_leads_over_the_initial_responses():
    """Prompts differ far more than revisions do, so only the paired lead is told from 0."""
    start = np.linspace(-10, 10, 40)
    lead = np.linspace(0.5, 1.5, 40)
    both = zip(start, start + lead, strict=True)
    rows = [ScoredRevisions(f"p{n}", "j", scores) for n, scores in enumerate(both)]
    first, second = by_revision(rows, seed=0, resamples=500)
    assert first.over_initial is None and first.score.value == pytest.approx(0, abs=1e-5)
    assert second.score.low < 0 < second.score.high
    difference = second.over_initial.difference
    assert difference.value == pytest.approx(1, abs=1e-5) and difference.low > 0.8
    assert difference.n == 40 and second.over_initial.p < 0.01


def test_prompts_revised_unequally_often_are_refused():
    rows = [ScoredRevisions("a", "j", (0.0, 1.0)), ScoredRevisions("b", "j", (0.0,))]
    with pytest.raises(ValueError):
        by_revision(rows, seed=0, resamples=5)
