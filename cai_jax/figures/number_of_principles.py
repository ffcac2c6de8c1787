"""Figure 6: does the number of critique principles matter, for the score and for diversity."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cai_jax.evaluation.intervals import bootstrap_mean
from cai_jax.figures import lines
from cai_jax.figures.folders import FigureError, Folder, caption, of_kind
from cai_jax.figures.lines import Line, Panel
from cai_jax.figures.pm_by_generator import scores_from_start
from cai_jax.pipeline import read_records
from cai_jax.records import Revision

VERB = "run"


def draw(folders: Sequence[Folder], stem: Path) -> list[Path]:
    """Writes STEM.png, .svg and .csv, and returns their paths.

    Raises:
      FigureError: all runs drew from one number of principles.
    """
    runs = of_kind(folders, "run", 6, VERB)
    records = [read_records(f.path / "revise" / "revisions", Revision) for f in runs]
    counts = [len({step.principle for r in found for step in r.steps}) for found in records]
    if len(set(counts)) < 2:
        raise FigureError(
            "figure 6 needs runs whose revisions drew on different numbers of principles, and all "
            f"drew on {counts[0]}; make runs with constitutions of other lengths by `cai-jax run "
            "--config.constitution=FILE`."
        )
    order = sorted(range(len(runs)), key=lambda k: counts[k])
    size = min(map(len, records))
    x = [counts[k] for k in order]
    last = [scores_from_start(runs[k])[-1] for k in order]
    variety = [
        bootstrap_mean(own_word_pairs(records[k][:size]), runs[k].config["seed"]) for k in order
    ]
    text = caption(
        [
            "Left: mean PM score of the last revision less that of the initial response. Right: "
            "share of a last revision's word pairs that no other one has (1 less self-BLEU's "
            f"2-gram precision), over {size} revisions of every run.",
        ],
        runs,
        [point.n for point in last],
        "scored by each run's own PM; the diversity measure is ours, the paper gives none; its "
        "values could not be read off.",
    )
    panels = [
        Panel("PM score", "principles", "gain over the initial response",
              [Line("score", x, last)], level=0.0),
        Panel("diversity", "principles", "own word pairs", [Line("diversity", x, variety)]),
    ]  # fmt: skip
    return lines.draw("Number of principles", text, panels, stem)


def own_word_pairs(revisions: Sequence[Revision]) -> list[float]:
    """Of each last revision, the share of its word pairs that no other last revision has.

    It is 1 less the 2-gram precision of self-BLEU (Y. Zhu et al., "Texygen", 2018). It falls with
    the number of revisions, so compare it between equal numbers of them. A revision of fewer than
    two words has none of its own.
    """
    pairs = []
    for revision in revisions:
        words = revision.steps[-1].revision.lower().split()
        pairs.append(list(itertools.pairwise(words)))
    holders = Counter(pair for found in pairs for pair in set(found))
    return [
        sum(holders[pair] == 1 for pair in found) / len(found) if found else 0.0 for found in pairs
    ]
