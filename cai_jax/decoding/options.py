"""Options of a Choose as a tree of tokens, so that what they have in common is read once."""

from __future__ import annotations

import dataclasses

import numpy as np

CONTEXT = -1  # as a parent: the slot's context


@dataclasses.dataclass(frozen=True)
class OptionTree:
    """Attributes:
    nodes: (token, parent) of every token that another one follows; a parent is the index of an
      earlier node, or CONTEXT.
    edges: (parent, token) of every token of any option, each once.
    paths: for each option the indices of its tokens' edges.
    """

    nodes: tuple[tuple[int, int], ...]
    edges: tuple[tuple[int, int], ...]
    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, options: tuple[tuple[int, ...], ...]) -> OptionTree:
        """The tree of options, each at least one token."""
        nodes: dict[tuple[int, int], int] = {}
        edges: dict[tuple[int, int], int] = {}
        paths = []
        for option in options:
            parent, path = CONTEXT, []
            for depth, token in enumerate(option):
                path.append(edges.setdefault((parent, token), len(edges)))
                if depth < len(option) - 1:
                    parent = nodes.setdefault((token, parent), len(nodes))
            paths.append(tuple(path))
        return cls(tuple(nodes), tuple(edges), tuple(paths))

    def sums(self, logprobs: list[float]) -> list[float]:
        """Each option's log-probability from its edges'."""
        return [float(np.sum(np.float32([logprobs[e] for e in path]))) for path in self.paths]


def node_arrays(
    trees: list[OptionTree], rows: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `reading.score` reads: tokens int32[R, W], depths int32[R, W], sees bool[R, W, W]."""
    tokens = np.zeros((rows, width), np.int32)
    depths = np.zeros((rows, width), np.int32)
    sees = np.zeros((rows, width, width), bool)
    sees[:] = np.eye(width, dtype=bool)
    for row, tree in enumerate(trees):
        for n, (token, parent) in enumerate(tree.nodes):
            tokens[row, n] = token
            if parent != CONTEXT:
                depths[row, n] = depths[row, parent] + 1
                sees[row, n] |= sees[row, parent]
    return tokens, depths, sees


def edge_arrays(trees: list[OptionTree], rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """What follows what: parents int32[R, E] and tokens int32[R, E]."""
    after = np.full((rows, width), CONTEXT, np.int32)
    tokens = np.zeros((rows, width), np.int32)
    for row, tree in enumerate(trees):
        if tree.edges:
            after[row, : len(tree.edges)], tokens[row, : len(tree.edges)] = np.transpose(tree.edges)
    return after, tokens
