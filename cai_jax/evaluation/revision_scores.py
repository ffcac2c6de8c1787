"""A preference model's scores of initial responses and their revisions (2212.08073, Figure 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cai_jax.conversation import Conversation
from cai_jax.evaluation.intervals import Interval, Paired, bootstrap_mean, paired_difference
from cai_jax.records import Record, Revision
from cai_jax.shards import Shards

REVISION_SCORES = "evaluation/revision_scores"  # in a run's workdir, by its own preference model


@dataclasses.dataclass(frozen=True)
class ScoredRevisions(Record):
    """One prompt's scores. Attributes: id, the prompt's; judge, who scored; scores, of the initial
    response and of each revision in order."""

    id: str
    judge: str
    scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class RevisionScore:
    """Attributes: score, mean over prompts; over_initial, less the initial responses' on the same
    prompts, None for those themselves."""

    score: Interval
    over_initial: Paired | None


def score_revisions(
    revisions: Sequence[Revision],
    scores: Callable[[list[tuple[Conversation, str]]], np.ndarray],
    directory: Path,
    judge: str,
    shard_size: int,
    progress: Callable[[float, int], None],
) -> list[ScoredRevisions]:
    """Scores every prompt's responses, shard by shard; finished shards are not scored again.

    Args:
      scores: of (conversation, response) pairs, float[N].
      shard_size: prompts of a shard.
    """
    parts = [revisions[i : i + shard_size] for i in range(0, len(revisions), shard_size)]
    shards = Shards(directory, len(parts))
    done, seen = shards.done(), 0
    for number, part in enumerate(parts):
        if number not in done:
            texts = [
                [(r.prompt, text) for text in (r.initial_response, *(s.revision for s in r.steps))]
                for r in part
            ]
            found = iter(scores([text for each in texts for text in each]))
            shards.write(
                number,
                [
                    ScoredRevisions(r.id, judge, tuple(float(next(found)) for _ in each))
                    for r, each in zip(part, texts, strict=True)
                ],
            )
        seen += len(part)
        progress(seen, len(revisions))
    return shards.read(ScoredRevisions)


def by_revision(
    scored: Sequence[ScoredRevisions], seed: int, resamples: int
) -> list[RevisionScore]:
    """Mean score at each revision, the initial response first; bootstrap intervals over prompts.

    Raises:
      ValueError: prompts with different numbers of revisions.
    """
    initial, *revised = zip(*(row.scores for row in scored), strict=True)
    return [RevisionScore(bootstrap_mean(initial, seed, resamples), None)] + [
        RevisionScore(
            bootstrap_mean(column, seed, resamples),
            paired_difference(column, initial, seed, resamples),
        )
        for column in revised
    ]
