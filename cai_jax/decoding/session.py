"""One run of the engine: slots of a shared cache, filled, read forward, sampled and refilled.

Everything here follows from the Scripts and from what the programs return, which all hosts of a pod
hold alike; so all hosts decide alike, with one exchange a burst and none a token.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from cai_jax.decoding.calls import Calls
from cai_jax.decoding.options import OptionTree
from cai_jax.decoding.schedule import Program, Slot, wants
from cai_jax.decoding.sharing import common_length
from cai_jax.decoding.stats import Stats
from cai_jax.script import Choose, Sample, Transcript
from cai_jax.tokenizer import Tokenizer

LEAST_FORK = 16  # a shorter common beginning is read again rather than copied


class Session:
    """The state of a run.

    Args:
      calls: the programs on the run's buffers.
      tokenizer: of the model.
      queue: (place in the list, Script in tokens), in the order in which they start.
      shared: how many of their first tokens stand in the prefix that all read.
      stats: counts to add to.
      on_text: as in `Engine.run`.
    """

    def __init__(
        self,
        calls: Calls,
        tokenizer: Tokenizer,
        queue: list[tuple[int, Program]],
        shared: int,
        stats: Stats,
        on_text: Callable[[str, str], None] | None = None,
    ):
        self._calls, self._tokenizer, self._shared, self._stats = calls, tokenizer, shared, stats
        self._queue, self._on_text = deque(queue), on_text
        self._live: list[Slot | None] = [None] * calls.slots
        self._held: list[list[int]] = [[] for _ in self._live]  # tokens left in idle slots
        self._leaders: dict[int, tuple[int, int]] = {}  # slot -> (slot it forks from, how much)

    def finished(self) -> Iterator[tuple[int, Transcript]]:
        """Runs to the end; yields (place in the list, Transcript) as Scripts finish."""
        while True:
            for i, slot in enumerate(self._live):
                if slot is not None and slot.segment is None:
                    self._held[i], self._live[i] = slot.context, None
                    yield slot.order, slot.transcript
            if not self._queue and not any(self._live):
                return
            start = time.perf_counter()
            self._refill()
            self._feed()
            read = time.perf_counter()
            self._score()
            scored = time.perf_counter()
            self._burst()
            self._stats.read_seconds += read - start
            self._stats.score_seconds += scored - read
            self._stats.sample_seconds += time.perf_counter() - scored

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
        if first:
            longest = max(len(self._live[target].context) for target in first)
            self._calls.fork([(source, target) for target, source in first.items()], longest)

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
        """Reads all forced tokens that slots wait for, in calls packed with tokens."""
        while True:
            self._follow()
            waiting = {
                i: slot.feed
                for i, slot in enumerate(self._live)
                if slot is not None and slot.segment is not None and slot.feed
                if i not in self._leaders
            }
            if not waiting:
                break
            taken = self._calls.extend(waiting, {i: len(self._live[i].context) for i in waiting})
            for i, count in taken.items():
                self._live[i].fed(count)
        self._calls.wait()

    def _score(self) -> None:
        """Answers every Choose that slots stand at."""
        while standing := [i for i, s in enumerate(self._live) if wants(s, Choose)]:
            trees = {i: OptionTree.of(self._live[i].options) for i in standing}
            lengths = {i: len(self._live[i].context) for i in standing}
            for i, logprobs in self._calls.score(trees, lengths).items():
                self._live[i].chose(trees[i].sums(logprobs))

    def _burst(self) -> None:
        """Samples in all slots that stand at a Sample, until enough of them are finished."""
        drawing = {i: s for i, s in enumerate(self._live) if wants(s, Sample)}
        if not drawing:
            return
        more = self._queue or any(s.segments_left > 1 for s in drawing.values())
        if more:  # few enough that slots stand idle for a moment only, enough for a full call
            enough = max(1, len(drawing) // 16)
        else:  # so many that the rest fits a call of fewer rows
            fewer = (rows for rows in self._calls.row_counts if rows < len(drawing))
            enough = len(drawing) - max(fewer, default=0)
        drawn = self._calls.decode(drawing, enough)
        for i, (tokens, logprobs, stop_state, reason) in drawn.items():
            drawing[i].drew(tokens, logprobs, stop_state, reason)
            if self._on_text and not reason:
                self._on_text(drawing[i].program.script.id, drawing[i].settled)
