"""What Scripts have in common: a beginning of all, and an order that keeps kin together."""

from __future__ import annotations

import itertools

from cai_jax.decoding.schedule import Program
from cai_jax.script import Sample


def shared_prefix(programs: list[Program], least: int) -> int:
    """How many first tokens all programs share, at least one left to each; 0 if under `least`.

    One program shares all its prefix with itself, so that a last Script alone needs no longer
    slot than the same Script among others.
    """
    low, high = (pick(p.prefix for p in programs) for pick in (min, max))
    limit = min(min(len(p.prefix) for p in programs) - 1, len(low), len(high))
    length = next((i for i in range(limit) if low[i] != high[i]), limit)
    return length if length >= least else 0


def common_length(a: list[int] | tuple[int, ...], b: list[int] | tuple[int, ...]) -> int:
    """How many first tokens two texts share."""
    end = min(len(a), len(b))
    if a[:end] == b[:end]:
        return end
    return next(i for i in range(end) if a[i] != b[i])


def running_order(programs: list[Program], shared: int, least: int) -> list[int]:
    """The order in which to start programs, as indices.

    Sorted by their tokens they form a walk through the tree of beginnings: each shares more with
    the one started before it than with any earlier, so every branch is read once while a slot still
    holds it. Families, which share at least `least` tokens after the first `shared`, stay together;
    those that may sample longest start first, so that no long one is left over at the end.
    """
    by_tokens = sorted(range(len(programs)), key=lambda i: (programs[i].prefix, i))
    families: list[list[int]] = []
    for before, i in zip([None, *by_tokens], by_tokens, strict=False):
        akin = before is not None and (
            common_length(programs[before].prefix, programs[i].prefix) - shared >= least
        )
        families[-1].append(i) if akin else families.append([i])
    families.sort(key=lambda family: (-max(_to_sample(programs[i]) for i in family), min(family)))
    return list(itertools.chain.from_iterable(families))


def _to_sample(program: Program) -> int:
    """The most tokens that a program can sample."""
    return sum(s.max_new_tokens for s in program.script.segments if isinstance(s, Sample))
