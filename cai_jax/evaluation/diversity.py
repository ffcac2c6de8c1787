"""How much the texts of a set differ from one another (the paper's figure 6 claims diversity and
does not measure it).

Three measures, each of which sees something else; texts are compared in lower case, word by word:

  self_bleu   mean BLEU-4 of each text against all others: high where phrases repeat from text to
              text. It rises with the number of texts.
  distinct_1, distinct_2   share of words, of word pairs, that are different ones. They fall with
              the number of texts and with their length.
  spread      mean cosine distance between two texts as vectors of character 4-gram counts: 0 where
              all are the same, 1 where none share a 4-gram. It depends on no number of texts.

Compare sets of equally many texts, best of the same prompts. Texts without a word are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from cai_jax.evaluation.intervals import Interval
from cai_jax.records import Revision

ORDERS = 4  # of n-grams in BLEU
NO_MATCH = 0.1  # counted for an order without a match: smoothing 1 of Chen and Cherry (2014)
CHARACTERS = 4
GROUPS = 50
MOST = 500  # texts that are compared; work grows with them times GROUPS

Grams = list[Counter[tuple[str, ...]]]  # of one text, an entry an order


def measure(texts: Sequence[str]) -> dict[str, Interval]:
    """The measures of the texts, with jackknife intervals; empty with fewer than three of them.

    A measure that they do not have is left out, as word pairs where most texts are single words. A
    bootstrap will not do here: it draws texts twice, and twice the same text is no diversity.
    """
    words = [found for text in texts if (found := text.lower().split())]
    if len(words) < 3:
        return {}
    grams = [_grams(text) for text in words]
    vectors = [_vector(" ".join(text)) for text in words]
    found = {
        "self_bleu": jackknife(lambda kept: self_bleu([grams[i] for i in kept]), len(words)),
        "distinct_1": jackknife(lambda kept: distinct([grams[i] for i in kept], 1), len(words)),
        "distinct_2": jackknife(lambda kept: distinct([grams[i] for i in kept], 2), len(words)),
        "spread": jackknife(lambda kept: spread([vectors[i] for i in kept]), len(words)),
    }
    return {name: value for name, value in found.items() if math.isfinite(value.high)}


def of_revisions(records: Sequence[Revision]) -> list[dict[str, Interval]]:
    """`measure` of the initial responses and of each revision, over the first MOST prompts."""
    chains = [(r.initial_response, *(s.revision for s in r.steps)) for r in records[:MOST]]
    return [measure(texts) for texts in zip(*chains, strict=True)]


def self_bleu(texts: Sequence[Grams]) -> float:
    """Mean over the texts of BLEU-4 against all others as references.

    BLEU's clipped n-gram precisions, geometric mean and brevity penalty (Papineni et al., 2002),
    with NO_MATCH matches for an order that has none; 0 for a text that shares no word with others.
    Reference: Y. Zhu et al., "Texygen" (2018), section 3.

    Args:
      texts: two or more, as `_grams` gives them.
    """
    # Of each n-gram, its most occurrences in one text, which text that is, and the most in another.
    best: list[dict[tuple[str, ...], tuple[int, int, int]]] = [{} for _ in range(ORDERS)]
    for i, text in enumerate(texts):
        for seen, counts in zip(best, text, strict=True):
            for gram, count in counts.items():
                most, holder, second = seen.get(gram, (0, -1, 0))
                if count > most:
                    seen[gram] = (count, i, most)
                elif count > second:
                    seen[gram] = (most, holder, count)
    lengths = Counter(text[0].total() for text in texts)
    return sum(_bleu(i, text, best, lengths) for i, text in enumerate(texts)) / len(texts)


def _bleu(i: int, text: Grams, best: list[dict], lengths: Counter[int]) -> float:
    logs = []
    for seen, counts in zip(best, text, strict=True):
        matches = 0
        for gram, count in counts.items():
            most, holder, second = seen[gram]
            matches += min(count, second if holder == i else most)
        if not matches and not logs:
            return 0.0
        logs.append(math.log((matches or NO_MATCH) / max(1, counts.total())))
    length = text[0].total()
    others = [n for n, count in lengths.items() if count > (n == length)]
    closest = min(others, key=lambda n: (abs(n - length), n))
    return min(1.0, math.exp(1 - closest / length)) * math.exp(sum(logs) / ORDERS)


def distinct(texts: Sequence[Grams], order: int) -> float:
    """Number of different n-grams of all texts over their number; NaN if there is no n-gram.

    Reference: J. Li et al., "A Diversity-Promoting Objective Function" (2016), distinct-1 and -2.
    """
    counts = [text[order - 1] for text in texts]
    total = sum(c.total() for c in counts)
    return len(set().union(*counts)) / total if total else math.nan


def spread(vectors: Sequence[dict[str, float]]) -> float:
    """1 less the mean cosine of two different vectors, each of length 1.

    The sum over all pairs follows from the length of the vectors' sum.
    """
    whole: Counter[str] = Counter()
    for vector in vectors:
        whole.update(vector)
    n = len(vectors)
    return 1 - (sum(x * x for x in whole.values()) - n) / (n * (n - 1))


def jackknife(
    statistic: Callable[[Sequence[int]], float], n: int, confidence: float = 0.95
) -> Interval:
    """A statistic of n items with the interval of a delete-a-group jackknife.

    Item i is in group i mod min(n, GROUPS); each group is left out once. The standard error is
    sqrt((G - 1) / G sum (s_g - mean s)^2), the interval a normal one around the value.

    Args:
      statistic: of the indices that are kept.

    Reference: B. Efron and C. Stein, "The Jackknife Estimate of Variance" (1981).
    """
    groups = min(n, GROUPS)
    value = statistic(range(n))
    left = np.array([statistic([i for i in range(n) if i % groups != g]) for g in range(groups)])
    error = math.sqrt((groups - 1) / groups * float(((left - left.mean()) ** 2).sum()))
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return Interval(float(value), float(value - half), float(value + half), n)


def _grams(words: Sequence[str]) -> Grams:
    """Counts of a text's n-grams, of orders 1 to ORDERS."""
    return [
        Counter(zip(*(words[k:] for k in range(order)), strict=False))
        for order in range(1, ORDERS + 1)
    ]


def _vector(text: str) -> dict[str, float]:
    """Counts of character 4-grams, scaled to length 1; a short text is one gram."""
    ends = range(max(1, len(text) - CHARACTERS + 1))
    counts = Counter(text[k : k + CHARACTERS] for k in ends)
    length = math.sqrt(sum(n * n for n in counts.values()))
    return {gram: n / length for gram, n in counts.items()}
