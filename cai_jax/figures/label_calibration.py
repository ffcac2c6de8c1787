"""Figure 9: are the labels' probabilities right, on the 438 HHH comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai_jax.evaluation.accuracy import first_option_labels
from cai_jax.evaluation.calibration import expected_calibration_error, reliability
from cai_jax.evaluation.multiple_choice import Choice
from cai_jax.figures import lines
from cai_jax.figures.accuracy_lines import NAMES
from cai_jax.figures.folders import FigureError, Folder, caption, of_kind
from cai_jax.figures.lines import Line, Panel
from cai_jax.pipeline import read_records

VERB = "evaluate --config=experiments/evaluations.py"


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Raises:
      FigureError: no folder holds answers to the 438.
    """
    evaluated = of_kind(folders, "evaluation", 9, VERB)
    ours, errors = [], []
    for folder in evaluated:
        for stage in sorted(folder.path.glob("hhh-*")):
            records = read_records(stage / "choices", Choice)
            probs, right = first_option_labels(records)
            if not probs:
                continue
            name = NAMES[records[0].mode]
            name = f"{folder.name}, {name}" if len(evaluated) > 1 else name
            bins = reliability(probs, right)
            ours.append(Line(name, [b.mean_prob for b in bins], [b.share for b in bins]))
            error = expected_calibration_error(probs, right, folder.config["seed"], bins=10)
            errors.append(f"{name} {error.value:.3f} [{error.low:.3f}, {error.high:.3f}]")
    if not ours:
        raise FigureError(
            f"figure 9 needs 'hhh' among config.evaluations of `cai-jax {VERB}`; no folder has it."
        )
    text = caption(
        [
            "How often (A) is right where it has this probability, in ten bins of equal width; "
            "dashed: perfect calibration. Probabilities are averaged over chains of thought.",
            f"Expected calibration error: {'; '.join(errors)}.",
        ],
        evaluated,
        [point.n for each in ours for point in each.y],
        "the labels are not clamped; the paper's values could not be read off.",
    )
    panel = Panel("", "probability of (A)", "share right", ours, diagonal=True)
    return lines.draw("Calibration of labels on HHH", text, [panel], stem)
