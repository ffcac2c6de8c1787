"""How right the answers to multiple-choice questions are, with n, intervals and paired tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cai_jax.evaluation.intervals import Interval, Paired, bootstrap, paired_difference, wilson
from cai_jax.evaluation.multiple_choice import Choice

ENSEMBLED = "ensembled_chain_of_thought"


def credit(probs: np.ndarray, correct: int) -> float:
    """1 where the right option alone is likeliest, 1 / k where k options tie, else 0.

    Args:
      probs: float[options].
    """
    likeliest = np.flatnonzero(probs == probs.max())
    return float(correct in likeliest) / len(likeliest)


def credits_by_mode(choices: Sequence[Choice]) -> dict[str, dict[str, float]]:
    """Mode -> question id -> credit in [0, 1].

    A chain of thought's credit is the mean over a question's chains, each taken by itself; where
    there are several, ENSEMBLED is a mode of its own: the credit of their averaged probabilities.
    """
    found: dict[str, dict[str, float]] = {}
    for choice in choices:
        alone = [credit(probs, choice.correct) for probs in choice.chain_probs()]
        found.setdefault(choice.mode, {})[choice.id] = float(np.mean(alone))
        if len(alone) > 1:
            found.setdefault(ENSEMBLED, {})[choice.id] = credit(choice.probs(), choice.correct)
    return found


def accuracies(choices: Sequence[Choice]) -> dict[str, Interval]:
    """Mode -> share of questions answered right, with a 95% Wilson interval."""
    return {
        mode: wilson(sum(credits.values()), len(credits))
        for mode, credits in credits_by_mode(choices).items()
    }


def paired(
    first: Mapping[str, float], second: Mapping[str, float], seed: int, resamples: int
) -> Paired:
    """Accuracy of the first less that of the second, on the questions that both answered.

    Args:
      first, second: question id -> credit.

    Raises:
      ValueError: they share no question.
    """
    shared = [name for name in first if name in second]
    if not shared:
        raise ValueError("no question was answered by both; evaluate both on the same files.")
    return paired_difference(
        [first[n] for n in shared], [second[n] for n in shared], seed, resamples
    )


def by_right_option(choices: Sequence[Choice]) -> dict[int, Interval]:
    """Index of the right option -> share of its questions answered right."""
    rights = sorted({choice.correct for choice in choices})
    credits = {
        right: [credit(c.probs(), right) for c in choices if c.correct == right] for right in rights
    }
    return {right: wilson(sum(found), len(found)) for right, found in credits.items()}


def says_first(choices: Sequence[Choice]) -> Interval:
    """Share of questions whose likeliest option is (A): a liking for the letter where it is far
    from the share that is right to say so."""
    return wilson(sum(credit(choice.probs(), 0) for choice in choices), len(choices))


def calibration_error(
    choices: Sequence[Choice], seed: int, resamples: int = 1000, bins: int = 10
) -> Interval:
    """Mean gap between the likeliest option's probability and the share of times it is right.

    Over equal-width bins of the probability, as `calibration.expected_calibration_error`.
    """
    confidence = np.array([choice.probs().max() for choice in choices])
    right = np.array([credit(choice.probs(), choice.correct) for choice in choices])
    which = np.minimum((confidence * bins).astype(int), bins - 1)

    def gap(rows: np.ndarray) -> float:
        lead = np.bincount(which[rows], (right - confidence)[rows], minlength=bins)
        return float(np.abs(lead).sum() / len(rows))

    return bootstrap(gap, len(choices), seed, resamples)


def first_option_labels(choices: Sequence[Choice]) -> tuple[list[float], list[bool]]:
    """Probability of (A) and whether (A) is right, of two-option questions, for `calibration`."""
    pairs = [(float(c.probs()[0]), c.correct == 0) for c in choices if len(c.probs()) == 2]
    return [prob for prob, _ in pairs], [right for _, right in pairs]


def summary(choices: Sequence[Choice], questions: int, seed: int, resamples: int) -> dict[str, Any]:
    """All numbers of one evaluation, as plain JSON types.

    Args:
      choices: of one system in any modes.
      questions: how many there are; what is missing was given away by few-shots or too long.
    """
    credits = credits_by_mode(choices)
    details = {}
    for mode in dict.fromkeys(choice.mode for choice in choices):
        of = [choice for choice in choices if choice.mode == mode]
        details[mode] = {
            "says_first": _plain(says_first(of)),
            "calibration_error": _plain(calibration_error(of, seed, resamples)),
            "by_right_option": {str(k): _plain(v) for k, v in by_right_option(of).items()},
        }
    names = list(credits)
    pairs = [(a, b) for n, a in enumerate(names) for b in names[n + 1 :]]
    return {
        "chance": float(np.mean(list({c.id: 1 / len(c.probs()) for c in choices}.values()))),
        "accuracy": {mode: _plain(found) for mode, found in accuracies(choices).items()},
        "not_scored": {mode: questions - len(found) for mode, found in credits.items()},
        "averaged_over_chains": details,
        "paired": [
            {"first": a, "second": b, **_plain(paired(credits[a], credits[b], seed, resamples))}
            for a, b in pairs
            if set(credits[a]) & set(credits[b])
        ],
    }


def _plain(value: Interval | Paired) -> dict[str, Any]:
    return dataclasses.asdict(value)
