"""Measurements as a table: rates, ratios, agreement."""

from __future__ import annotations

import dataclasses
import statistics


@dataclasses.dataclass
class Measured:
    """One peer on one workload.

    Attributes:
      workload, peer: their names.
      unit: what the rates count.
      items, all_items: how many items it was given, of how many.
      seconds, rates: of each round; rates are units a second.
      first: seconds that the first run took beyond the later ones: compilation and warm-up.
      agreement: share of greedy tokens, or of choices, that are ours; None for ours.
      foreign: for each round, share of the CPU time used by others.
      details: of the last round, such as slot occupancy.
      failure: why there are no numbers.
    """

    workload: str
    peer: str
    unit: str
    items: int
    all_items: int
    seconds: list[float] = dataclasses.field(default_factory=list)
    rates: list[float] = dataclasses.field(default_factory=list)
    first: float = 0.0
    agreement: float | None = None
    foreign: list[float] = dataclasses.field(default_factory=list)
    details: dict = dataclasses.field(default_factory=dict)
    failure: str = ""


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Ours over theirs, round by round: what slows a whole round cancels."""
    return [a / b for a, b in zip(ours, theirs, strict=False)]


def same_tokens(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Share of tokens that are equal up to each item's first difference."""
    same = total = 0
    for a, b in zip(ours, theirs, strict=False):
        pairs = list(zip(a, b, strict=False))
        same += next((i for i, (x, y) in enumerate(pairs) if x != y), len(pairs))
        total += max(len(a), len(b))
    return same / max(total, 1)


def same_choices(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """Share of items whose likeliest option is the same."""
    pairs = list(zip(ours, theirs, strict=False))
    return sum(a.index(max(a)) == b.index(max(b)) for a, b in pairs) / max(len(pairs), 1)


def markdown(rows: list[Measured], bounds: dict[str, tuple[float, float]]) -> str:
    """The table.

    Args:
      bounds: by workload, the units a second that the machine could do, with the steps at the rate
        of a large product and at the rate of one with 32 rows.
    """
    lines = [
        "| workload | who | items | rate (range) | ours / it (range) | same as ours "
        "| occupancy | warm-up, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours = {row.workload: row for row in rows if row.peer == "ours"}
    for row in rows:
        cells = [row.workload, row.peer, _items(row)]
        if row.failure:
            cells += [f"failed: {row.failure}", "", "", "", ""]
        else:
            ratio = ratios(ours[row.workload].rates, row.rates) if row.workload in ours else []
            occupancy = row.details.get("occupancy")
            cells += [
                f"{_spread(row.rates)} {row.unit}/s",
                "" if row.peer == "ours" or not ratio else _spread(ratio),
                "" if row.agreement is None else f"{row.agreement:.1%}",
                "" if occupancy is None else f"{occupancy:.0%}",
                f"{row.first:.1f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    for name, (large, small) in bounds.items():
        here = ours.get(name)
        share = f"; ours reaches {statistics.median(here.rates) / small:.0%} of the latter" if (
            here and here.rates
        ) else ""  # fmt: skip
        lines.append(
            f"\n{name}: the machine's bound is {large:.3g} {here.unit if here else 'units'}/s with "
            f"the steps at the rate of a large product, {small:.3g} at that of one with 32 rows"
            f"{share}."
        )
    return "\n".join(lines)


def training(rows: list[Measured], targets: dict[tuple[str, str], float]) -> str:
    """The table of training steps.

    Args:
      targets: by workload and peer, how many times as fast as it ours is meant to be.
    """
    lines = [
        "| work | who | s a step (range) | rate | ours / it (range) | target | first losses "
        "| peak, GB | warm-up, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ours = {row.workload: row for row in rows if row.peer == "ours"}
    for row in rows:
        cells = [row.workload, row.peer]
        if row.failure or not row.seconds:
            cells += [f"failed: {row.failure}", "", "", "", "", "", ""]
        else:
            ratio = ratios(ours[row.workload].rates, row.rates) if row.workload in ours else []
            target = targets.get((row.workload, row.peer))
            cells += [
                _spread(row.seconds),
                f"{statistics.median(row.rates):.3g} {row.unit}/s",
                "" if row.peer == "ours" or not ratio else _spread(ratio),
                "" if target is None else f"{target:g}",
                ", ".join(f"{loss:.4f}" for loss in row.details.get("losses", [])),
                f"{row.details['peak_bytes'] / 1e9:.1f}",
                f"{row.first:.0f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _items(row: Measured) -> str:
    return str(row.items) if row.items == row.all_items else f"{row.items} of {row.all_items}"


def _spread(values: list[float]) -> str:
    """The median, and the range where there is one."""
    middle = f"{statistics.median(values):.3g}"
    return middle if len(values) < 2 else f"{middle} ({min(values):.3g}-{max(values):.3g})"
