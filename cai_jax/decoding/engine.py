"""Runs Scripts: finds what they share, sizes the buffers, and hands out Transcripts."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax import rng
from cai_jax.decoding import programs
from cai_jax.decoding.calls import SIZES, WIDTHS, Calls, padded
from cai_jax.decoding.schedule import Program, ScriptError, bucket, compile_script, read_limits
from cai_jax.decoding.session import LEAST_FORK, Session
from cai_jax.decoding.sharing import running_order, shared_prefix
from cai_jax.decoding.stats import Stats
from cai_jax.decoding.stops import stop_tables
from cai_jax.models import kv_cache
from cai_jax.models.cached import Prefix, unstacked
from cai_jax.models.transformer import Params
from cai_jax.script import Sample, Script, Transcript

LEAST_PREFIX = 16  # a shorter shared prefix is not worth a part of its own
SHORTEST = 128  # smallest buffer for slots and prefixes, in tokens


class Engine:
    """A jitted batched decoding loop over Scripts.

    Attributes:
      stats: counts of the latest run.
    """

    def __init__(self, model, slots: int = 32, max_length: int = 1024):
        """Sets sizes; the cache is made when a run starts.

        Args:
          model: config, params, tokenizer.
          slots: Scripts in progress at a time.
          max_length: the longest context of a slot, in tokens, a shared prefix left out.
        """
        self.config, self.tokenizer = model.config, model.tokenizer
        self.params = model.params
        self.slots, self.max_length = slots, max_length
        self.dtype = jax.tree.leaves(model.params)[0].dtype
        self.limits = read_limits(min(SHORTEST, max_length), max_length)
        self.stats = Stats()
        self._token_bytes: list[bytes] | None = None
        self._called: set[tuple] = set()

    @property
    def params(self) -> Params | None:
        """The weights in use; assign a tree of the same shapes to decode with others, or None to
        let go of them."""
        return self._params

    @params.setter
    def params(self, params: Params | None) -> None:
        self._params, self._unstacked = params, None

    def run(
        self,
        scripts: list[Script],
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
        on_finish: Callable[[Transcript], None] | None = None,
    ) -> list[Transcript]:
        """Runs every Script and returns Transcripts in the same order.

        A sample depends on (seed, script id, segment, token index) and the context alone.

        Args:
          scripts: with distinct ids.
          seed: of the sampling keys.
          progress: called with (finished, total) as Scripts finish.
          on_finish: called with each Transcript as soon as it is whole, while others still run;
            what it was given is kept if the run is then cancelled by an exception.

        Raises:
          ScriptError: ids that repeat, or a Script that cannot fit; before anything runs.
        """
        if not scripts:
            return []
        compiled = self._compile(scripts)
        shared = shared_prefix(compiled, LEAST_PREFIX)
        self._check_fits(compiled, shared)
        self.stats = Stats(shared=shared * (len(compiled) - 1))
        if self._unstacked is None:
            self._unstacked = unstacked(self._params)
        longest = bucket(max(p.longest for p in compiled) - shared, self.limits)
        calls = Calls(
            config=self.config,
            params=self._unstacked,
            dtype=self.dtype,
            prefix=self._read_prefix(compiled[0].prefix[:shared]) if shared else None,
            keys=self._keys(compiled, seed),
            stops=self._stops(compiled),
            end_ids=self.tokenizer.end_ids,
            slots=self.slots,
            limits=tuple(limit for limit in self.limits if limit <= longest),
            stats=self.stats,
            called=self._called,
        )
        queue = [(i, compiled[i]) for i in running_order(compiled, shared, LEAST_FORK)]
        session = Session(calls, self.tokenizer, queue, shared, self.stats)
        transcripts: list[Transcript | None] = [None] * len(scripts)
        for done, (place, transcript) in enumerate(session.finished(), start=1):
            transcripts[place] = transcript
            if on_finish:
                on_finish(transcript)
            if progress:
                progress(done, len(scripts))
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

    def _keys(self, compiled: list[Program], seed: int) -> np.ndarray:
        keys = rng.example_keys(seed, "decode", [p.script.id for p in compiled])
        return np.asarray(jax.random.key_data(keys))

    def _stops(self, compiled: list[Program]) -> tuple[jax.Array, dict[tuple[str, ...], int]]:
        """The stop automaton of all the run's stop strings."""
        sets = {s.stop for p in compiled for s in p.script.segments if isinstance(s, Sample)}
        if any(sets) and self._token_bytes is None:
            ids = range(self.config.vocab_size)
            known = self.tokenizer.vocab_size
            self._token_bytes = [self.tokenizer.token_bytes(i) if i < known else b"" for i in ids]
        nothing = [b""] * self.config.vocab_size
        table, starts = stop_tables(sorted(sets), self._token_bytes or nothing)
        return jnp.asarray(table), starts

    def _read_prefix(self, tokens: tuple[int, ...]) -> Prefix:
        """Computes the shared prefix's keys and values, once, in chunks."""
        capacity = max(SHORTEST, 1 << (len(tokens) - 1).bit_length())
        cache = kv_cache.empty(self.config, 1, capacity, self.dtype)
        scratch = jnp.zeros((1, self.config.vocab_size), jnp.float32)
        for start in range(0, len(tokens), WIDTHS[-1]):
            chunk = tokens[start : start + WIDTHS[-1]]
            size = bucket(len(chunk), SIZES)
            cache, scratch = programs.extend(
                self._unstacked,
                cache,
                scratch,
                None,
                *np.asarray([[0], [start], [len(chunk)]], np.int32),
                padded(list(chunk), size, 0),
                width=min(size, WIDTHS[-1]),
                limit=capacity if start else 0,
                config=self.config,
                dtype=self.dtype,
            )
        self.stats.read += len(tokens)
        return Prefix(cache, np.int32(len(tokens)))
