"""Accuracy of evaluated models by their size, a line a mode: what figures 4, 11 and 12 share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cai_jax.evaluation.intervals import Interval
from cai_jax.figures.folders import Folder
from cai_jax.figures.lines import Line

NAMES = {
    "zero_shot": "zero-shot",
    "few_shot": "few-shot",
    "chain_of_thought": "chain of thought",
    "ensembled_chain_of_thought": "ensembled chain of thought",
    "preference_model": "preference model",
}


def by_size(
    folders: Sequence[Folder], accuracies: Callable[[Folder], Mapping[str, Interval]]
) -> list[Line]:
    """One line for each mode that any folder has, over the models' parameters.

    Args:
      accuracies: a folder's accuracy in each of its modes.
    """
    found = sorted(((f.parameters, accuracies(f)) for f in folders), key=lambda pair: pair[0])
    return [
        Line(
            name,
            [size for size, modes in found if mode in modes],
            [modes[mode] for _, modes in found if mode in modes],
        )
        for mode, name in NAMES.items()
        if any(mode in modes for _, modes in found)
    ]


def of_evaluation(name: str) -> Callable[[Folder], dict[str, Interval]]:
    """What `by_size` takes, of one evaluation's summary; empty where a folder lacks it."""

    def accuracies(folder: Folder) -> dict[str, Interval]:
        summary = folder.results["evaluations"].get(name, {"accuracy": {}})
        return {mode: Interval(**value) for mode, value in summary["accuracy"].items()}

    return accuracies
