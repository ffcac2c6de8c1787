"""Which tokens each slot reads next: Scripts as token programs, and the state of a slot.

Plain Python on data that every host has, so all hosts of a pod decide alike.
"""

from __future__ import annotations

import bisect
import codecs
import dataclasses
import itertools
import math

from cai_jax.decoding.stops import cut_at_stop
from cai_jax.script import Force, Sample, Script, Segment, SegmentResult, Transcript
from cai_jax.tokenizer import Tokenizer

END, STOP, LENGTH = 1, 2, 3  # why a sampled segment ended; 0 while it runs
REASONS = {END: "end", STOP: "stop", LENGTH: "length"}


class ScriptError(ValueError):
    """A Script that the engine cannot run."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A Script in tokens.

    Attributes:
      script: the Script.
      tokens: for each segment, Force: its tokens; Choose: a tuple of each option's; Sample: ().
      prefix: all tokens that stand before the first Sample or Choose, BOS included.
      longest: the most context tokens the Script can come to need.
    """

    script: Script
    tokens: tuple[tuple, ...]
    prefix: tuple[int, ...]
    longest: int


def compile_script(script: Script, tokenizer: Tokenizer) -> Program:
    """Tokenizes a Script, segment by segment.

    Raises:
      ScriptError: nothing to read before the first Sample or Choose, an empty option, or a Sample
        whose settings mean nothing.
    """
    tokens: list[tuple] = []
    bos = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    prefix, opening, longest = list(bos), True, len(bos)
    for segment in script.segments:
        if isinstance(segment, Force):
            ids = tuple(tokenizer.encode(segment.text, control=segment.control))
            prefix += ids if opening else ()
            longest += len(ids)
            tokens.append(ids)
            continue
        if opening and not prefix:
            raise ScriptError(
                f"script '{script.id}' asks for text before it forces any; begin with a Force."
            )
        opening = False
        if isinstance(segment, Sample):
            _check_sample(segment, script.id)
            # A token cut by a stop string may come back as a few shorter ones.
            longest += segment.max_new_tokens + (8 if segment.stop else 0)
            tokens.append(())
        else:
            options = tuple(tuple(tokenizer.encode(option)) for option in segment.options)
            if not options or not all(options):
                raise ScriptError(f"script '{script.id}' has a Choose with an empty option.")
            longest += max(map(len, options))
            tokens.append(options)
    return Program(script, tuple(tokens), tuple(prefix), longest)


def _check_sample(sample: Sample, script: str) -> None:
    wrong = {
        "max_new_tokens": (sample.max_new_tokens, sample.max_new_tokens >= 1, "at least 1"),
        "temperature": (sample.temperature, 0 <= sample.temperature < math.inf, "0 or more"),
        "top_p": (sample.top_p, 0 < sample.top_p <= 1, "above 0 and at most 1"),
        "top_k": (sample.top_k, sample.top_k >= 0, "0 or more"),
        "min_new_tokens": (sample.min_new_tokens, sample.min_new_tokens >= 0, "0 or more"),
        "stop": (sample.stop, all(sample.stop), "made of strings that are not empty"),
    }
    for field, (value, fine, must) in wrong.items():
        if not fine:
            raise ScriptError(
                f"script '{script}' has a Sample whose {field} is {value!r}; it must be {must}."
            )


