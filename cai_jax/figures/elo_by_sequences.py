"""Figure 8: helpfulness and harmlessness Elo over the course of RL training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai_jax.figures import lines, paper_values
from cai_jax.figures.folders import Folder, caption, elo_snapshots, judged_by
from cai_jax.figures.lines import Line, Panel, PaperLine

TRAINED = ("SL-CAI", "RL-CAI")  # what RL starts from, and what it makes


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths."""
    found = [s for s in elo_snapshots(folders, 8) if s.snapshot in TRAINED]
    paper = paper_values.of("fig2_fig8_elo_by_rl_sequences_52b")
    panels, n = [], []
    for column, (attribute, title) in enumerate(
        (("helpful", "helpfulness"), ("harmless", "harmlessness")), 1
    ):
        ours = []
        for run in dict.fromkeys(s.run for s in found):
            points = sorted(
                ((s.sequences, getattr(s, attribute)) for s in found if s.run == run),
                key=lambda point: point[0],
            )
            points = [(x, y) for x, y in points if y is not None]
            if points:
                ours.append(Line(run, [x for x, _ in points], [y for _, y in points]))
                n += [y.n for _, y in points]
        theirs = [
            PaperLine(name, [r[0] * 1e6 for r in rows], [r[column] for r in rows])
            for name, rows in paper.items()
        ]
        panels.append(Panel(title, "RL sequences", "Elo", ours, theirs, "symlog", level=0.0))
    text = caption(
        [f"Responses compared by {judged_by(folders)}; Elo by maximum likelihood, SL-CAI at 0."],
        folders,
        n,
        "judged by those named, not crowdworkers; one snapshot a run after RL instead of four; the "
        "axis is logarithmic beyond the first sequences, since ours are far fewer.",
        beside_the_paper=True,
    )
    return lines.draw("Elo by RL sequences", text, panels, stem)
