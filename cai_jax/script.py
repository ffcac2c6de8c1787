"""The one way to ask a model for anything: a Script of segments in, a Transcript out."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Force:
    """Text the model must read.

    Attributes:
      text: the text; it is tokenized by itself and never merges with its neighbours.
      control: whether the text may contain control tokens. Only a chat format sets it; user and
        model text never parses into a control token.
    """

    text: str
    control: bool = False


@dataclasses.dataclass(frozen=True)
class Sample:
    """Text the model writes, until an end token, a stop string or `max_new_tokens`.

    Attributes:
      max_new_tokens: the most tokens to sample, the end token counted.
      stop: strings that end the segment; a stop string is not part of the segment's text.
      temperature: 0 takes the likeliest token.
      top_p: the least probability mass the kept tokens must hold; 1 keeps all.
      top_k: how many of the likeliest tokens are kept, before top_p; 0 keeps all.
      min_new_tokens: how many tokens are sampled before an end token may be.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_new_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Choose:
    """Options whose log-probabilities are compared; what follows reads as if nothing was chosen."""

    options: tuple[str, ...]


Segment = Force | Sample | Choose


@dataclasses.dataclass(frozen=True)
class Script:
    """What is asked of a model: segments in order.

    Attributes:
      segments: Force, Sample and Choose in any order; the first is a Force.
      id: names the example. Samples depend on (seed, id) and on nothing else of the run.
    """

    segments: tuple[Segment, ...]
    id: str

    def __post_init__(self):
        object.__setattr__(self, "segments", tuple(self.segments))


@dataclasses.dataclass(frozen=True)
class SegmentResult:
    """What became of one segment.

    Attributes:
      text: the forced or sampled text; empty for Choose.
      tokens: token ids; for Sample the end token included when it was sampled.
      logprobs: for Sample, log-probability in nats of each token under the sampling distribution
        at the segment's temperature, before top-k, top-p and the least length; empty otherwise.
      option_logprobs: for Choose, summed log-probability in nats of each option's tokens.
      stop_reason: for Sample "end" (end token), "stop" (stop string) or "length"; else "".
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    option_logprobs: tuple[float, ...] = ()
    stop_reason: str = ""


@dataclasses.dataclass(frozen=True)
class Transcript:
    """A Script's answer: one SegmentResult for each of its segments, in the same order."""

    id: str
    segments: tuple[SegmentResult, ...]
