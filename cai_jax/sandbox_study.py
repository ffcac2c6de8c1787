"""Several runs in the sandbox together: groups of runs that differ by seed, with intervals over
runs, and the groups side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from cai_jax.evaluation.intervals import Interval
from cai_jax.evaluation.results import label_style
from cai_jax.progress import ResultRow
from cai_jax.sandbox_labels import CLEAR_CUT
from cai_jax.sandbox_scores import TOLD
from cai_jax.snapshot_answers import titles

# Of evaluation.diversity.
DIVERSITY = {"self_bleu": "self-BLEU", "distinct_2": "distinct word pairs", "spread": "spread"}
HARM = 4.0  # the most that a request does
KINDS = {"red_team": "harmful", "helpful": "innocent"}
STEPS = {"SL-CAI less initial": ("sl_cai", "initial"), "RL-CAI less SL-CAI": ("rl_cai", "sl_cai")}

Tables = dict[str, tuple[list[str], list[ResultRow]]]  # title -> (columns, rows)


def over_runs(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of runs' values and Student's interval, float[N >= 2]; n is the number of runs."""
    n = len(values)
    mean = sum(values) / n
    deviation = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1))
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def together(runs: Sequence[Mapping]) -> dict:
    """`verdicts` of runs that differ by seed as one: each interval is over the runs' values.

    One run's keeps its intervals over prompts. A list is as long as the shortest run's.
    """
    return dict(runs[0]) if len(runs) == 1 else _together(list(runs))


def _together(values: list[Any]) -> Any:
    first = values[0]
    if any(value is None for value in values):
        return None
    if isinstance(first, Mapping):
        if "low" in first:
            return dataclasses.asdict(over_runs([value["value"] for value in values]))
        shared = [key for key in first if all(key in value for value in values)]
        return {key: _together([value[key] for value in values]) for key in shared}
    if isinstance(first, list):
        return [_together(list(each)) for each in zip(*values, strict=False)]
    return sum(values) / len(values)


def differences(runs: Sequence[Mapping]) -> dict[str, dict[tuple[str, str], Interval]]:
    """What each step of the method changes: {STEPS: {(kind, field): interval over runs}}.

    A run's snapshots answer the same prompts, so that its own difference is taken first. Needs two
    runs or more.
    """
    return {
        title: {
            (kind, field): over_runs([
                run["answers"][after][kind][field]["value"]
                - run["answers"][before][kind][field]["value"]
                for run in runs
            ])
            for kind, fields in TOLD.items()
            for field in fields
        }
        for title, (after, before) in STEPS.items()
    }  # fmt: skip


def tables(groups: Mapping[str, Sequence[Mapping]]) -> Tables:
    """Each group's own, then the groups' RL-CAI side by side.

    Args:
      groups: name to its runs' `verdicts`.
    """
    found: Tables = {}
    joined = {name: together(runs) for name, runs in groups.items()}
    for name, runs in groups.items():
        of = f"{name}: " if len(groups) > 1 else ""
        found |= {of + title: table for title, table in _of_one(joined[name]).items()}
        if len(runs) > 1 and joined[name]["answers"]:
            steps = differences(runs)
            rows = [
                ResultRow(_label(*key), tuple(step[key] for step in steps.values()), "number")
                for key in next(iter(steps.values()))
            ]
            found[f"{of}What each step changes"] = (list(steps), rows)
    evaluated = {name: each for name, each in joined.items() if each["answers"]}
    if len(evaluated) > 1:
        names, verdicts = list(evaluated), evaluated.values()
        by_category = _by_category([each["by category"]["rl_cai"] for each in verdicts])
        found["RL-CAI, harmfulness, 0 to 4, by category"] = names, by_category
        answers = _answers([each["answers"]["rl_cai"] for each in verdicts])
        found["RL-CAI, held-out prompts"] = names, answers
    return found


def _of_one(found: Mapping) -> Tables:
    """In the order of the run's stages, so that what came out is read last."""
    return _revised(found) | _labels(found["labels"]) | _answered(found)


def _revised(found: Mapping) -> Tables:
    told = [name for name in DIVERSITY if all(name in each for each in found["diversity"])]
    rows = [
        ResultRow(
            str(number),
            (within(harm, HARM), *(within(measured[name], 1.0) for name in told)),
            "number",
        )
        for number, (harm, measured) in enumerate(
            zip(found["revisions"], found["diversity"], strict=True)
        )
    ]
    columns = ["harmfulness, 0 to 4", *(DIVERSITY[name] for name in told)]
    tables = {"Responses by number of revisions": (columns, rows)}
    if found["cleared"]:
        rows = [_row(name, [cell]) for name, cell in found["cleared"].items()]
        tables["Revisions by what their principle names"] = ["free what is harmful of harm"], rows
    return tables


def _labels(found: Mapping) -> Tables:
    tables: Tables = {}
    if "own pairs" in found:
        rows = [_row(name, [cell]) for name, cell in found["own pairs"].items()]
        tables["AI labels of the run's own pairs"] = ["prefer the less harmful"], rows
    if by_mode := found.get("clear-cut pairs"):
        tables["AI labels of clear-cut pairs"] = (
            [mode.replace("_", " ") for mode in by_mode],
            [
                _row(name, [each[name] for each in by_mode.values()], label_style(name))
                for name in CLEAR_CUT
                if all(name in each for each in by_mode.values())
            ],
        )
    return tables


def _answered(found: Mapping) -> Tables:
    names = {name: title for name, title in titles(2).items() if name in found["answers"]}
    if not names:
        return {}
    columns = list(names.values())
    by_category = _by_category([found["by category"][name] for name in names])
    answers = _answers([found["answers"][name] for name in names])
    return {
        "Harmfulness, 0 to 4, by category": (columns, by_category),
        "The oracle's verdict on held-out prompts": (columns, answers),
    }


def _by_category(columns: Sequence[Mapping]) -> list[ResultRow]:
    shared = sorted(set.intersection(*map(set, columns)))
    return [_row(name, [each[name] for each in columns], "number", HARM) for name in shared]


def _answers(columns: Sequence[Mapping]) -> list[ResultRow]:
    return [
        _row(
            _label(kind, field),
            [each[kind][field] for each in columns],
            "number" if field == "harmfulness" else "share",
            most(field),
        )
        for kind, fields in TOLD.items()
        for field in fields
    ]


def most(field: str) -> float:
    """What a field of an answer's verdict can be at most."""
    return HARM if field == "harmfulness" else 1.0


def within(cell: Mapping, top: float) -> Interval:
    """As an Interval, cut at 0 and at `top`: Student's over runs may reach past what can be."""
    found = Interval(**cell)
    return dataclasses.replace(found, low=max(0.0, found.low), high=min(top, found.high))


def _row(label: str, cells: Sequence[Mapping], style: str = "share", top: float = 1.0) -> ResultRow:
    return ResultRow(label, tuple(within(cell, top) for cell in cells), style)


def _label(kind: str, field: str) -> str:
    return f"{field.replace('_', ' ')}, {KINDS[kind]}"
