"""An engine that answers from a function instead of a model, and keeps what it was asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cai_jax.script import Choose, Force, Sample, Script, SegmentResult, Transcript


class ScriptedEngine:
    """Args:
    answer: of (script, segment) with a Sample its text, with a Choose its option log-probs.
    longest: characters of forced text above which a Script is refused, where that is allowed.
    """

    def __init__(self, answer: Callable, longest: int = 100_000):
        self.answer, self.longest = answer, longest
        self.scripts: list[Script] = []
        self.runs: list[int] = []  # Scripts in each

    def run(self, scripts, seed=0, progress=None, refused=None) -> list[Transcript | None]:
        self.scripts += scripts
        self.runs.append(len(scripts))
        return [
            Transcript(s.id, tuple(self._result(s, segment) for segment in s.segments))
            if refused is None or len(forced(s)) <= self.longest
            else None
            for s in scripts
        ]

    def _result(self, script: Script, segment) -> SegmentResult:
        if isinstance(segment, Force):
            return SegmentResult(segment.text)
        if isinstance(segment, Choose):
            return SegmentResult(option_logprobs=self.answer(script, segment))
        assert isinstance(segment, Sample)
        return SegmentResult(self.answer(script, segment), (1, 2), (-0.5, -0.5), (), "stop")

    def asked(self, start: str) -> list[Script]:
        """The Scripts whose ids begin so."""
        return [script for script in self.scripts if script.id.startswith(start)]


def forced(script: Script) -> str:
    """All text that a Script forces."""
    return "".join(s.text for s in script.segments if isinstance(s, Force))


def words(script: Script, segment) -> str:
    """An answer that follows from the Script's id and the segment's place, with spaces around."""
    place = [id(s) for s in script.segments].index(id(segment))
    return f" said-{hashlib.sha256(f'{script.id} {place}'.encode()).hexdigest()[:8]} "
