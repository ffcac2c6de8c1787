"""One run of the engine: slots of a shared cache, filled, read forward, sampled and refilled.

Everything here follows from the Scripts and from what the programs return, which all hosts of a pod
hold alike; so all hosts decide alike, with one exchange a burst and none a token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.decoding import programs
from cai_jax.decoding.schedule import Program, Slot, bucket, common_length, wants
from cai_jax.decoding.stats import Stats
from cai_jax.models import kv_cache
from cai_jax.models.config import ModelConfig
from cai_jax.models.transformer import Params
from cai_jax.script import Choose, Sample, Transcript
from cai_jax.tokenizer import Tokenizer

WIDTHS = (16, 64, 128, 256)  # chunks in which forced tokens are read
BUDGET = 1024  # tokens read in one call, padding counted
STEPS = 64  # most tokens a slot samples in one burst
LEAST_FORK = 16  # a shorter common beginning is read again rather than copied
OPTION_WIDTHS = (1, 4, 16, 64, 256)


class Session:
    """The state of a run.

    Args:
      compiled: the Scripts in tokens.
      shared: how many of their first tokens stand in `prefix`.
      keys: uint32[N, 2], each Script's key.
      stops: the stop automaton's table and each stop set's first state.
      limits: lengths up to which slots may be read, ascending; the last is the cache's length.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        dtype: jnp.dtype,
        tokenizer: Tokenizer,
        compiled: list[Program],
        shared: int,
        prefix: programs.Prefix | None,
        keys: np.ndarray,
        stops: tuple[jax.Array, dict[tuple[str, ...], int]],
        slots: int,
        limits: tuple[int, ...],
        stats: Stats,
    ):
        self._static = {"config": config, "dtype": dtype}
        self._params, self._tokenizer, self._prefix = params, tokenizer, prefix
        self._shared, self._keys, self._stops = shared, keys, stops
        self._limits, self._stats = limits, stats
        self._row_counts = tuple(sorted({*(r for r in (1, 4, 16) if r < slots), slots}))
        self._queue = deque(enumerate(compiled))
        self._size = slots
        self._live: list[Slot | None] = [None] * slots
        self._held: list[list[int]] = [[] for _ in range(slots)]  # tokens left in idle slots
        self._leaders: dict[int, tuple[int, int]] = {}  # slot -> (slot it forks from, how much)
        self._cache = kv_cache.empty(config, slots, limits[-1], dtype)
        self._logits = jnp.zeros((slots, config.vocab_size), jnp.float32)
        self._end_ids = jnp.asarray(tokenizer.end_ids, jnp.int32)

    def finished(self) -> Iterator[tuple[int, Transcript]]:
        """Runs to the end; yields (place in the list, Transcript) as Scripts finish."""
        while True:
            for i, slot in enumerate(self._live):
                if slot is not None and slot.segment is None:
                    self._held[i], self._live[i] = slot.context, None
                    yield slot.order, slot.transcript
            if not self._queue and not any(self._live):
                return
            self._refill()
            self._feed()
            self._score()
            self._burst()

    def _refill(self) -> None:
        """Gives idle slots the next Scripts, each from the longest beginning that a slot holds."""
        forks: list[tuple[int, int]] = []
        idle = [i for i, slot in enumerate(self._live) if slot is None]
        while idle and self._queue:
            order, program = self._queue.popleft()
            slot = Slot(program, order, self._shared, self._tokenizer)
            source, length = self._longest_held(slot.feed)
            i = source if source in idle else idle[0]
            idle.remove(i)
            self._live[i] = slot
            if length < LEAST_FORK:
                continue
            leader = self._live[source] if source != i else None
            if leader is not None and len(leader.context) < length:
                self._leaders[i] = source, length  # it is still being read
            else:
                slot.forked(length)
                self._stats.forked += length
                forks += [(source, i)] if source != i else []
        self._fork(forks)

    def _longest_held(self, tokens: list[int]) -> tuple[int, int]:
        """The slot that holds, or is about to read, the longest beginning of `tokens`.

        At least one token stays to be read, for the logits after it.
        """
        best = 0, -1
        for i, slot in enumerate(self._live):
            held = self._held[i] if slot is None else slot.context + slot.opening_feed
            best = max(best, (min(common_length(held, tokens), len(tokens) - 1), -i))
        return -best[1], best[0]

    def _fork(self, forks: list[tuple[int, int]]) -> None:
        """Copies slots to slots, all at once: a copy of a copy is made from the first."""
        first: dict[int, int] = {}
        for source, target in forks:
            first[target] = first.get(source, source)
        forks = [(source, target) for target, source in first.items()]
        for start in range(0, len(forks), self._row_counts[-1]):
            part = forks[start : start + self._row_counts[-1]]
            rows = bucket(len(part), self._row_counts)
            longest = max(len(self._live[target].context) for _, target in part)
            self._cache = programs.fork(
                self._cache,
                padded([source for source, _ in part], rows, 0),
                padded([target for _, target in part], rows, self._size),
                limit=self._limit(longest),
            )

    def _follow(self) -> None:
        """Forks the slots whose leaders have by now read what they share."""
        ready = []
        for i, (leader, length) in list(self._leaders.items()):
            if len(self._live[leader].context) >= length:
                del self._leaders[i]
                self._live[i].forked(length)
                self._stats.forked += length
                ready.append((leader, i))
        self._fork(ready)

    def _feed(self) -> None:
        """Reads all forced tokens that slots wait for, longest first, in padded groups."""
        while True:
            self._follow()
            waiting = [
                (-len(slot.feed), i)
                for i, slot in enumerate(self._live)
                if slot is not None and slot.segment is not None and slot.feed
                if i not in self._leaders
            ]
            if not waiting:
                return
            waiting.sort()
            width = bucket(-waiting[0][0], WIDTHS)
            most = max(1, min(self._size, BUDGET // width))
            few = max(1, most // 4)
            rows = few if len(waiting) <= few else most
            group = [i for _, i in waiting[:rows]]
            chunks = {i: self._live[i].feed[:width] for i in group}
            lengths = {i: len(self._live[i].context) for i in group}
            # A call on all slots takes them in their own order; the others read nothing.
            order = list(range(self._size)) if rows == self._size else group
            self._cache, self._logits = extend(
                self._params,
                self._cache,
                self._logits,
                self._prefix,
                [i if i in chunks else self._size for i in order],
                [lengths.get(i, 0) for i in order],
                [chunks.get(i, []) for i in order],
                rows,
                width,
                limit=self._limit(max(lengths.values())),
                **self._static,
            )
            for i, chunk in chunks.items():
                self._live[i].fed(len(chunk))
            self._stats.read += sum(map(len, chunks.values()))
            self._stats.read_padded += rows * width

    def _limit(self, length: int) -> int:
        return bucket(length, self._limits)

    def _score(self) -> None:
        """Answers every Choose that slots stand at."""
        while standing := [i for i, s in enumerate(self._live) if wants(s, Choose)]:
            pairs = [(i, option) for i in standing for option in self._live[i].options]
            scores: list[float] = []
            width = max(len(o) for _, o in pairs)
            width = bucket(width, OPTION_WIDTHS) if width <= OPTION_WIDTHS[-1] else width
            rows = bucket(len(pairs), self._row_counts)
            for start in range(0, len(pairs), rows):
                part = pairs[start : start + rows]
                lengths = [len(self._live[i].context) for i, _ in part]
                tokens = np.zeros((rows, width), np.int32)
                for row, (_, option) in enumerate(part):
                    tokens[row, : len(option)] = option
                result = programs.score(
                    self._params,
                    self._cache,
                    self._logits,
                    self._prefix,
                    padded([i for i, _ in part], rows, self._size),
                    padded(lengths, rows, 0),
                    jnp.asarray(tokens),
                    padded([len(o) for _, o in part], rows, 1),
                    limit=self._limit(max(lengths)),
                    **self._static,
                )
                scores += np.asarray(result)[: len(part)].tolist()
            for i in standing:
                count = len(self._live[i].options)
                self._live[i].chose(scores[:count])
                del scores[:count]

    def _burst(self) -> None:
        """Samples in all slots that stand at a Sample, until enough of them are finished."""
        drawing = [i for i, s in enumerate(self._live) if wants(s, Sample)]
        if not drawing:
            return
        rows = bucket(len(drawing), self._row_counts)
        order = list(range(self._size)) if rows == self._size else drawing
        slots = [self._live[i] if i in drawing else None for i in order]
        numbers = [i if s else self._size for i, s in zip(order, slots, strict=True)]
        slots += [None] * (rows - len(slots))
        more = self._queue or any(s and s.segments_left > 1 for s in slots)
        self._cache, tokens, logprobs, counts, states, reasons = programs.decode(
            self._params,
            self._cache,
            self._logits,
            self._prefix,
            padded(numbers, rows, self._size),
            padded([len(s.context) if s else 0 for s in slots], rows, 0),
            self._draws(slots),
            self._stops[0],
            self._end_ids,
            jnp.int32(max(1, rows // 4) if more else rows),
            limit=self._limit(max(len(s.context) + s.most_to_come(STEPS) for s in slots if s)),
            steps=STEPS,
            **self._static,
        )
        counts, tokens, logprobs, states, reasons = map(
            np.asarray, (counts, tokens, logprobs, states, reasons)
        )
        for row, slot in enumerate(slots):
            if slot is not None:
                n = int(counts[row])
                slot.drew(
                    tokens[row, :n].tolist(),
                    logprobs[row, :n].tolist(),
                    int(states[row]),
                    int(reasons[row]),
                )
        self._stats.sampled += int(counts.sum())
        self._stats.rows_computed += rows * int(counts.max())

    def _draws(self, slots: list[Slot | None]) -> programs.Draws:
        """The burst's rows as arrays; rows without a slot are inactive."""

        def column(of, otherwise, dtype):
            return jnp.asarray([of(s) if s else otherwise for s in slots], dtype)

        keys = [self._keys[s.order] if s else np.zeros(2, np.uint32) for s in slots]
        starts = self._stops[1]
        return programs.Draws(
            active=column(lambda s: True, False, bool),
            fresh=column(lambda s: not s.sampled, False, bool),
            pending=column(lambda s: s.sampled[-1] if s.sampled else 0, 0, jnp.int32),
            key=jnp.asarray(np.stack(keys)),
            segment=column(lambda s: len(s.results), 0, jnp.int32),
            sampled=column(lambda s: len(s.sampled), 0, jnp.int32),
            limit=column(lambda s: s.segment.max_new_tokens, 1, jnp.int32),
            temperature=column(lambda s: s.segment.temperature, 0.0, jnp.float32),
            top_p=column(lambda s: s.segment.top_p, 1.0, jnp.float32),
            stop_state=column(
                lambda s: s.stop_state if s.sampled else starts[s.segment.stop], 1, jnp.int32
            ),
        )


def extend(params, cache, logits, prefix, slots, lengths, chunks, rows, width, **static):
    """`programs.extend` on lists, padded to `rows` and `width`."""
    tokens = np.zeros((rows, width), np.int32)
    for row, chunk in enumerate(chunks):
        tokens[row, : len(chunk)] = chunk
    return programs.extend(
        params,
        cache,
        logits,
        prefix,
        padded(slots, rows, logits.shape[0]),
        padded(lengths, rows, 0),
        jnp.asarray(tokens),
        padded([len(c) for c in chunks], rows, 0),
        **static,
    )


def padded(values: list[int], rows: int, filler: int) -> jax.Array:
    """int32[rows] of the values and then fillers."""
    return jnp.asarray([*values, *[filler] * (rows - len(values))], jnp.int32)
