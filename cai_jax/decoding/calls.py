"""The programs on a run's buffers: lists in, padded arrays through, lists out.

Sizes are rounded up to a few, so that a run soon compiles nothing more, whatever its data.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.decoding import bursts, reading
from cai_jax.decoding.options import OptionTree, edge_arrays, node_arrays
from cai_jax.decoding.sampling import Draws, Rule
from cai_jax.decoding.schedule import Slot, bucket
from cai_jax.decoding.stats import Stats
from cai_jax.mesh import mesh_of
from cai_jax.models import kv_cache
from cai_jax.models.cached import Prefix
from cai_jax.models.config import ModelConfig
from cai_jax.models.transformer import Params

SIZES = (64, 128, 192, 256, 384, 512)  # tokens read in one call
FEW_SIZES = (64, 192, 512)  # where little is to be compiled
FEEDS = 8  # tokens read in a call for each slot that it has room for
NODES = (1, 3, 12, 64, 256)  # option tokens of one slot scored in one call
SCORED = 256  # option tokens of all slots scored in one call
STEPS = 64  # most tokens a slot samples in one burst
FEW_STEPS = 4  # where somebody reads along


class Calls:
    """The run's cache and logits, and the programs on them.

    Args:
      params: in the layout of `models.unstacked`.
      prefix: what all slots read first, or None.
      keys: uint32[N, 2], each Script's key.
      stops: the stop automaton's table and each stop set's first state.
      slots: S.
      limits: lengths up to which slots may be read, ascending; the last is the cache's length.
      few_sizes: whether to read in FEW_SIZES, and otherwise all slots at their whole length.
      called: the sizes that were called before; added to.
      steps: most tokens a slot samples in one burst.

    Attributes:
      slots: S.
      row_counts: how many slots a call can take, ascending; the last is S.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        dtype: jnp.dtype,
        prefix: Prefix | None,
        keys: np.ndarray,
        stops: tuple[jax.Array, dict[tuple[str, ...], int]],
        end_ids: tuple[int, ...],
        slots: int,
        limits: tuple[int, ...],
        few_sizes: bool,
        stats: Stats,
        called: set[tuple],
        steps: int = STEPS,
    ):
        self.slots, self._steps = slots, steps
        self._mesh = mesh = mesh_of(params)
        self._static = {"config": config, "dtype": dtype, "mesh": mesh}
        self._params, self._prefix, self._keys, self._stops = params, prefix, keys, stops
        self._limits = limits[-1:] if few_sizes else limits
        self._sizes = FEW_SIZES if few_sizes else SIZES
        self._stats, self._called = stats, called
        eighths = (8,) if few_sizes or mesh is not None else (1, 2, 4, 8)  # no faster on a mesh
        self.row_counts = tuple(sorted({max(1, slots * n // 8) for n in eighths}))
        self._cache = kv_cache.empty(config, slots, limits[-1], dtype, mesh)
        self._logits = reading.no_logits(config, slots, mesh)
        self._end_ids = np.asarray(end_ids, np.int32)

    def wait(self) -> None:
        """Until everything that was called is done."""
        jax.block_until_ready(self._logits)

    def fork(self, pairs: list[tuple[int, int]], longest: int) -> None:
        """Copies the first `longest` positions of slots to slots, (from, to)."""
        limit = bucket(longest, self._limits)
        for start in range(0, len(pairs), self.slots):
            part = pairs[start : start + self.slots]
            rows = min(1 << (len(part) - 1).bit_length(), self.slots)
            self._note("fork", rows, limit)
            self._cache = reading.fork(
                self._cache,
                padded([source for source, _ in part], rows, 0),
                padded([target for _, target in part], rows, self.slots),
                limit=limit,
                mesh=self._mesh,
            )

    def extend(self, feeds: dict[int, list[int]], lengths: dict[int, int]) -> dict[int, int]:
        """Reads the beginnings of some slots' feeds in one call; how much of each.

        Args:
          feeds: what each slot is still to read.
          lengths: what already stands in each.
        """
        waiting = {i: len(feed) for i, feed in feeds.items()}
        size, rows, taken = packing(waiting, self.slots, self._sizes)
        order = list(taken)
        ids = [token for i in order for token in feeds[i][: taken[i]]]
        self._note("extend", size, rows)
        self._cache, self._logits = reading.extend(
            self._params,
            self._cache,
            self._logits,
            self._prefix,
            padded(order, rows, self.slots),
            padded([lengths[i] for i in order], rows, 0),
            padded(list(taken.values()), rows, 0),
            padded(ids, size, 0),
            **self._static,
        )
        self._stats.read += len(ids)
        self._stats.read_padded += size
        return taken

    def score(
        self, trees: dict[int, OptionTree], lengths: dict[int, int]
    ) -> dict[int, list[float]]:
        """Log-probabilities of the edges of slots' options.

        Args:
          trees: each slot's options.
          lengths: how much of each slot is context.
        """
        most = max(len(tree.nodes) for tree in trees.values())
        width = bucket(most, NODES) if most <= NODES[-1] else 1 << (most - 1).bit_length()
        edges = max(4, 1 << (max(len(t.edges) for t in trees.values()) - 1).bit_length())
        rows = bucket(len(trees), tuple(r for r in self.row_counts if r * width <= SCORED) or (1,))
        found: dict[int, list[float]] = {}
        for start in range(0, len(trees), rows):
            part = list(trees)[start : start + rows]
            some = [trees[i] for i in part]
            self._note("score", rows, width if most else 0, edges)
            result = reading.score(
                self._params,
                self._cache,
                self._logits,
                self._prefix,
                padded(part, rows, self.slots),
                padded([lengths[i] for i in part], rows, 0),
                *(node_arrays(some, rows, width) if most else (None,) * 3),
                *edge_arrays(some, rows, edges),
                **self._static,
            )
            result = np.asarray(result)
            for row, i in enumerate(part):
                found[i] = result[row, : len(trees[i].edges)].tolist()
                self._stats.scored += len(trees[i].edges)
        return found

    def decode(
        self, drawing: dict[int, Slot], enough: int
    ) -> dict[int, tuple[list[int], list[float], int, int]]:
        """Samples in slots until `enough` of them are finished or so many steps are done.

        Returns:
          For each slot tokens, log-probabilities, state of the stop automaton, and why it is
          finished or 0.
        """
        rows = bucket(len(drawing), self.row_counts)
        order = list(range(self.slots)) if rows == self.slots else list(drawing)
        slots = [drawing.get(i) for i in order] + [None] * (rows - len(order))
        limit = bucket(
            max(len(s.context) + s.most_to_come(self._steps) for s in drawing.values()),
            self._limits,
        )
        self._note("decode", rows, limit, self._stops[0].shape)
        self._cache, *drawn = bursts.decode(
            self._params,
            self._cache,
            self._logits,
            self._prefix,
            padded(order, rows, self.slots),
            padded([len(s.context) if s else 0 for s in slots], rows, 0),
            self._draws(slots),
            self._stops[0],
            self._end_ids,
            np.int32(enough),
            limit=limit,
            steps=self._steps,
            **self._static,
        )
        tokens, logprobs, counts, states, reasons = map(np.asarray, drawn)
        self._stats.sampled += int(counts.sum())
        read = counts - [bool(s and not s.sampled) for s in slots]  # tokens that a step read
        self._stats.rows_used += int(read.sum())
        self._stats.rows_computed += rows * int(read.max())
        return {
            i: (
                tokens[row, : counts[row]].tolist(),
                logprobs[row, : counts[row]].tolist(),
                int(states[row]),
                int(reasons[row]),
            )
            for row, i in enumerate(order)
            if i in drawing
        }

    def _draws(self, slots: list[Slot | None]) -> Draws:
        """The burst's rows as arrays; rows without a slot are inactive."""

        def column(of, otherwise, dtype):
            return np.asarray([of(s) if s else otherwise for s in slots], dtype)

        starts = self._stops[1]
        sample = lambda field: lambda s: getattr(s.segment, field)  # noqa: E731
        return Draws(
            active=column(lambda s: True, False, bool),
            fresh=column(lambda s: not s.sampled, False, bool),
            pending=column(lambda s: s.sampled[-1] if s.sampled else 0, 0, np.int32),
            key=np.stack([self._keys[s.order] if s else np.zeros(2, np.uint32) for s in slots]),
            segment=column(lambda s: len(s.results), 0, np.int32),
            sampled=column(lambda s: len(s.sampled), 0, np.int32),
            least=column(sample("min_new_tokens"), 0, np.int32),
            limit=column(sample("max_new_tokens"), 1, np.int32),
            rule=Rule(
                temperature=column(sample("temperature"), 0.0, np.float32),
                top_p=column(sample("top_p"), 1.0, np.float32),
                top_k=column(sample("top_k"), 0, np.int32),
            ),
            stop_state=column(
                lambda s: s.stop_state if s.sampled else starts[s.segment.stop], 1, np.int32
            ),
        )

    def _note(self, *size: object) -> None:
        """Counts a size that was not called before, which means a compilation."""
        size = (*size, self.slots, self._limits[-1], self._prefix and self._prefix.cache.length)
        self._stats.compiled += size not in self._called
        self._called.add(size)


def packing(
    waiting: dict[int, int], slots: int, sizes: tuple[int, ...]
) -> tuple[int, int, dict[int, int]]:
    """What one call reads: the longest feeds first, until the call is full.

    Args:
      waiting: slot -> tokens it is still to read.
      slots: how many there are.
      sizes: of calls, ascending.

    Returns:
      size and rows of the call, and how much of which slots it reads.
    """
    size = bucket(max(sum(waiting.values()), len(waiting) * FEEDS), sizes)
    rows, taken, room = max(1, min(slots, size // FEEDS)), {}, size
    for i in sorted(waiting, key=lambda i: (-waiting[i], i))[:rows]:
        if count := min(waiting[i], room):
            taken[i] = count
            room -= count
    return size, rows, taken


def padded(values: list[int], size: int, filler: int) -> np.ndarray:
    """int32[size] of the values and then fillers."""
    return np.asarray([*values, *[filler] * (size - len(values))], np.int32)
