"""Figure 10: absolute harmfulness from 0 to 4 over the course of RL training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai_jax.evaluation.harmfulness import FOLDER, Harmfulness
from cai_jax.evaluation.intervals import bootstrap_mean
from cai_jax.figures import lines, paper_values
from cai_jax.figures.folders import TITLES, FigureError, Folder, caption
from cai_jax.figures.lines import Line, Panel, PaperLine
from cai_jax.pipeline import read_records

# Sequences of the paper's snapshots are those of its figure 8.
SEQUENCES = "fig2_fig8_elo_by_rl_sequences_52b"


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Raises:
      FigureError: no folder holds harmfulness scores.
    """
    ours, raters, scored = [], set(), []
    for folder in folders:
        # RL starts from SL-CAI; what SL-CAI was made from stands on no line.
        records = [
            r
            for r in read_records(folder.path / FOLDER, Harmfulness)
            if r.snapshot != TITLES["initial"]
        ]
        raters |= {r.rater for r in records}
        scored += [folder] if records else []
        for temperature in sorted({r.temperature for r in records}, reverse=True):
            by_place: dict[int, dict[str, list[float]]] = {}
            for r in records:
                if r.temperature == temperature:
                    by_place.setdefault(r.sequences, {}).setdefault(r.id, []).append(r.score)
            places = sorted(by_place)
            means = [
                [sum(scores) / len(scores) for scores in by_place[place].values()]
                for place in places
            ]
            seed = folder.config.get("seed", 0)
            points = [bootstrap_mean(mean, seed) for mean in means]
            ours.append(Line(f"{folder.name}, T={temperature:g}", places, points))
    if not ours:
        raise FigureError(
            f"figure 10 is drawn from {FOLDER}/*.jsonl in a run's folder, one line a scored "
            "response with the fields id, snapshot, sequences, temperature, sample, score (0 to "
            "4) and rater; `cai-jax harmfulness --config=experiments/harmfulness.py` with the run "
            "in --config.runs writes it."
        )
    starts = paper_values.of(SEQUENCES)
    theirs = [
        PaperLine(name, [row[0] * 1e6 for row in starts[name]], values)
        for name, values in paper_values.of("fig10_absolute_harmfulness_t1").items()
    ]
    text = caption(
        [
            f"Mean score of whole conversations by {', '.join(sorted(raters))}, 0 to 4; bars over "
            "prompts, samples of one averaged."
        ],
        scored,
        [point.n for each in ours for point in each.y],
        "other prompts and fewer samples than the paper's 64 by 256; the paper's faint lines are "
        "at T=1; the axis is logarithmic beyond the first sequences.",
        beside_the_paper=True,
    )
    panel = Panel("", "RL sequences", "harmfulness (0-4)", ours, theirs, "symlog")
    return lines.draw("Absolute harmfulness by RL sequences", text, [panel], stem)
