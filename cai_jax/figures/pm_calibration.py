"""The companion paper's calibration figure: a preference model's accuracy by score difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cai_jax.evaluation.calibration import expected_calibration_error
from cai_jax.evaluation.multiple_choice import PREFERENCE_MODEL, Choice
from cai_jax.evaluation.scored_pairs import FOLDER, ScoredPair, accuracy_by_gap
from cai_jax.figures import lines
from cai_jax.figures.folders import FigureError, Folder, caption
from cai_jax.figures.lines import Line, Panel
from cai_jax.pipeline import read_records

BINS, LEAST = 10, 8  # bins of a line, and pairs of one where there are so many


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Raises:
      FigureError: no folder holds scores of pairs.
    """
    ours, errors, used = [], [], []
    for folder in folders:
        for source, pairs in _scored(folder):
            name = f"{folder.name}, {source}" if len(folders) > 1 else source
            better, worse = np.asarray(pairs, float).T
            bins = accuracy_by_gap(better, worse, min(BINS, max(1, len(pairs) // LEAST)))
            ours.append(Line(name, [b.gap for b in bins], [b.accuracy for b in bins]))
            prob = 1 / (1 + np.exp(-np.abs(better - worse)))
            error = expected_calibration_error(
                prob, (better > worse) + 0.5 * (better == worse), folder.config.get("seed", 0)
            )
            errors.append(f"{name} {error.value:.3f} [{error.low:.3f}, {error.high:.3f}]")
            used += [folder] if folder not in used else []
    if not ours:
        raise FigureError(
            f"the calibration figure is drawn from {FOLDER}/*.jsonl of a run, which `cai-jax run` "
            "and `cai-jax evaluate` write (delete the evaluation folder of a run from before they "
            "did, and evaluate again), or of `cai-jax human-preferences`, or from `cai-jax "
            "evaluate --config=experiments/evaluations.py` with --config.preference_model."
        )
    text = caption(
        [
            "How often the preference model gives the better response the higher score, by the "
            "difference of the scores, in bins of equal count; dashed: 1 / (1 + exp(-difference)), "
            "perfect calibration.",
            f"Expected calibration error: {'; '.join(errors)}.",
        ],
        used,
        [point.n for each in ours for point in each.y],
        _departures(used),
    )
    far = max(x for each in ours for x in each.x) or 1.0
    ideal = [(x, 1 / (1 + float(np.exp(-x)))) for x in np.linspace(0, far, 50).tolist()]
    panel = Panel("", "score difference", "accuracy", ours, ideal=ideal)
    return lines.draw("Calibration of the preference model", text, [panel], stem)


def _departures(folders: Sequence[Folder]) -> str:
    if all(folder.kind == "preferences" for folder in folders):
        return (
            "a smaller preference model than the companion paper's (arXiv 2204.05862), whose "
            "values could not be read off."
        )
    return (
        "the pairs are written or published ones, not the companion paper's (arXiv 2204.05862) "
        "held-out comparisons by crowdworkers; its values could not be read off."
    )


def _scored(folder: Folder) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """(source, (score of the better, of the worse) of each pair) of all that a folder holds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for pair in read_records(folder.path / FOLDER, ScoredPair):
        found.setdefault(pair.source, []).append((pair.better, pair.worse))
    for choice in read_records(folder.path / f"hhh-{PREFERENCE_MODEL}" / "choices", Choice):
        (scores,) = choice.option_logprobs
        found.setdefault("HHH comparisons", []).append(
            (scores[choice.correct], scores[1 - choice.correct])
        )
    yield from found.items()
