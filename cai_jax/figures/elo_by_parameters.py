"""Figure 3: helpfulness and harmlessness Elo by the number of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai_jax.figures import lines, paper_values
from cai_jax.figures.folders import FigureError, Folder, caption, elo_snapshots, judged_by
from cai_jax.figures.lines import Line, Panel, PaperLine


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Raises:
      FigureError: a snapshot whose number of parameters was not noted.
    """
    found = elo_snapshots(folders, 3)
    for s in found:
        if s.parameters is None:
            raise FigureError(
                f"figure 3 needs the number of parameters of {s.run}, which its evaluation did not "
                "note; evaluate a new copy of the run."
            )
    paper = paper_values.of("fig3_elo_by_parameters")
    panels, n = [], []
    for column, (attribute, title) in enumerate(
        (("helpful", "helpfulness"), ("harmless", "harmlessness")), 1
    ):
        ours = []
        for snapshot in dict.fromkeys(s.snapshot for s in found):
            points = [
                (s.parameters, getattr(s, attribute))
                for s in sorted(found, key=lambda s: s.parameters)
                if s.snapshot == snapshot and getattr(s, attribute)
            ]
            if points:
                ours.append(Line(snapshot, [x for x, _ in points], [y for _, y in points]))
                n += [y.n for _, y in points]
        theirs = [
            PaperLine(name, [r[0] * 1e9 for r in rows], [r[column] for r in rows])
            for name, rows in paper.items()
        ]
        panels.append(Panel(title, "parameters", "Elo", ours, theirs, "log", level=0.0))
    text = caption(
        [f"Responses compared by {judged_by(folders)}; Elo by maximum likelihood, SL-CAI at 0."],
        folders,
        n,
        "judged by those named, not crowdworkers; no RLHF on people's harmlessness labels.",
        beside_the_paper=True,
    )
    return lines.draw("Elo by model size", text, panels, stem)
