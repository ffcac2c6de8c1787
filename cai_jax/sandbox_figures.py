"""The sandbox's figures, drawn from oracle scores: what is true where the paper asks people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from cai_jax.evaluation.intervals import Interval
from cai_jax.figures import lines, style
from cai_jax.figures.lines import Line, Panel
from cai_jax.sandbox_labels import CLEAR_CUT
from cai_jax.sandbox_study import HARM, KINDS, most, together, within
from cai_jax.snapshot_answers import titles

# Of the figure of snapshots, and of those along RL: kind of prompt, field, what an axis says.
MEASURES = (
    ("red_team", "harmfulness", "harmfulness (0-4)"),
    ("helpful", "helpfulness", "helpfulness"),
    ("red_team", "evasiveness", "evasiveness"),
    ("helpful", "over_refusal", "over-refusal"),
)
ASKINGS = ("one asking", "all askings")  # of sandbox_labels.OWN
ROW, PANEL, LABELS = 0.32, 2.6, 2.3  # inches: a row's height, a panel's width, and of row labels


def draw(groups: Mapping[str, Sequence[Mapping]], folder: Path) -> list[Path]:
    """Writes snapshots, categories, revisions, labels, calibration, rl and over_optimisation, each
    as PNG, SVG and CSV in `folder`; those for which all runs have records, the last where a run has
    a held-out preference model.

    Args:
      groups: name to its runs' `verdicts`.
    """
    joined = {name: together(runs) for name, runs in groups.items()}
    folder.mkdir(parents=True, exist_ok=True)
    counts = ", ".join(f"{name} {len(runs)}" for name, runs in groups.items())
    caption = (
        "Scores by the sandbox's oracle. Bars: 95% intervals over runs that differ by seed, over "
        f"prompts where there is one run. Runs: {counts}."
    )
    paths = []
    if all(found["answers"] for found in joined.values()):
        paths += _snapshots(joined, caption, folder / "snapshots")
        paths += _categories(joined, caption, folder / "categories")
    paths += _revisions(joined, caption, folder / "revisions")
    labels = {name: found["labels"] for name, found in joined.items()}
    if all("own pairs" in found and "clear-cut pairs" in found for found in labels.values()):
        paths += _label_accuracy(labels, caption, folder / "labels")
    if all("reliability" in found for found in labels.values()):
        paths += _calibration(labels, caption, folder / "calibration")
    if all(found["rl"] for found in joined.values()):
        paths += lines.draw(
            "Along RL", f"{caption} Responses to the prompts that RL trains on.",
            [_along(joined, *measure) for measure in MEASURES], folder / "rl", columns=2,
        )  # fmt: skip
    watched = {
        name: found["rl"]
        for name, found in joined.items()
        if found["rl"] and found["rl"][0]["held_out_score"] is not None
    }
    if watched:
        paths += _over_optimisation(watched, caption, folder / "over_optimisation")
    return paths


def _revisions(joined: Mapping[str, Mapping], caption: str, stem: Path) -> list[Path]:
    """As the paper's figures 5, 6 and 7: harm, and diversity, which it claims."""
    measures = {
        ("harmfulness (0-4)", HARM): {name: found["revisions"] for name, found in joined.items()}
    }
    if all("spread" in each for found in joined.values() for each in found["diversity"]):
        measures["spread (more is more diverse)", 1.0] = {
            name: [each["spread"] for each in found["diversity"]] for name, found in joined.items()
        }
    panels = [
        Panel(
            "", "number of revisions", label,
            [Line(name, range(len(each)), [within(y, top) for y in each])
             for name, each in by.items()],
        )
        for (label, top), by in measures.items()
    ]  # fmt: skip
    return lines.draw("Responses by number of revisions", caption, panels, stem)


def _label_accuracy(labels: Mapping[str, Mapping], caption: str, stem: Path) -> list[Path]:
    """As the paper's figure 4, which asks of pairs that people judged."""
    cells = {
        f"own pairs, {asked}": {
            name: found["own pairs"].get(asked) for name, found in labels.items()
        }
        for asked in ASKINGS
    }
    for mode in next(iter(labels.values()))["clear-cut pairs"]:
        cells[f"clear-cut pairs, {mode.replace('_', ' ')}"] = {
            name: found["clear-cut pairs"].get(mode, {}).get(CLEAR_CUT[0])
            for name, found in labels.items()
        }
    panels = {
        label: [(name, within(cell, 1.0)) for name, cell in by_group.items()]
        for label, by_group in cells.items()
        if all(by_group.values())
    }
    if not panels:
        return []
    title = "AI labels that are right, of 1; a coin's: 0.5"
    return _dots(title, caption, panels, [1.0] * len(panels), stem)


