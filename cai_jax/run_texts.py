"""All texts of a run: prompts, comparisons and clear-cut pairs, cut to the config's limits."""

from __future__ import annotations

import dataclasses

from cai_jax.datasets import prompts as shipped
from cai_jax.datasets.prompts import PromptRow
from cai_jax.settings import RunSettings


@dataclasses.dataclass(frozen=True)
class Data:
    """All texts of a run, read and checked before anything is computed."""

    red_team: list[PromptRow]
    helpful: list[PromptRow]
    held_out_red_team: list[PromptRow]
    held_out_helpful: list[PromptRow]
    helpful_comparisons: list[shipped.HelpfulComparison]
    held_out_comparisons: list[shipped.HelpfulComparison]
    label_pairs: list[shipped.LabelPair]


def read_data(settings: RunSettings) -> Data:
    """The run's texts, cut to their limits.

    Raises:
      ValueError: a file that is empty or malformed, with file and line.
    """
    p = settings.prompts

    def rows(path: str, kind: str, split: str, limit: int) -> list[PromptRow]:
        found = shipped.read_prompts(path, kind) if path else shipped.prompts(kind, split)
        return found[: limit or None]

    def comparisons(path: str, split: str, limit: int) -> list[shipped.HelpfulComparison]:
        found = shipped.read_comparisons(path) if path else shipped.helpful_comparisons(split)
        return found[: limit or None]

    pairs = shipped.read_label_pairs(p.label_pairs) if p.label_pairs else shipped.label_pairs()
    return Data(
        red_team=rows(p.red_team, "red_team", "train", p.red_team_limit),
        helpful=rows(p.helpful, "helpful", "train", p.helpful_limit),
        held_out_red_team=rows(p.held_out_red_team, "red_team", "test", p.held_out_red_team_limit),
        held_out_helpful=rows(p.held_out_helpful, "helpful", "test", p.held_out_helpful_limit),
        helpful_comparisons=comparisons(
            p.helpful_comparisons, "train", p.helpful_comparisons_limit
        ),
        held_out_comparisons=comparisons(p.held_out_comparisons, "test", p.held_out_helpful_limit),
        label_pairs=_balanced(pairs, p.label_pairs_limit),
    )


def _balanced(pairs: list[shipped.LabelPair], limit: int) -> list[shipped.LabelPair]:
    """The first so many pairs, half of each kind."""
    if not limit:
        return pairs
    kinds = {kind: [p for p in pairs if p.kind == kind] for kind in ("harmful", "benign")}
    return [pair for both in zip(*kinds.values(), strict=False) for pair in both][:limit]
