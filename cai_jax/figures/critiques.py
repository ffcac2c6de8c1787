"""Figure 7: revisions after a critique against direct revisions, by their PM score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai_jax.figures import lines
from cai_jax.figures.folders import FigureError, Folder, caption, of_kind
from cai_jax.figures.lines import Panel
from cai_jax.figures.pm_by_generator import line
from cai_jax.pipeline import read_records
from cai_jax.records import Revision

VERB = "run"


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Raises:
      FigureError: the runs are not of both kinds.
    """
    runs = of_kind(folders, "run", 7, VERB)
    direct = [is_direct(folder) for folder in runs]
    if len(set(direct)) < 2:
        missing = "with critiques" if direct[0] else "without critiques"
        raise FigureError(
            f"figure 7 compares runs with and without critiques, and --runs has none {missing}; "
            "a run without them has revise/revisions/*.jsonl whose every critique is empty."
        )
    names = [
        f"{'direct' if d else 'critiqued'}, {f.name}" for f, d in zip(runs, direct, strict=True)
    ]
    ours = [line(folder, name) for folder, name in zip(runs, names, strict=True)]
    text = caption(
        [
            "Mean score of red-team prompts' revisions by each run's own preference model, less "
            "that of its initial responses."
        ],
        runs,
        [point.n for each in ours for point in each.y],
        "the PM is the run's own, so lines of different runs have different scales; the paper's "
        "values could not be read off.",
    )
    panel = Panel("", "revisions", "PM score", ours, level=0.0)
    return lines.draw("Critiqued against direct revisions", text, [panel], stem)


def is_direct(folder: Folder) -> bool:
    """Whether a run revised without critiques."""
    records = read_records(folder.path / "revise" / "revisions", Revision)
    return not any(step.critique for record in records for step in record.steps)
