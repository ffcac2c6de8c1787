"""Which texts of a list say again what stood before: exactly, or nearly by n-gram Jaccard."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import unicodedata
from collections.abc import Sequence

ROUNDING = 1e-9  # 0.7 * 10 is a little more than 7


@dataclasses.dataclass(frozen=True)
class Repeat:
    """What a text repeats.

    Attributes:
      of: the index of the earlier text, among the known ones if `known`.
      similarity: 1 where both are the same once normalised, else their Jaccard similarity.
    """

    of: int
    known: bool
    similarity: float


def normalised(text: str) -> str:
    """Letters and digits in lower case, a space between words; compatibility forms made one."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("'", "").replace("’", "")
    return " ".join(re.findall(r"[^\W_]+", folded))


def ngrams(text: str, size: int) -> frozenset[str]:
    """A normalised text's different runs of `size` characters; a shorter text is one."""
    return frozenset(text[k : k + size] for k in range(max(1, len(text) - size + 1)))


def repeats(
    texts: Sequence[str], known: Sequence[str], size: int, threshold: float
) -> list[Repeat | None]:
    """For each text the first known or earlier kept text that it repeats; None where it is kept.

    A text repeats another one where the two are equal once normalised, or where the Jaccard
    similarity of their n-grams is at least the threshold. Texts that repeat are not compared with.

    Pairs that cannot be so similar are passed over without a look, and no pair is missed: with
    n-grams in one order of all, rare ones first, two sets of Jaccard similarity t or more share one
    of each one's first |x| - ceil(t |x|) + 1. Reference: R. Bayardo et al., "Scaling Up All Pairs
    Similarity Search" (2007).

    Args:
      size: characters in an n-gram, at least 1.
      threshold: above 0, at most 1; with 1 and a large size, exact repeats alone.

    Raises:
      ValueError: a size or threshold out of its range.
    """
    if size < 1 or not 0 < threshold <= 1:
        raise ValueError(f"n-grams of {size} and a threshold of {threshold} compare nothing.")
    plain = [normalised(text) for text in (*known, *texts)]
    grams = [ngrams(text, size) for text in plain]
    holders = collections.Counter(gram for found in grams for gram in found)
    same: dict[str, int] = {}
    sharing: dict[str, list[int]] = collections.defaultdict(list)  # whose prefix has a gram

    def earlier(text: str, found: frozenset[str], prefix: list[str]) -> tuple[int, float] | None:
        if text in same:
            return same[text], 1.0
        for j in sorted({j for gram in prefix for j in sharing[gram]}):
            similarity = len(found & grams[j]) / len(found | grams[j])
            if similarity >= threshold:
                return j, similarity
        return None

    verdicts: list[Repeat | None] = []
    for i, (text, found) in enumerate(zip(plain, grams, strict=True)):
        least = math.ceil(threshold * len(found) - ROUNDING)
        prefix = sorted(found, key=lambda gram: (holders[gram], gram))[: len(found) - least + 1]
        match = earlier(text, found, prefix) if i >= len(known) else None
        if match is None:
            same.setdefault(text, i)
            for gram in prefix:
                sharing[gram].append(i)
        if i >= len(known):
            verdicts.append(match and _repeat(*match, len(known)))
    return verdicts


def _repeat(j: int, similarity: float, known: int) -> Repeat:
    return Repeat(j, True, similarity) if j < known else Repeat(j - known, False, similarity)
