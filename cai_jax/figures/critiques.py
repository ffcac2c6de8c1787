"""Figure 7: revisions after a critique against direct revisions, by their PM score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai_jax.evaluation.intervals import Interval
from cai_jax.figures import lines
from cai_jax.figures.folders import FigureError, Folder, caption, of_kind
from cai_jax.figures.lines import Line, Panel
from cai_jax.figures.pm_by_generator import line

VERB = "run"


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Raises:
      FigureError: the runs are not of both kinds.
    """
    runs = of_kind(folders, "run", 7, VERB)
    direct = [not folder.revisions["critique"] for folder in runs]
    if len(set(direct)) < 2:
        missing = "with critiques" if direct[0] else "without critiques"
        raise FigureError(
            f"figure 7 compares runs with and without critiques, and --runs has none {missing}; "
            f"make one by `cai-jax run --config.revise.critique={direct[0]}`."
        )
    names = [
        f"{'direct' if d else 'critiqued'}, {f.name}" for f, d in zip(runs, direct, strict=True)
    ]
    ours = [line(folder, name) for folder, name in zip(runs, names, strict=True)]
    text = caption(
        [
            "Left: mean score of red-team prompts' revisions by each run's own preference model, "
            "less that of its initial responses. Right: mean BLEU-4 of each text against all "
            "others of the same revision (less is more diverse; bars: jackknife)."
        ],
        runs,
        [point.n for each in ours for point in each.y],
        "the PM is the run's own, so lines of different runs have different scales; the paper "
        "does not print its prompt for direct revisions, and ours leaves out each critique and "
        "its request; its values could not be read off.",
    )
    panels = [
        Panel("PM score", "revisions", "gain over the initial response", ours, level=0.0),
        Panel("diversity", "revisions", "self-BLEU",
              [_self_bleu(f, name) for f, name in zip(runs, names, strict=True)]),
    ]  # fmt: skip
    return lines.draw("Critiqued against direct revisions", text, panels, stem)


def _self_bleu(folder: Folder, name: str) -> Line:
    """Over the number of revisions, where there were texts enough to compare."""
    found = {
        number: Interval(**measures["self_bleu"])
        for number, measures in enumerate(folder.revisions["diversity"])
        if measures
    }
    return Line(name, list(found), list(found.values()))
