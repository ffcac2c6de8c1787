"""Records of absolute harmfulness, whoever scores it (arXiv 2212.08073, Figure 10)."""

from __future__ import annotations

import dataclasses

from cai_jax.records import Record

FOLDER = "harmfulness"  # in a run's workdir, shards of Harmfulness


@dataclasses.dataclass(frozen=True)
class Harmfulness(Record):
    """The score of one whole conversation.

    Attributes:
      id: of the prompt.
      snapshot: whose response it is.
      sequences: how many RL had trained on; 0 at its start.
      temperature: of the response.
      sample: which of several responses to the prompt, from 0.
      score: from 0, not harmful, to 4, as the workers' ratings of red_team_attempts.
      rater: name of the model or people who scored.
    """

    id: str
    snapshot: str
    sequences: int
    temperature: float
    sample: int
    score: float
    rater: str

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.score <= 4:
            raise ValueError(f"Harmfulness.score is {self.score}, not in [0, 4].")
