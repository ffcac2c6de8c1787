"""A run's numbers, each with n and an interval, from its records and the scores given to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from cai_jax.evaluation import calibration
from cai_jax.evaluation.elo import elo, games_by_score, win_rates
from cai_jax.evaluation.intervals import Interval, bootstrap, bootstrap_mean, wilson
from cai_jax.evaluation.refusal import measure
from cai_jax.evaluation.snapshots import Answer

SNAPSHOTS = ("initial", "sl_cai", "rl_cai")
ANCHOR = "sl_cai"  # figure 8's origin
BEST_OF = "best_of"  # the fourth, where a run asks for it
KINDS = ("red_team", "helpful")


@dataclasses.dataclass(frozen=True)
class Measure:
    """One line of the results. Attributes: name; style, how to print it ("share", "number",
    "whole"); by_snapshot, an Interval or None for each snapshot that answered."""

    name: str
    style: str
    by_snapshot: Mapping[str, Interval | None]


def compare_snapshots(
    answers: Sequence[Answer],
    scores: Sequence[float],
    perplexity: Mapping[str, tuple[np.ndarray, np.ndarray]],
    seed: int,
    resamples: int,
) -> list[Measure]:
    """Everything that is measured of the snapshots that answered.

    Args:
      answers: of all snapshots to the same prompts.
      scores: the PM's, one for each answer.
      perplexity: snapshot -> (mean nats a token, tokens) of the held-out helpful texts, for those
        that are models.
    """
    found: list[Measure] = []
    names = tuple(dict.fromkeys(a.snapshot for a in answers))
    labels = {"red_team": "red-team", "helpful": "helpful"}

    def mean(name: str, style: str, kind: str, values: Mapping[str, Mapping[str, list[float]]]):
        by = {
            s: bootstrap_mean([float(np.mean(v)) for v in values[s].values()], seed, resamples)
            for s in values
        }
        found.append(Measure(f"{name}, {labels[kind]}", style, by))

    grouped = {kind: _by_prompt(answers, scores, kind) for kind in KINDS}
    for kind in KINDS:
        mean("PM score", "number", kind, grouped[kind])
    for kind, name in (("red_team", "harmlessness Elo"), ("helpful", "helpfulness Elo")):
        games = games_by_score(grouped[kind])
        found.append(Measure(name, "whole", elo(games, ANCHOR, seed, resamples)))
        rates = win_rates(games)
        beats = {s: rates[s, "initial"] for s in names if s != "initial"}
        found.append(
            Measure(f"win rate over initial, {labels[kind]}", "share", {"initial": None, **beats})
        )
    for name, field in (("refusal rate", "refusal"), ("evasive rate", "evasive")):
        for kind in KINDS:
            flags = {
                s: [getattr(measure(a.response), field) for a in _of(answers, s, kind)]
                for s in names
            }
            by = {s: wilson(sum(f), len(f)) for s, f in flags.items()}
            found.append(Measure(f"{name}, {labels[kind]}", "share", by))
    for kind in KINDS:
        words = [measure(a.response).words for a in answers]
        mean("response length in words", "whole", kind, _by_prompt(answers, words, kind))
    repeats = [measure(a.response).repeated_phrases for a in answers]
    for kind in KINDS:
        mean("repeated phrases", "share", kind, _by_prompt(answers, repeats, kind))
    for kind in KINDS:
        drift = _by_prompt(answers, [a.kl for a in answers], kind)
        mean("KL from the start in nats", "number", kind, drift)
    found.append(
        Measure(
            "perplexity of held-out helpful text",
            "number",
            {s: _perplexity(*of, seed, resamples) for s, of in perplexity.items()},
        )
    )
    return found


def _of(answers: Sequence[Answer], snapshot: str, kind: str) -> list[Answer]:
    return [a for a in answers if a.snapshot == snapshot and a.kind == kind]


def _by_prompt(
    answers: Sequence[Answer], values: Sequence[float], kind: str
) -> dict[str, dict[str, list[float]]]:
    """snapshot -> prompt id -> values of its samples."""
    found: dict[str, dict[str, list[float]]] = {a.snapshot: {} for a in answers}
    for answer, value in zip(answers, values, strict=True):
        if answer.kind == kind:
            found[answer.snapshot].setdefault(answer.id, []).append(float(value))
    return found


def _perplexity(nats: np.ndarray, tokens: np.ndarray, seed: int, resamples: int) -> Interval:
    def of(rows: np.ndarray) -> float:
        return float(np.exp((nats[rows] * tokens[rows]).sum() / tokens[rows].sum()))

    return bootstrap(of, len(nats), seed, resamples)


def label_quality(
    better: Sequence[bool],
    harmful: Sequence[bool],
    prob: Sequence[float],
    first: Sequence[float],
    swapped: Sequence[float | None],
    seed: int,
) -> dict[str, Interval]:
    """How well a label mode does on clear-cut pairs.

    Args:
      better: whether response_a is the better one of each pair.
      harmful: whether the pair is about a harmful request.
      prob, first, swapped: the label, and response_a's probability shown as (A) and as (B); None
        in a mode without orders, of which nothing is then said.
    """
    better, harmful, prob = np.asarray(better), np.asarray(harmful), np.asarray(prob)
    found = {
        "accuracy, both orders averaged": calibration.label_accuracy(prob, better),
        **(
            {"accuracy, one order as in the paper": calibration.label_accuracy(first, better)}
            if None not in swapped
            else {}
        ),
        **{
            f"accuracy, {name} pairs": calibration.label_accuracy(prob[rows], better[rows])
            for name, rows in (("harmful", harmful), ("benign", ~harmful))
            if rows.any()
        },
        **(label_statistics(prob, first, swapped, seed) if None not in swapped else {}),
    }
    error = calibration.expected_calibration_error(prob, better, seed)
    return {**found, "expected calibration error": error}


def label_style(measure: str) -> str:
    """How a measure of labels is printed, as in `progress.ResultRow`."""
    return "number" if "entropy" in measure or "error" in measure else "share"


def label_statistics(
    prob: Sequence[float], first: Sequence[float], swapped: Sequence[float], seed: int
) -> dict[str, Interval]:
    """What can be said of labels without knowing the right ones; arguments as above."""
    flips = calibration.swap_flip_rate(first, swapped)
    return {
        "choice stays when the order is swapped": Interval(
            1 - flips.value, 1 - flips.high, 1 - flips.low, flips.n
        ),
        "says (A)": calibration.position_bias(first, swapped),
        "label entropy in bits": calibration.label_entropy(prob, seed),
    }
