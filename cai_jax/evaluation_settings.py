"""The settings of `cai-jax evaluate --config=experiments/evaluations.py`, checked."""

from __future__ import annotations

import dataclasses

from cai_jax.datasets import cai_paper, capability
from cai_jax.evaluation import multiple_choice, over_refusal
from cai_jax.evaluation.multiple_choice import ASKED
from cai_jax.settings import ConfigError, EngineSize, MeshShape

READERS = {
    "hhh": cai_paper.hhh,
    "harmful_vs_ethical": cai_paper.harmful_vs_ethical,
    "harm_classes": cai_paper.harm_classes,
}
OVER_REFUSAL = "over_refusal"


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated and how; experiments/evaluations.py says what each key means."""

    seed: int
    system: str
    model: str
    run: str
    stage: str
    preference_model: str
    judge: str
    dtype: str
    constitution: str
    data: str
    xstest: str
    questions: str
    hhh_alignment: str
    evaluations: str
    modes: str
    limit: int
    against: str
    resamples: int
    engine: EngineSize
    mesh: MeshShape
    choices: multiple_choice.Settings
    responses: over_refusal.Settings

    def __post_init__(self):
        for field, known in (("evaluations", (*READERS, OVER_REFUSAL)), ("modes", ASKED)):
            for name in names(getattr(self, field)):
                if name not in known:
                    raise ValueError(
                        f"config.{field} has '{name}'; known are {', '.join(known)}, with commas "
                        "between them."
                    )
        least = {"limit": 0, "resamples": 1}
        groups = (self, self.choices, self.responses, self.engine)
        counts = "limit resamples few_shots chains chain_tokens shard_size response_tokens slots"
        for group in groups:
            for name in counts.split():
                value, floor = getattr(group, name, 1), least.get(name, int(name != "few_shots"))
                if value < floor:
                    raise ValueError(f"{name} is {value}; it must be at least {floor}.")
        if not names(self.evaluations) and not names(self.questions):
            raise ValueError(
                "config.evaluations is empty; name at least one, or files in config.questions."
            )
        sets = [capability.name_of(path) for path in names(self.questions)]
        for name in sets:
            if not name or sets.count(name) > 1 or name in (*READERS, OVER_REFUSAL):
                raise ValueError(
                    f"config.questions: results go by files' names, and '{name}' is empty, of two "
                    "files or an evaluation's; rename a file."
                )


def names(listed: str) -> list[str]:
    """The words of a setting such as "hhh,harm_classes"."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def given(settings: EvaluationSettings, field: str) -> str:
    """The value of a path setting that the chosen evaluations need."""
    if not getattr(settings, field):
        what = {
            "data": "a checkout of the paper's repository (evals/ and prompts/)",
            "xstest": "the file xstest_prompts.csv",
        }[field]
        raise ConfigError(
            f"config.{field} is empty; give {what}, or leave out of config.evaluations what "
            "needs it."
        )
    return getattr(settings, field)
