"""Whether several raters of the same items agree."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Mapping

from cai_jax.evaluation.intervals import Interval, wilson

Ratings = Mapping[Hashable, Mapping[str, Hashable]]  # item -> rater -> value


def same_choice(ratings: Ratings) -> Interval:
    """How often two raters of an item give it the same value, with a 95% Wilson interval.

    An item counts once, by the share of its pairs of raters that agree; n is the number of items
    that two or more rated.
    """
    shares = []
    for values in (list(of.values()) for of in ratings.values()):
        if pairs := list(itertools.combinations(values, 2)):
            shares.append(sum(a == b for a, b in pairs) / len(pairs))
    return wilson(sum(shares), len(shares))


def krippendorff_alpha(ratings: Ratings) -> float | None:
    """Krippendorff's alpha for nominal values: 1 where raters agree, 0 where it is as by chance.

    alpha = 1 - observed disagreement / expected disagreement, over items that two or more rated;
    raters may have rated different items. None where nothing can disagree: no such item, or one
    value alone.

    Reference: K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011).
    """
    coincidences: Counter[tuple[Hashable, Hashable]] = Counter()
    for values in (list(of.values()) for of in ratings.values()):
        for one, other in itertools.permutations(values, 2):
            coincidences[one, other] += 1 / (len(values) - 1)
    totals: Counter[Hashable] = Counter()
    for (one, _), weight in coincidences.items():
        totals[one] += weight
    n = sum(totals.values())
    observed = sum(w for (one, other), w in coincidences.items() if one != other)
    expected = sum(totals[a] * totals[b] for a, b in itertools.permutations(totals, 2))
    return 1 - observed * (n - 1) / expected if expected else None
