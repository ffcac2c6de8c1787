"""Figure 12: telling harmful from ethical behaviour, and kinds of harm, by model size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai_jax.figures import lines
from cai_jax.figures.accuracy_lines import by_size, of_evaluation
from cai_jax.figures.folders import FigureError, Folder, caption, of_kind
from cai_jax.figures.lines import Panel

VERB = "evaluate --config=experiments/evaluations.py"
SETS = (
    ("harmful_vs_ethical", "harmful or ethical (254)", 1 / 2),
    ("harm_classes", "nine kinds of harm (287)", 1 / 9),
)


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Raises:
      FigureError: no model was evaluated on either set.
    """
    evaluated = of_kind(folders, "evaluation", 12, VERB)
    panels = [
        Panel(title, "parameters", "accuracy", ours, scale="log", level=chance)
        for name, title, chance in SETS
        if (ours := by_size(evaluated, of_evaluation(name)))
    ]
    if not panels:
        raise FigureError(
            "figure 12 needs 'harmful_vs_ethical' or 'harm_classes' among config.evaluations of "
            f"`cai-jax {VERB}`; no folder has them."
        )
    text = caption(
        ["Multiple-choice questions about whole conversations; dashed: chance."],
        evaluated,
        [point.n for panel in panels for line in panel.ours for point in line.y],
        "few-shots are drawn from the same file and not scored, chains of thought have none, since "
        "the paper prints neither; its values could not be read off.",
    )
    return lines.draw("Identifying harm", text, panels, stem)
