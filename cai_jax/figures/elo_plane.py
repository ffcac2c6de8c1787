"""Figure 2: harmlessness Elo against helpfulness Elo, a line a run in the order of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.lines import Line2D

from cai_jax.figures import paper_values, style
from cai_jax.figures.folders import (
    EloSnapshot,
    FigureError,
    Folder,
    caption,
    elo_snapshots,
    judged_by,
)

WIDTH, HEIGHT, LEGEND_WIDTH = 8.4, 5.4, 2.6  # inches


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Raises:
      FigureError: no snapshot was compared on both kinds of prompt.
    """
    points = [s for s in elo_snapshots(folders, 2) if s.helpful and s.harmless]
    if not points:
        raise FigureError(
            "figure 2 needs snapshots compared on helpful and on red-team prompts; hold out some "
            "of both."
        )
    text = caption(
        [
            f"Responses compared by {judged_by(folders)}; Elo by maximum likelihood, SL-CAI at 0.",
            "Lines join each run's start, SL-CAI and RL-CAI.",
        ],
        folders,
        [p.n for s in points for p in (s.helpful, s.harmless)],
        "judged by those named, not crowdworkers; one RL snapshot a run instead of four.",
        beside_the_paper=True,
    )
    figure, (left, bottom, width, height) = style.new_figure(
        "Helpfulness against harmlessness", text, WIDTH, HEIGHT
    )
    axes = figure.add_axes((left, bottom, width - LEGEND_WIDTH / WIDTH, height))
    axes.axhline(0, color="#CFCFCF", linewidth=1, zorder=1)
    axes.axvline(0, color="#CFCFCF", linewidth=1, zorder=1)
    rows = [
        [name, f"snapshot {n}", "paper", x, "", "", "", y, "", "", ""]
        for name, x, y in _paper()
        for n, (x, y) in enumerate(zip(x, y, strict=True))
    ]
    handles = []
    for k, (name, x, y) in enumerate(_paper()):
        look = {
            "color": style.COLOURS[-1 - k], "alpha": 0.35, "linewidth": 1.2, "markersize": 4,
            "marker": style.MARKERS[-1 - k], "linestyle": (0, (2, 1.5)),
        }  # fmt: skip
        axes.plot(x, y, zorder=1, **look)
        handles.append(Line2D([], [], label=f"paper: {name}", **look))
    for k, run in enumerate(dict.fromkeys(s.run for s in points)):
        mine = [s for s in points if s.run == run]
        colour = style.COLOURS[k % len(style.COLOURS)]
        _draw_run(axes, mine, colour)
        handles.insert(k, Line2D([], [], color=colour, marker="o", linewidth=2, label=run))
        rows += [
            [run, s.snapshot, "ours", s.helpful.value, s.helpful.low, s.helpful.high, s.helpful.n,
             s.harmless.value, s.harmless.low, s.harmless.high, s.harmless.n]
            for s in mine
        ]  # fmt: skip
    axes.margins(0.1)
    style.dress(axes, "helpfulness Elo", "harmlessness Elo")
    figure.legend(
        handles=handles, loc="upper left", frameon=False, fontsize=8.5, labelcolor=style.INK,
        bbox_to_anchor=(1 - (LEGEND_WIDTH - 0.1) / WIDTH, bottom + height),
    )  # fmt: skip
    header = ["run", "snapshot", "source"]
    header += [f"{axis}{end}" for axis in ("helpful", "harmless")
               for end in ("_elo", "_low", "_high", "_n")]  # fmt: skip
    return style.save(figure, stem, header, rows)


def _draw_run(axes, snapshots: Sequence[EloSnapshot], colour: str) -> None:
    helpful, harmless = [s.helpful for s in snapshots], [s.harmless for s in snapshots]
    x, y = [p.value for p in helpful], [p.value for p in harmless]
    axes.errorbar(
        x, y, xerr=style.reach(helpful), yerr=style.reach(harmless), fmt="none", ecolor=colour,
        elinewidth=1, capsize=2.5, alpha=0.6, zorder=3,
    )  # fmt: skip
    axes.plot(x, y, color=colour, marker="o", markersize=7, linewidth=2, zorder=4)
    for s in snapshots:
        axes.annotate(
            s.snapshot, (s.helpful.value, s.harmless.value), xytext=(5, 5), size=8,
            textcoords="offset points", color=style.QUIET, zorder=5,
        )  # fmt: skip


def _paper() -> list[tuple[str, list[float], list[float]]]:
    """Name, helpfulness Elos, harmlessness Elos of each of the paper's 52B runs."""
    found = paper_values.of("fig2_fig8_elo_by_rl_sequences_52b")
    return [(name, [r[1] for r in rows], [r[2] for r in rows]) for name, rows in found.items()]