def _calibration(labels: Mapping[str, Mapping], caption: str, stem: Path) -> list[Path]:
    """As the paper's figure 9."""
    found = [
        Line(name, [b["prob"] for b in bins], [within(b["share"], 1.0) for b in bins])
        for name, each in labels.items()
        if (bins := [found for found in each["reliability"] if found])
    ]
    said = f"{caption} Labels of the run's own pairs; steeper than the diagonal: under-confident."
    panel = Panel(
        "", "probability that (A) is better", "share of which it is", found, diagonal=True
    )
    return lines.draw("Calibration of AI labels", said, [panel], stem)


def _along(joined: Mapping[str, Mapping], kind: str, field: str, label: str) -> Panel:
    found = [
        Line(
            name,
            [point["sequences"] for point in each["rl"]],
            [within(point[kind][field], most(field)) for point in each["rl"]],
        )
        for name, each in joined.items()
    ]
    return Panel(f"{KINDS[kind]} prompts", "RL sequences", label, found)


def _over_optimisation(watched: Mapping[str, Sequence[Mapping]], caption: str, stem: Path):
    """Both preference models' scores and the truth, all less their first, by sqrt(KL)."""
    panels = []
    for name, points in watched.items():
        x = [math.sqrt(max(0.0, point["kl"])) for point in points]
        series = {
            "PM that RL optimises": [p["score"] for p in points],
            "held-out PM": [p["held_out_score"] for p in points],
            "truth: harmlessness": [-p["red_team"]["harmfulness"]["value"] for p in points],
            "truth: helpfulness": [p["helpful"]["helpfulness"]["value"] for p in points],
        }
        found = [
            Line(title, x, [Interval(y - ys[0], y - ys[0], y - ys[0], 1) for y in ys])
            for title, ys in series.items()
        ]
        panels.append(Panel(name, "square root of KL, nats", "change since RL began", found))
    return lines.draw("Over-optimisation", caption, panels, stem)


def _snapshots(joined: Mapping[str, Mapping], caption: str, stem: Path) -> list[Path]:
    rows = [
        (f"{name}, {title}" if len(joined) > 1 else title, found["answers"][snapshot])
        for name, found in joined.items()
        for snapshot, title in titles(2).items()
        if snapshot in found["answers"]
    ]
    panels = {
        f"{label}, {KINDS[kind]}": [
            (name, within(each[kind][field], most(field))) for name, each in rows
        ]
        for kind, field, label in MEASURES
    }
    tops = [most(field) for _, field, _ in MEASURES]
    return _dots("What is true of the answers", caption, panels, tops, stem)


def _categories(joined: Mapping[str, Mapping], caption: str, stem: Path) -> list[Path]:
    """Of RL-CAI, a panel a group."""
    by_group = {name: found["by category"]["rl_cai"] for name, found in joined.items()}
    names = sorted(set.intersection(*map(set, by_group.values())))
    panels = {
        group: [(name, within(found[name], HARM)) for name in names]
        for group, found in by_group.items()
    }
    title = "Harmfulness of RL-CAI (0-4) by category"
    return _dots(title, caption, panels, [HARM] * len(panels), stem)


def _dots(
    title: str,
    caption: str,
    panels: Mapping[str, Sequence[tuple[str, Interval]]],
    tops: Sequence[float],
    stem: Path,
) -> list[Path]:
    """A panel for each measure from 0 to its top, a row for each name, the same in all panels."""
    names = [name for name, _ in next(iter(panels.values()))]
    height = ROW * len(names)
    width = LABELS + PANEL * len(panels) + 0.3
    figure, (_, bottom, _, inner) = style.new_figure(title, caption, width, height + 1.3)
    for number, (label, points) in enumerate(panels.items()):
        left = (LABELS + PANEL * number) / width
        axes = figure.add_axes((left, bottom, (PANEL - 0.25) / width, inner))
        found = [point for _, point in points]
        places = range(len(found))
        axes.errorbar(
            [point.value for point in found], places, xerr=style.reach(found), fmt="o",
            color=style.COLOURS[number % len(style.COLOURS)], capsize=3, markersize=6,
        )  # fmt: skip
        style.dress(axes, label, "")
        axes.set_yticks(places, names if not number else [""] * len(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(-0.03 * tops[number], 1.03 * tops[number])
    header = ["measure", "name", "value", "low", "high", "n"]
    table = [
        [label, name, point.value, point.low, point.high, point.n]
        for label, points in panels.items()
        for name, point in points
    ]
    return style.save(figure, stem, header, table)
