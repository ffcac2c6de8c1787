"""Runs Scripts: slots of a shared cache, filled, read forward and refilled until all are done."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax import rng
from cai_jax.decoding import programs
from cai_jax.decoding.schedule import (
    Program,
    ScriptError,
    Slot,
    bucket,
    compile_script,
    read_limits,
    shared_prefix,
    wants,
)
from cai_jax.decoding.stops import stop_tables
from cai_jax.models import kv_cache
from cai_jax.script import Choose, Sample, Script, Transcript

LEAST_PREFIX = 16  # a shorter shared prefix is not worth a part of its own
SHORTEST = 128  # smallest buffer for slots and prefixes, in tokens
WIDTHS = (16, 64, 128, 256)  # chunks in which forced tokens are read
BUDGET = 1024  # tokens read in one call, padding counted
STEPS = 64  # most tokens a slot samples in one burst


@dataclasses.dataclass
class Stats:
    """What a run did: tokens sampled, read, spared by sharing; rows of bursts used and computed."""

    sampled: int = 0
    read: int = 0
    shared: int = 0
    rows_used: int = 0
    rows_computed: int = 0

    @property
    def occupancy(self) -> float:
        return self.rows_used / max(self.rows_computed, 1)


class Engine:
    """A jitted batched decoding loop over Scripts.

    Attributes:
      params: the weights in use; assign a tree of the same shapes to decode with others.
      stats: counts of the latest run.
    """

    def __init__(self, model, slots: int = 32, max_length: int = 1024):
        """Sets sizes; the cache is made when a run starts.

        Args:
          model: config, params, tokenizer.
          slots: Scripts in progress at a time.
          max_length: the longest context of a slot, in tokens, a shared prefix left out.
        """
        self.config, self.params, self.tokenizer = model.config, model.params, model.tokenizer
        self.slots, self.max_length = slots, max_length
        self.dtype = jax.tree.leaves(model.params)[0].dtype
        self.limits = (0, *read_limits(min(SHORTEST, max_length), max_length))
        self.row_counts = tuple(sorted({*(r for r in (1, 4, 16) if r < slots), slots}))
        self.stats = Stats()
        self._token_bytes: list[bytes] | None = None

    def run(
        self,
        scripts: list[Script],
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Transcript]:
        """Runs every Script and returns Transcripts in the same order.

        A sample depends on (seed, script id, segment, token index) and the context alone.

        Args:
          scripts: with distinct ids.
          seed: of the sampling keys.
          progress: called with (finished, total) as Scripts finish.

        Raises:
          ScriptError: ids that repeat, or a Script that cannot fit; before anything runs.
        """
        if not scripts:
            return []
        compiled = self._compile(scripts)
        shared = shared_prefix(compiled, LEAST_PREFIX)
        self._check_fits(compiled, shared)
        self._start(compiled, shared, seed)
        queue = deque((i, p) for i, p in enumerate(compiled))
        transcripts: list[Transcript | None] = [None] * len(scripts)
        finished = 0
        while finished < len(scripts):
            for i, slot in enumerate(self._live):
                if slot is not None and slot.segment is None:
                    transcripts[slot.order] = slot.transcript
                    finished += 1
                    self._live[i] = None
                if self._live[i] is None and queue:
                    order, program = queue.popleft()
                    self._live[i] = Slot(program, order, shared, self.tokenizer)
            if progress:
                progress(finished, len(scripts))
            self._feed()
            self._score()
            self._burst(waiting=bool(queue))
        self._cache = self._logits = self._prefix = None  # give the memory back
        return transcripts

    def _compile(self, scripts: list[Script]) -> list[Program]:
        seen: set[str] = set()
        for script in scripts:
            if script.id in seen:
                raise ScriptError(f"two scripts share the id '{script.id}'; ids must be distinct.")
            seen.add(script.id)
        return [compile_script(script, self.tokenizer) for script in scripts]

    def _check_fits(self, compiled: list[Program], shared: int) -> None:
        for program in compiled:
            if program.longest > self.config.context:
                limit, of = self.config.context, "the model's context"
            elif program.longest - shared > self.max_length:
                limit, of = self.max_length + shared, "the engine's max_length"
            else:
                continue
            raise ScriptError(
                f"script '{program.script.id}' can need {program.longest} tokens, {of} is "
                f"{limit}; shorten the prompt or lower max_new_tokens."
            )

    def _start(self, compiled: list[Program], shared: int, seed: int) -> None:
        """Buffers, keys, stop automaton and the shared prefix of a run."""
        self.stats = Stats(shared=shared * (len(compiled) - 1))
        longest = max(p.longest for p in compiled) - shared
        capacity = bucket(longest, self.limits[1:])
        self._live: list[Slot | None] = [None] * self.slots
        self._cache = kv_cache.empty(self.config, self.slots, capacity, self.dtype)
        self._logits = jnp.zeros((self.slots, self.config.vocab_size), jnp.float32)
        keys = rng.example_keys(seed, "decode", [p.script.id for p in compiled])
        self._keys = np.asarray(jax.random.key_data(keys))
        stop_sets = {s.stop for p in compiled for s in p.script.segments if isinstance(s, Sample)}
        self._stop_table, self._stop_starts = self._stops(sorted(stop_sets))
        self._end_ids = jnp.asarray(self.tokenizer.end_ids, jnp.int32)
        self._prefix = self._read_prefix(compiled[0].prefix[:shared]) if shared else None

    def _stops(self, stop_sets: list[tuple[str, ...]]):
        if any(stop_sets) and self._token_bytes is None:
            ids = range(self.config.vocab_size)
            known = self.tokenizer.vocab_size
            self._token_bytes = [self.tokenizer.token_bytes(i) if i < known else b"" for i in ids]
        table, starts = stop_tables(stop_sets, self._token_bytes or [b""] * self.config.vocab_size)
        return jnp.asarray(table), starts

    def _read_prefix(self, tokens: tuple[int, ...]) -> programs.Prefix:
        """Computes the shared prefix's keys and values, once, in chunks."""
        capacity = max(SHORTEST, 1 << (len(tokens) - 1).bit_length())
        cache = kv_cache.empty(self.config, 1, capacity, self.dtype)
        scratch = jnp.zeros((1, self.config.vocab_size), jnp.float32)
        for start in range(0, len(tokens), WIDTHS[-1]):
            chunk = tokens[start : start + WIDTHS[-1]]
            cache, scratch = self._extend(
                cache, scratch, None, [0], [start], [chunk], 1, capacity if start else 0
            )
        self.stats.read += len(tokens)
        return programs.Prefix(cache, jnp.int32(len(tokens)))

    def _extend(self, cache, logits, prefix, slots, lengths, chunks, rows, limit):
        """Pads a call of `programs.extend` to `rows` and a chunk width."""
        width = bucket(max(map(len, chunks)), WIDTHS)
        tokens = np.zeros((rows, width), np.int32)
        for row, chunk in enumerate(chunks):
            tokens[row, : len(chunk)] = chunk
        return programs.extend(
            self.params,
            cache,
            logits,
            prefix,
            _padded(slots, rows, logits.shape[0]),
            _padded(lengths, rows, 0),
            jnp.asarray(tokens),
            _padded([len(c) for c in chunks], rows, 0),
            config=self.config,
            dtype=self.dtype,
            limit=limit,
        )

    def _feed(self) -> None:
        """Reads all forced tokens that slots wait for, longest first, in padded groups."""
        while True:
            # A slot whose Script is done needs nothing read.
            waiting = [
                (len(slot.feed), i)
                for i, slot in enumerate(self._live)
                if slot is not None and slot.segment is not None and slot.feed
            ]
            if not waiting:
                return
            waiting.sort(key=lambda item: (-item[0], item[1]))
            width = bucket(waiting[0][0], WIDTHS)
            most = max(1, min(self.slots, BUDGET // width))
            few = max(1, most // 4)
            rows = few if len(waiting) <= few else most
            group = [i for _, i in waiting[:rows]]
            if rows == self.slots:  # a full call takes the slots in their own order
                wanted = set(group)
                group = list(range(self.slots))
            else:
                wanted = set(group)
            chunks = [self._live[i].feed[:width] if i in wanted else [] for i in group]
            lengths = [len(self._live[i].context) if i in wanted else 0 for i in group]
            self._cache, self._logits = self._extend(
                self._cache,
                self._logits,
                self._prefix,
                [i if i in wanted else self.slots for i in group],
                lengths,
                chunks,
                rows,
                self._limit(max(lengths)),
            )
            for i, chunk in zip(group, chunks, strict=True):
                if i in wanted:
                    self._live[i].fed(len(chunk))
                    self.stats.read += len(chunk)

    def _limit(self, length: int) -> int:
        return bucket(length, tuple(x for x in self.limits if x <= self._cache.k.shape[3]))

    def _score(self) -> None:
        """Answers every Choose that slots stand at; one call for each width of options."""
        while standing := [i for i, s in enumerate(self._live) if wants(s, Choose)]:
            pairs = [(i, option) for i in standing for option in self._live[i].options]
            scores: list[float] = []
            width = bucket(max(len(o) for _, o in pairs), (1, 4, 16, 64, self.max_length))
            rows = bucket(len(pairs), self.row_counts)
            for start in range(0, len(pairs), rows):
                part = pairs[start : start + rows]
                lengths = [len(self._live[i].context) for i, _ in part]
                tokens = np.zeros((rows, width), np.int32)
                for row, (_, option) in enumerate(part):
                    tokens[row, : len(option)] = option
                result = programs.score(
                    self.params,
                    self._cache,
                    self._logits,
                    self._prefix,
                    _padded([i for i, _ in part], rows, self.slots),
                    _padded(lengths, rows, 0),
                    jnp.asarray(tokens),
                    _padded([len(o) for _, o in part], rows, 1),
                    config=self.config,
                    dtype=self.dtype,
                    limit=self._limit(max(lengths)),
                )
                scores += np.asarray(result)[: len(part)].tolist()
            for i in standing:
                count = len(self._live[i].options)
                self._live[i].chose(scores[:count])
                del scores[:count]

    def _burst(self, waiting: bool) -> None:
        """Samples in all slots that stand at a Sample, until enough of them are finished."""
        drawing = [i for i, s in enumerate(self._live) if wants(s, Sample)]
        if not drawing:
            return
        rows = bucket(len(drawing), self.row_counts)
        order = list(range(self.slots)) if rows == self.slots else drawing
        order = order + [None] * (rows - len(order))
        slots = [self._live[i] if i in drawing else None for i in order]
        more = waiting or any(s and s.segments_left > 1 for s in slots)
        lengths = [len(s.context) if s else 0 for s in slots]
        self._cache, tokens, logprobs, counts, states, reasons = programs.decode(
            self.params,
            self._cache,
            self._logits,
            self._prefix,
            _padded([i if s else self.slots for i, s in zip(order, slots, strict=True)], rows, 0),
            _padded(lengths, rows, 0),
            self._draws(slots),
            self._stop_table,
            self._end_ids,
            jnp.int32(max(1, rows // 4) if more else rows),
            config=self.config,
            dtype=self.dtype,
            limit=self._limit(max(len(s.context) + s.most_to_come(STEPS) for s in slots if s)),
            steps=STEPS,
        )
        counts, tokens, logprobs = map(np.asarray, (counts, tokens, logprobs))
        states, reasons = np.asarray(states), np.asarray(reasons)
        for row, slot in enumerate(slots):
            if slot is not None:
                n = int(counts[row])
                slot.drew(
                    tokens[row, :n].tolist(),
                    logprobs[row, :n].tolist(),
                    int(states[row]),
                    int(reasons[row]),
                )
        self.stats.sampled += int(counts.sum())
        self.stats.rows_used += int(counts.sum())
        self.stats.rows_computed += rows * int(counts.max())

    def _draws(self, slots: list[Slot | None]) -> programs.Draws:
        """The burst's rows as arrays; rows without a slot are inactive."""

        def column(of, otherwise, dtype):
            return jnp.asarray([of(s) if s else otherwise for s in slots], dtype)

        return programs.Draws(
            active=column(lambda s: True, False, bool),
            fresh=column(lambda s: not s.sampled, False, bool),
            pending=column(lambda s: s.sampled[-1] if s.sampled else 0, 0, jnp.int32),
            key=jnp.asarray(
                np.stack([self._keys[s.order] if s else np.zeros(2, np.uint32) for s in slots])
            ),
            segment=column(lambda s: len(s.results), 0, jnp.int32),
            sampled=column(lambda s: len(s.sampled), 0, jnp.int32),
            limit=column(lambda s: s.segment.max_new_tokens, 1, jnp.int32),
            temperature=column(lambda s: s.segment.temperature, 0.0, jnp.float32),
            top_p=column(lambda s: s.segment.top_p, 1.0, jnp.float32),
            stop_state=column(
                lambda s: s.stop_state if s.sampled else self._stop_starts[s.segment.stop],
                1,
                jnp.int32,
            ),
        )


def _padded(values: list[int], rows: int, filler: int) -> jax.Array:
    return jnp.asarray([*values, *[filler] * (rows - len(values))], jnp.int32)
