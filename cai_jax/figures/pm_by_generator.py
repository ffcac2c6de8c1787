"""Figure 5: preference-model score by number of revisions, a line a generating model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai_jax.evaluation.intervals import Interval
from cai_jax.figures import lines, paper_values
from cai_jax.figures.folders import Folder, caption, of_kind
from cai_jax.figures.lines import Line, Panel, PaperLine

VERB = "run"


def scores_from_start(folder: Folder) -> list[Interval]:
    """Mean score at each revision less the mean score of the initial responses."""
    found = [Interval(**value) for value in folder.results["pm_by_revision"]]
    start = found[0].value
    return [Interval(p.value - start, p.low - start, p.high - start, p.n) for p in found]


def line(folder: Folder, name: str) -> Line:
    """A run's scores over the number of revisions."""
    scores = scores_from_start(folder)
    return Line(name, list(range(len(scores))), scores)


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths."""
    runs = of_kind(folders, "run", 5, VERB)
    paper = paper_values.of("fig5_pm_score_by_revision")
    revisions = paper.pop("revisions")
    theirs = [
        PaperLine(name.replace("_", " PM, "), revisions, values) for name, values in paper.items()
    ]
    ours = [line(folder, f"{folder.name}, {_size(folder)}") for folder in runs]
    text = caption(
        [
            "Mean score of red-team prompts' revisions by each run's own preference model, less "
            "that of its initial responses."
        ],
        runs,
        [point.n for each in ours for point in each.y],
        "the PM is the run's own, trained on AI labels of harmlessness and human helpfulness, not "
        "a 52B one of human labels, so lines of different runs have different scales.",
        beside_the_paper=True,
    )
    panel = Panel("", "revisions", "PM score", ours, theirs, level=0.0)
    return lines.draw("PM score by number of revisions", text, [panel], stem)


def _size(folder: Folder) -> str:
    count = folder.parameters
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g}{unit}"
    return str(count)
