"""What a sandbox run's AI labels are worth: its own pairs', by the oracle, and clear-cut ones'."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cai_jax.evaluation import calibration
from cai_jax.evaluation.intervals import bootstrap_mean, half_step
from cai_jax.pipeline import read_records
from cai_jax.records import Comparison
from cai_jax.sandbox import oracle
from cai_jax.sandbox.principles import NAMING, naming

# What is told of a run's own pairs; the last two of questions under principles that name harms.
OWN = ("all askings", "one asking", *NAMING)
BINS = 10  # of a label's probability, as in the paper's figure 9
# What an evaluation measures of clear-cut pairs, as evaluation.results.label_quality names it.
CLEAR_CUT = (
    "accuracy, one order as in the paper",
    "accuracy, both orders averaged",
    "expected calibration error",
)


def label_verdicts(workdir: Path) -> dict:
    """How often a run's AI labels are right; intervals, over pairs, are dicts.

    Returns, as far as the run went:
      {"own pairs": of its compared pairs of which one response is less harmful, the share that is
         right of {"all askings": the labels, "one asking": a label's single questions, and of those
         under principles that name the request's category of harm and others: each of NAMING};
       "reliability": of the same labels, for each of BINS {"prob": mean probability, "share":
         interval of the share right}, or None where no label lies;
       "clear-cut pairs": {mode: {name in CLEAR_CUT: interval}}, but for what its labels have not,
         as those of modes that show one response at a time have no order}
    """
    found: dict = {}
    compared = workdir / "compare" / "comparisons"
    if compared.exists():
        found |= _own_pairs(read_records(compared, Comparison))
    evaluated = workdir / "evaluation" / "results.json"
    if evaluated.exists():
        by_mode = json.loads(evaluated.read_text("utf-8"))["labels"]
        found["clear-cut pairs"] = {
            mode: {name: measured[name] for name in CLEAR_CUT if name in measured}
            for mode, measured in by_mode.items()
        }
    return found


def _own_pairs(pairs: Sequence[Comparison]) -> dict:
    probs: list[float] = []
    better: list[bool] = []
    askings: dict[str, list[float]] = defaultdict(list)  # a value a pair
    for pair in pairs:
        request = oracle.request_of(pair.prompt)
        a, b = (
            oracle.judge_reply(request, text).harmfulness
            for text in (pair.response_a, pair.response_b)
        )
        if a == b:
            continue
        probs.append(pair.prob_a)
        better.append(a < b)
        for name, hits in _askings(pair, request.category, a < b).items():
            askings[name].append(float(np.mean(hits)))
    if not probs:
        return {}
    shares = {name: bootstrap_mean(hits, seed=0) for name, hits in askings.items()}
    shares["all askings"] = calibration.label_accuracy(probs, better)
    bins: list[dict | None] = [None] * BINS
    for each in calibration.reliability(probs, better, BINS):
        bins[round(each.low * BINS)] = {
            "prob": each.mean_prob, "share": dataclasses.asdict(each.share),
        }  # fmt: skip
    return {
        "own pairs": {name: dataclasses.asdict(shares[name]) for name in OWN if name in shares},
        "reliability": bins,
    }


def _askings(pair: Comparison, category: str, a_is_better: bool) -> dict[str, list[float]]:
    """By what its principle names: of each question that showed both, 1 where it chose right."""
    found: dict[str, list[float]] = defaultdict(list)
    for asked, (first, second, *_) in zip(pair.asked, pair.option_logprobs, strict=False):
        if asked.shown not in ("AB", "BA"):
            continue
        right = float(half_step(np.float64(first - second)))
        if (asked.shown == "AB") != a_is_better:
            right = 1 - right
        found["one asking"].append(right)
        if named := naming(asked.principle, category):
            found[named].append(right)
    return found
