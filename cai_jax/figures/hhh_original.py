"""Figure 11: accuracy on the original 221 of the HHH comparisons (Askell et al., 2021)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cai_jax.evaluation.accuracy import accuracies
from cai_jax.evaluation.intervals import Interval
from cai_jax.evaluation.multiple_choice import Choice
from cai_jax.figures import lines
from cai_jax.figures.accuracy_lines import by_size
from cai_jax.figures.folders import FigureError, Folder, caption, of_kind
from cai_jax.figures.lines import Panel
from cai_jax.pipeline import read_records

VERB = "evaluate --config=experiments/evaluations.py"
FILE = "hhh_original.json"  # ids of the original comparisons among the 438


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Raises:
      FigureError: a folder does not say which comparisons are the original ones.
    """
    evaluated = of_kind(folders, "evaluation", 11, VERB)
    ours = by_size(evaluated, _original)
    text = caption(
        ["Those of the 438 comparisons that were published before, on BIG-bench; dashed: chance."],
        evaluated,
        [point.n for line in ours for point in line.y],
        "the few-shots are those of the constitution in use; the comparisons are matched by their "
        "texts; the paper's values could not be read off beyond 'well over 90%' at its largest.",
    )
    panel = Panel("", "parameters", "accuracy", ours, scale="log", level=0.5)
    return lines.draw("Accuracy on the original HHH comparisons", text, [panel], stem)


def _original(folder: Folder) -> dict[str, Interval]:
    file = folder.path / FILE
    if not file.exists():
        raise FigureError(
            f"figure 11 needs {file}, the ids of the original comparisons, since the 438 do not "
            f"mark them; `cai-jax {VERB} --config.hhh_alignment=DIR` leaves it, with DIR the "
            "folder of BIG-bench's hhh_alignment."
        )
    wanted = set(json.loads(file.read_text("utf-8")))
    stages = sorted(folder.path.glob("hhh-*/choices"))
    return accuracies([c for s in stages for c in read_records(s, Choice) if c.id in wanted])
