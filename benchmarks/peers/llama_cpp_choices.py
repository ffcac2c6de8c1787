"""llama.cpp scoring options: a conversation's tokens belong to all the questions about it.

A token of a batch may belong to several sequences, so that each question's words are read once for
all its options, and the conversation once for all its questions; llama.cpp's own multiple-choice
scores are computed in this way.
"""

from __future__ import annotations

import itertools

import numpy as np
from workloads import Item, Workload, common_length

from peers import Answer, Setup
from peers.llama_cpp_peer import BATCH, Context


class Choices:
    """One call for as many questions about one conversation as fit."""

    def __init__(self, setup: Setup, workload: Workload):
        self.workload = workload
        self.groups = [list(g) for _, g in itertools.groupby(workload.items, lambda i: i.group)]
        sequences = max(sum(len(i.options) for i in group) for group in self.groups)
        self.context = Context(setup, min(sequences, 64), 2 * BATCH, unified=True)
        self.most = min(sequences, 64) // max(len(i.options) for i in workload.items)

    def warm(self) -> None:
        """Nothing: the first run warms what there is to warm."""

    def run(self, greedy: bool, seed: int) -> Answer:
        """Answers the workload; nothing is drawn."""
        scores: list[list[float]] = []
        for group in self.groups:
            for part in self._parts(group):
                scores += self._score(part)
        return Answer(scores=scores)

    def _parts(self, group: list[Item]) -> list[list[Item]]:
        """Runs of questions whose tokens fit into a batch."""
        parts: list[list[Item]] = [[]]
        for item in group:
            tried = [*parts[-1], item]
            shared = common_length([i.tokens for i in tried])
            size = shared + sum(len(i.tokens) - shared + _option_size(i) for i in tried)
            if parts[-1] and (size > BATCH or len(tried) > self.most):
                parts.append([item])
            else:
                parts[-1] = tried
        return parts

    def _score(self, items: list[Item]) -> list[list[float]]:
        shared = common_length([item.tokens for item in items])
        shared = min(shared, min(len(item.tokens) for item in items) - 1)
        count = len(items[0].options)
        everyone = tuple(range(count * len(items)))
        batch = [(token, n, everyone, False) for n, token in enumerate(items[0].tokens[:shared])]
        wanted: list[list[list[int]]] = []  # place of the logits before each option's tokens
        for number, item in enumerate(items):
            mine = everyone[number * count : (number + 1) * count]
            first = common_length([option[:-1] for option in item.options])
            stem = (*item.tokens[shared:], *item.options[0][:first])
            stem_place = len(batch) + len(item.tokens) - shared - 1
            batch += [
                (token, shared + n, mine, len(batch) + n >= stem_place)
                for n, token in enumerate(stem)
            ]
            places = []
            for option, sequence in zip(item.options, mine, strict=True):
                rest = option[first:-1]
                start, position = len(batch), shared + len(stem)
                batch += [(t, position + n, (sequence,), True) for n, t in enumerate(rest)]
                before = range(stem_place, stem_place + first + 1)
                places.append([*before, *range(start, start + len(rest))])
            wanted.append(places)
        self.context.clear()
        self.context.decode(batch)
        known: dict[int, np.ndarray] = {}
        return [
            [
                sum(
                    self._logprob(place, token, known)
                    for place, token in zip(row, option, strict=True)
                )
                for row, option in zip(places, item.options, strict=True)
            ]
            for places, item in zip(wanted, items, strict=True)
        ]

    def _logprob(self, place: int, token: int, known: dict[int, np.ndarray]) -> float:
        """Log-probability of `token` after the batch's token at `place`."""
        if place not in known:
            row = self.context.logits(place)
            maximum = row.max()
            known[place] = row - maximum - np.log(np.exp(row - maximum).sum())
        return float(known[place][token])


def _option_size(item: Item) -> int:
    return sum(map(len, item.options))