class Slot:
    """One sequence on its way through a Script.

    Attributes:
      context: tokens whose keys and values stand in the slot, the shared prefix left out.
      feed: tokens still to be read.
      segment: index of the segment in progress.
      sampled, logprobs: what the current Sample has written so far.
      stop_state: where its text stands in the stop automaton.
    """

    def __init__(self, program: Program, order: int, shared: int, tokenizer: Tokenizer):
        self.program = program
        self.order = order
        self.tokenizer = tokenizer
        self.context: list[int] = []
        self.feed = list(program.prefix[shared:])
        self._opening_length = len(self.feed)
        self.logits_ready = False  # the slot's logits follow its whole context
        self.results: list[SegmentResult] = []
        self.sampled: list[int] = []
        self.logprobs: list[float] = []
        self.stop_state = 0
        self._opening = True
        self._advance()

    @property
    def segment(self) -> Segment | None:
        """The Sample or Choose in progress, or None when the Script is done."""
        index = len(self.results)
        segments = self.program.script.segments
        return segments[index] if index < len(segments) else None

    @property
    def segments_left(self) -> int:
        """How many segments are unanswered, the current one counted."""
        return len(self.program.script.segments) - len(self.results)

    @property
    def opening_feed(self) -> list[int]:
        """What the slot is still to read of its first Forces; nothing once it has sampled, and
        nothing where the Script asks for nothing, for then they are not read."""
        unread = self.segment is not None and len(self.context) < self._opening_length
        return self.feed if unread else []

    def most_to_come(self, steps: int) -> int:
        """The most tokens that a burst of so many steps can add to the slot."""
        return min(steps, self.segment.max_new_tokens - len(self.sampled))

    @property
    def options(self) -> tuple[tuple[int, ...], ...]:
        """The current Choose's options in tokens."""
        return self.program.tokens[len(self.results)]

    @property
    def settled(self) -> str:
        """The text of the Sample underway but for its end, which may be half a character or the
        beginning of a stop string."""
        data = b"".join(map(self._bytes, self.sampled))
        unsure = max((len(stop.encode()) for stop in self.segment.stop), default=1) - 1
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return decoder.decode(data[: max(0, len(data) - unsure)])

    def _advance(self) -> None:
        """Moves Forces into the feed until a Sample or Choose is next; leaves nothing unread."""
        while isinstance(self.segment, Force):
            ids = self.program.tokens[len(self.results)]
            if not self._opening:  # the opening Forces are the program's prefix
                self.feed += ids
            self.results.append(SegmentResult(text=self.segment.text, tokens=ids))
        self._opening = False
        if self.segment is not None and not self.feed and not self.logits_ready:
            self.feed = [self.context.pop()]  # read again for the logits that follow it

    def forked(self, count: int) -> None:
        """Records that the next `count` tokens of the feed came from another slot's cache."""
        self.context += self.feed[:count]
        del self.feed[:count]

    def fed(self, count: int) -> None:
        """Records that the next `count` tokens of the feed were read."""
        self.context += self.feed[:count]
        del self.feed[:count]
        self.logits_ready = True

    def drew(self, tokens: list[int], logprobs: list[float], stop_state: int, reason: int) -> None:
        """Records sampled tokens; all but the newest stand in the slot. `reason` 0: goes on."""
        first = 0 if self.sampled else 1
        self.context += (self.sampled[-1:] + tokens)[: len(tokens) - first]
        self.sampled += tokens
        self.logprobs += logprobs
        self.stop_state = stop_state
        self.logits_ready = False
        if reason:
            self._close_sample(reason)

    def _close_sample(self, reason: int) -> None:
        """Ends a Sample: its result, and the context as a following Force shall find it."""
        written = self.sampled[:-1] if reason == END else self.sampled
        pieces = [self._bytes(token) for token in written]
        data, keep, rest = b"".join(pieces), len(written), b""
        if reason == STOP:
            # Only tokens wholly before the stop string stay; a remainder is read as forced text.
            data = data[: cut_at_stop(data, self.segment.stop)]
            ends = list(itertools.accumulate(map(len, pieces), initial=0))
            keep = bisect.bisect_right(ends, len(data)) - 1
            if ends[keep] < len(data):  # a remainder begins with a whole character
                keep = bisect.bisect_right(ends, _character_start(data, ends[keep])) - 1
            rest = data[ends[keep] :]
        text = data.decode("utf-8", errors="replace")
        tokens, logprobs = tuple(self.sampled), tuple(self.logprobs)
        in_slot = len(self.sampled) - 1
        if keep < in_slot:
            del self.context[len(self.context) - (in_slot - keep) :]
        else:
            self.feed += written[in_slot:keep]
        if rest:
            self.feed += self.tokenizer.encode(rest.decode("utf-8", errors="replace"))
        self.results.append(SegmentResult(text, tokens, logprobs, stop_reason=REASONS[reason]))
        self.sampled, self.logprobs, self.stop_state = [], [], 0
        self._advance()

    def _bytes(self, token: int) -> bytes:
        """A token's bytes; a row of the embedding that the tokenizer does not know has none."""
        return self.tokenizer.token_bytes(token) if token < self.tokenizer.vocab_size else b""

    def chose(self, option_logprobs: list[float]) -> None:
        """Records a Choose; the context stays as it was."""
        self.results.append(SegmentResult(option_logprobs=tuple(option_logprobs)))
        self._advance()

    @property
    def transcript(self) -> Transcript:
        return Transcript(self.program.script.id, tuple(self.results))


def _character_start(data: bytes, at: int) -> int:
    """`at`, or the start of the UTF-8 character that it stands inside of."""
    start = at
    while start > 0 and at - start < 3 and data[start] & 0xC0 == 0x80:
        start -= 1
    return start


def bucket(n: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds n, or the largest."""
    return next((b for b in buckets if b >= n), buckets[-1])


def read_limits(low: int, high: int) -> tuple[int, ...]:
    """low, 2 low, 3 low, 4 low, 6 low, 8 low, ... and high itself: few, and none much too long."""
    steps = [low << i for i in range(max(1, (high // low).bit_length()))]
    steps += [3 * step // 2 for step in steps[1:]]
    return (*sorted(step for step in steps if step < high), high)


def wants(slot: Slot | None, kind: type) -> bool:
    """Whether a slot has read all it must and now stands at a Sample or a Choose."""
    return slot is not None and not slot.feed and isinstance(slot.segment, kind)
