"""The settings of `cai-jax harmfulness --config=experiments/harmfulness.py`, checked."""

from __future__ import annotations

import dataclasses

from cai_jax.settings import EngineSize, MeshShape, check_compute, check_machine
from cai_jax.stages import absolute_harmfulness


@dataclasses.dataclass(frozen=True)
class HarmfulnessSettings:
    """The scorer and whom it scores; experiments/harmfulness.py says what each key means."""

    seed: int
    attempts: str
    limit: int
    test_share: float
    model: str
    dtype: str
    scorer: absolute_harmfulness.Settings
    runs: str
    prompts: str
    prompts_limit: int
    samples: int
    response_tokens: int
    temperature: float
    resamples: int
    engine: EngineSize
    mesh: MeshShape

    def __post_init__(self):
        if not self.attempts:
            raise ValueError(
                "config.attempts is empty; give red_team_attempts.jsonl.gz of hh-rlhf, or a file "
                "of the same rows (`cai-jax data red_team_attempts`)."
            )
        counts = {"samples": self.samples, "response_tokens": self.response_tokens,
                  "resamples": self.resamples, "engine.slots": self.engine.slots,
                  "engine.max_length": self.engine.max_length}  # fmt: skip
        scorer = ("epochs", "batch_size", "microbatches", "length", "save_every")
        counts |= {f"scorer.{name}": getattr(self.scorer, name) for name in scorer}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"config.{name} is {value}; it must be at least 1.")
        if not 0 < self.test_share < 1 or self.temperature <= 0:
            raise ValueError("test_share must lie between 0 and 1, and temperature be above 0.")
        if self.limit < 0 or self.prompts_limit < 0:
            raise ValueError("limit and prompts_limit must be at least 0.")
        check_compute("scorer", self.scorer)
        check_machine(self)
