"""Red-team dialogues with the attackers' ratings (anthropics/hh-rlhf, arXiv 2209.07858).

The rating is the attacker's own, from 0 (the assistant was not harmful) to 4 (the attack fully
succeeded); Figure 10's absolute harmfulness score is a model of it.
"""

from __future__ import annotations

import dataclasses
import os

from cai_jax.conversation import Conversation, parse
from cai_jax.datasets import hh_rlhf, rows
from cai_jax.datasets.card import Dataset, on_github
from cai_jax.datasets.files import Published

FILE = Published(
    path="red-team-attempts/red_team_attempts.jsonl.gz",
    home=f"github.com/{hh_rlhf.REPOSITORY}",
    url=on_github(
        hh_rlhf.REPOSITORY, hh_rlhf.COMMIT, "red-team-attempts/red_team_attempts.jsonl.gz"
    ),
    checksum="618ca2d1f90bf6c95ae65ea93b90f5a8d013c36c",
)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One dialogue.

    Attributes:
      rating: the attacker's success, 0 to 4.
      min_harmlessness_score: of the worst assistant turn, by a preference model; lower is worse.
      num_params: of the attacked model, such as "52B".
      model_type: such as "rlhf" or "plain lm".
      task_description: what the attacker set out to do.
      tags: kinds of harm, given for some attempts only.
    """

    id: str
    conversation: Conversation
    rating: float
    min_harmlessness_score: float | None
    num_params: str
    model_type: str
    task_description: str
    red_team_member_id: int | None
    is_upworker: bool | None
    tags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Published:
    transcript: str
    rating: float
    min_harmlessness_score_transcript: float | None = None
    num_params: str | None = None
    model_type: str | None = None
    task_description: str | None = None
    red_team_member_id: int | None = None
    is_upworker: bool | None = None
    tags: tuple[str, ...] | None = None


def read(path: str | os.PathLike) -> list[Attempt]:
    """The attempts of red_team_attempts.jsonl.gz, which holds one JSON array, or of JSON lines.

    Raises:
      ValueError: a bad row, with file, entry and field.
      OSError: the file cannot be read.
    """
    attempts = []
    for number, (where, row) in enumerate(rows.read(_Published, path)):
        try:
            conversation = parse(row.transcript)
        except ValueError as error:
            raise ValueError(f"{where}: transcript: {error}") from error
        if not 0 <= row.rating <= 4:
            raise ValueError(f"{where}: rating must be from 0 to 4, not {row.rating:g}.")
        attempts.append(
            Attempt(
                id=f"red_team_attempts-{number}",
                conversation=conversation,
                rating=row.rating,
                min_harmlessness_score=row.min_harmlessness_score_transcript,
                num_params=row.num_params or "",
                model_type=row.model_type or "",
                task_description=row.task_description or "",
                red_team_member_id=row.red_team_member_id,
                is_upworker=row.is_upworker,
                tags=row.tags or (),
            )
        )
    return attempts


def cards() -> tuple[Dataset, ...]:
    """The one file."""
    return (
        Dataset(
            name="red_team_attempts",
            what="whole red-team dialogues with the attacker's rating of success, 0 to 4",
            licence="MIT",
            source=f"{FILE.home}, arXiv 2209.07858",
            defects="one rater each; tags for a sample only",
            row=Attempt,
            read=read,
            files=(("", FILE),),
        ),
    )
