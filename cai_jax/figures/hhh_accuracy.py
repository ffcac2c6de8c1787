"""Figure 4: accuracy on the 438 HHH comparisons by model size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai_jax.figures import lines, paper_values
from cai_jax.figures.accuracy_lines import by_size, of_evaluation
from cai_jax.figures.folders import FigureError, Folder, caption, of_kind
from cai_jax.figures.lines import Panel, PaperLine

VERB = "evaluate --config=experiments/evaluations.py"


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Raises:
      FigureError: no model was evaluated on the 438.
    """
    evaluated = of_kind(folders, "evaluation", 4, VERB)
    ours = by_size(evaluated, of_evaluation("hhh"))
    if not ours:
        raise FigureError(
            f"figure 4 needs 'hhh' among config.evaluations of `cai-jax {VERB}`; no folder has it."
        )
    paper = paper_values.of("fig4_hhh_accuracy_by_parameters")
    sizes = [billions * 1e9 for billions in paper.pop("parameters_billions")]
    theirs = [PaperLine(name, sizes, values) for name, values in paper.items()]
    panel = Panel("", "parameters", "accuracy", ours, theirs, "log", level=0.5)
    text = caption(
        [
            "Which of two responses is more helpful, honest and harmless; dashed: chance.",
            "Comparisons that are worked examples of the constitution are not scored.",
        ],
        evaluated,
        [point.n for line in ours for point in line.y],
        "the few-shots are those of the constitution in use; chains of thought are asked of the "
        "same model; ours are instruct models where the model is one.",
        beside_the_paper=True,
    )
    return lines.draw("HHH accuracy by model size", text, [panel], stem)
