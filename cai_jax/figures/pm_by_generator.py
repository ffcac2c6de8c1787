"""Figure 5: preference-model score by number of revisions, a line a generating model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai_jax.evaluation.intervals import Interval
from cai_jax.figures import lines, paper_values
from cai_jax.figures.folders import FigureError, Folder, caption, judged_by, of_kind
from cai_jax.figures.lines import Line, Panel, PaperLine

VERB = "run"


def scores_from_start(folder: Folder) -> list[Interval]:
    """Mean score at each revision less the mean score of the initial responses."""
    found = [Interval(**value) for value in folder.results["pm_by_revision"]]
    return _less(found, found[0].value)


def line(folder: Folder, name: str) -> Line:
    """A run's scores over the number of revisions."""
    return _line(name, scores_from_start(folder))


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Runs are scored each by its own preference model; in comparisons of snapshots one preference
    model scores all runs, and as in the paper one constant is taken off all of their scores.

    Raises:
      FigureError: runs beside comparisons, or comparisons that no preference model judged.
    """
    compared = [folder for folder in folders if folder.kind == "comparison"]
    used = compared or of_kind(folders, "run", 5, VERB)
    if compared and any(folder.kind == "run" for folder in folders):
        raise FigureError(
            "figure 5 takes runs, scored by their own preference models, or comparisons of "
            "snapshots, scored by one; name the one kind or the other in --runs."
        )
    paper = paper_values.of("fig5_pm_score_by_revision")
    revisions = paper.pop("revisions")
    theirs = [
        PaperLine(name.replace("_", " PM, "), revisions, values) for name, values in paper.items()
    ]
    if compared:
        ours = [each for folder in compared for each in _compared(folder, len(compared) > 1)]
        what = (
            f"Mean score of red-team prompts' revisions by {judged_by(compared)}, less that of "
            "the largest run's initial responses, the first's among equals."
        )
        departures = "the PM is the one named, not a 52B one of all the paper's human labels."
    else:
        ours = [line(folder, f"{folder.name}, {_size(folder.parameters)}") for folder in used]
        what = (
            "Mean score of red-team prompts' revisions by each run's own preference model, less "
            "that of its initial responses."
        )
        departures = (
            "the PM is the run's own, trained on AI labels of harmlessness and human helpfulness, "
            "not a 52B one of human labels, so lines of different runs have different scales."
        )
    n = [point.n for each in ours for point in each.y]
    text = caption([what], used, n, departures, beside_the_paper=True)
    panel = Panel("", "revisions", "PM score", ours, theirs, level=0.0)
    return lines.draw("PM score by number of revisions", text, [panel], stem)


def _compared(folder: Folder, named: bool) -> list[Line]:
    """A line for each run of a comparison; `named` puts the folder's name first.

    Raises:
      FigureError: no preference model judged.
    """
    if not folder.results.get("pm_by_revision"):
        raise FigureError(
            f"{folder.path} holds no scores of revisions; compare its runs anew with "
            "--config.preference_model=DIR of experiments/snapshots.py."
        )
    size = {of["run"]: of["parameters"] or 0 for of in folder.results["snapshots"].values()}
    scores = {
        run: [Interval(**each["score"]) for each in found]
        for run, found in folder.results["pm_by_revision"].items()
    }
    start = scores[max(scores, key=lambda run: size[run])][0].value
    return [
        _line(
            ", ".join([folder.name] * named + [run] + [_size(size[run])] * (size[run] > 0)),
            _less(found, start),
        )
        for run, found in scores.items()
    ]


def _line(name: str, scores: list[Interval]) -> Line:
    return Line(name, list(range(len(scores))), scores)


def _less(scores: Sequence[Interval], start: float) -> list[Interval]:
    return [Interval(p.value - start, p.low - start, p.high - start, p.n) for p in scores]


def _size(count: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g}{unit}"
    return str(count)
