"""Figure 6: does the number of critique principles matter, for the score and for diversity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai_jax.evaluation.intervals import Interval
from cai_jax.figures import lines
from cai_jax.figures.folders import FigureError, Folder, caption, of_kind
from cai_jax.figures.lines import Line, Panel
from cai_jax.figures.pm_by_generator import scores_from_start

VERB = "run"


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Raises:
      FigureError: all runs drew from one number of principles, or their revisions are of different
        numbers of prompts, or of too few to compare with one another.
    """
    runs = sorted(of_kind(folders, "run", 6, VERB), key=lambda f: f.revisions["principles"])
    x = [folder.revisions["principles"] for folder in runs]
    if x[0] == x[-1]:
        raise FigureError(
            "figure 6 needs runs whose revisions drew on different numbers of principles, and all "
            f"drew on {x[0]}; make others by `cai-jax run --config.revise.principles=N`."
        )
    sizes = sorted({folder.revisions["prompts"] for folder in runs})
    if len(sizes) > 1:
        raise FigureError(
            f"figure 6 compares diversity, which depends on the number of texts, and the runs have "
            f"revisions of {' and '.join(map(str, sizes))} prompts; revise the same prompts in all."
        )
    if few := [folder for folder in runs if "distinct_2" not in folder.revisions["diversity"][-1]]:
        raise FigureError(
            f"{few[0].path} has too few last revisions of two words or more for a measure of "
            "diversity; revise more prompts."
        )

    def diversity(name: str) -> list[Interval]:
        return [Interval(**folder.revisions["diversity"][-1][name]) for folder in runs]

    last = [scores_from_start(folder)[-1] for folder in runs]
    text = caption(
        [
            "Left: mean PM score of the last revision less that of the initial response. Middle "
            "and right: how the last revisions differ. Self-BLEU: mean BLEU-4 of each "
            "against all others. Distinct word pairs: different ones over all. Spread: mean cosine "
            "distance of two revisions' character 4-grams. Bars of diversity: jackknife.",
        ],
        runs,
        [point.n for point in (*last, *diversity("spread"))],
        "scored by each run's own PM; the diversity measures are ours, the paper gives none; its "
        "values could not be read off.",
    )
    panels = [
        Panel("PM score", "principles", "gain over the initial response",
              [Line("score", x, last)], level=0.0),
        Panel("less is more diverse", "principles", "self-BLEU",
              [Line("self-BLEU", x, diversity("self_bleu"))]),
        Panel("more is more diverse", "principles", "share, or distance",
              [Line("distinct word pairs", x, diversity("distinct_2")),
               Line("spread", x, diversity("spread"))]),
    ]  # fmt: skip
    return lines.draw("Number of principles", text, panels, stem)
