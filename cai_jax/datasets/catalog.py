"""All data sets that readers exist for, by name."""

from __future__ import annotations

from cai_jax.datasets import (
    cai_paper,
    capability,
    comparisons,
    hh_rlhf,
    hhh_alignment,
    prompts,
    red_team_attempts,
    xstest,
)
from cai_jax.datasets.card import Dataset

_MODULES = (
    hh_rlhf, red_team_attempts, cai_paper, hhh_alignment, xstest, comparisons, prompts, capability,
)  # fmt: skip


def datasets() -> dict[str, Dataset]:
    """Name -> data set; those of the user's own files last."""
    return {card.name: card for module in _MODULES for card in module.cards()}


def dataset(name: str) -> Dataset:
    """A data set by its name.

    Raises:
      ValueError: there is none; lists the names.
    """
    known = datasets()
    if name not in known:
        raise ValueError(f"no data set is called {name!r}; there are {', '.join(known)}.")
    return known[name]
