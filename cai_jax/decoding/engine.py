"""Runs Scripts: finds what they share, sizes the buffers, and hands out Transcripts."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import numpy as np

from cai_jax import rng
from cai_jax.decoding import reading
from cai_jax.decoding.calls import FEW_STEPS, SIZES, STEPS, Calls, padded
from cai_jax.decoding.memory import SHARE, free_bytes, slot_bytes, slots_that_fit
from cai_jax.decoding.schedule import Program, ScriptError, bucket, compile_script, read_limits
from cai_jax.decoding.session import LEAST_FORK, Session
from cai_jax.decoding.sharing import running_order, shared_prefix
from cai_jax.decoding.stats import Stats
from cai_jax.decoding.stops import stop_tables
from cai_jax.mesh import fitted, mesh_of
from cai_jax.models import kv_cache
from cai_jax.models.cached import Prefix
from cai_jax.models.transformer import Params
from cai_jax.models.unstacked import unstacked
from cai_jax.script import Sample, Script, Transcript

LEAST_PREFIX = 16  # a shorter shared prefix is not worth a part of its own
FEWEST = 8  # slots, and steps of their number, with few sizes
SHORTEST = 128  # smallest buffer for slots and prefixes, in tokens


class Engine:
    """A jitted batched decoding loop over Scripts.

    Attributes:
      stats: counts of the latest run.
    """

    def __init__(
        self,
        model,
        slots: int = 32,
        max_length: int = 1024,
        memory_bytes: int | None = None,
        few_sizes: bool = False,
        report: Callable[[Stats], None] | None = None,
    ):
        """Sets sizes; the cache is made when a run starts.

        Args:
          model: config, params, tokenizer.
          slots: Scripts in progress at a time, or as many as memory holds if those are fewer.
          max_length: the longest context of a slot, in tokens, a shared prefix left out.
          memory_bytes: what the cache and the logits may take on a device; by default most of what
            is free when a run starts.
          few_sizes: pad calls to fewer sizes, so that less is compiled and more computed: faster
            where few Scripts run.
          report: called with the counts of each run at its end.
        """
        self.config, self.tokenizer = model.config, model.tokenizer
        self.params = model.params
        self.slots, self.max_length, self.memory_bytes = slots, max_length, memory_bytes
        self.few_sizes, self.report = few_sizes, report
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

    def lay_out(self) -> None:
        """Brings the weights into decoding's layout and waits until they are there; `run` does so
        too where it is not done.

        Raises:
          ValueError: there are no weights.
        """
        if self._unstacked is None:
            if self._params is None:
                raise ValueError("engine.params is None; assign the weights to decode with.")
            self._unstacked = jax.block_until_ready(unstacked(self._params, self.dtype))

    def run(
        self,
        scripts: list[Script],
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
        on_finish: Callable[[Transcript], None] | None = None,
        refused: Callable[[ScriptError], None] | None = None,
        on_text: Callable[[str, str], None] | None = None,
    ) -> list[Transcript | None]:
        """Runs every Script and returns Transcripts in the same order.

        A sample depends on (seed, script id, segment, token index) and the context alone.

        Args:
          scripts: with distinct ids.
          seed: of the sampling keys.
          progress: called with (finished, total) as Scripts finish.
          on_finish: called with each Transcript as soon as it is whole, while others still run;
            what it was given is kept if the run is then cancelled by an exception.
          refused: called before anything runs with an error, by id and length, for each Script
            that cannot fit; the others run, and None is returned in its place. Without it the
            first such error is raised.
          on_text: called every few tokens with (script id, what is settled of the Sample underway).
            The samples are the same; the run is slower.

        Raises:
          ScriptError: ids that repeat, a Script that makes no sense, or one that cannot fit and
            no `refused`; not one slot fits the memory. All before anything runs.
        """
        transcripts: list[Transcript | None] = [None] * len(scripts)
        compiled = self._compile(scripts)
        fitting, shared = self._fitting(compiled, refused)
        if not fitting:
            return transcripts
        self.lay_out()
        running = [compiled[place] for place in fitting]
        longest = bucket(max(p.longest for p in running) - shared, self.limits)
        slots = self._slots(longest, len(running))
        self.stats = Stats(slots=slots, shared=shared * (len(running) - 1))
        calls = Calls(
            config=self.config,
            params=self._unstacked,
            dtype=self.dtype,
            prefix=self._read_prefix(running[0].prefix[:shared]) if shared else None,
            keys=self._keys(compiled, seed),
            stops=self._stops(compiled),
            end_ids=self.tokenizer.end_ids,
            slots=slots,
            limits=tuple(limit for limit in self.limits if limit <= longest),
            few_sizes=self.few_sizes,
            stats=self.stats,
            called=self._called,
            steps=FEW_STEPS if on_text else STEPS,
        )
        order = running_order(running, shared, LEAST_FORK)
        queue = [(fitting[i], running[i]) for i in order]
        session = Session(calls, self.tokenizer, queue, shared, self.stats, on_text)
        for done, (place, transcript) in enumerate(session.finished(), start=1):
            transcripts[place] = transcript
            if on_finish:
                on_finish(transcript)
            if progress:
                progress(done, len(running))
        if self.report:
            self.report(self.stats)
        return transcripts

    def _compile(self, scripts: list[Script]) -> list[Program]:
        seen: set[str] = set()
        for script in scripts:
            if script.id in seen:
                raise ScriptError(f"two scripts share the id '{script.id}'; ids must be distinct.")
            seen.add(script.id)
        return [compile_script(script, self.tokenizer) for script in scripts]

    def _fitting(
        self, compiled: list[Program], refused: Callable[[ScriptError], None] | None
    ) -> tuple[list[int], int]:
        """Places of the Scripts that can run, and how many first tokens those share."""
        most = self.config.context
        places = [i for i, p in enumerate(compiled) if p.longest <= most]
        errors = {
            i: _too_long(p, most, "the model's context")
            for i, p in enumerate(compiled)
            if p.longest > most
        }
        shared = shared_prefix([compiled[i] for i in places], LEAST_PREFIX) if places else 0
        for i in places:
            if compiled[i].longest - shared > self.max_length:
                most = self.max_length + shared
                errors[i] = _too_long(compiled[i], most, "the engine's max_length")
        for i in sorted(errors):
            if refused is None:
                raise errors[i]
            refused(errors[i])
        return [i for i in places if i not in errors], shared

    def _slots(self, length: int, scripts: int) -> int:
        """How many slots of `length` tokens to run with, for so many Scripts."""
        wanted = self.slots
        if self.few_sizes:  # which a call always computes in full
            wanted = min(wanted, -(-scripts // FEWEST) * FEWEST)
        available = self.memory_bytes
        if available is None and (free := free_bytes()) is not None:
            available = int(SHARE * free)
        each = slot_bytes(self.config, self.dtype, length)
        shape = self.config.kv_heads, wanted
        layout = fitted(mesh_of(self._unstacked), shape, *kv_cache.AXES)
        devices = 1 if layout is None else math.prod(shape) // math.prod(layout.shard_shape(shape))
        slots = slots_that_fit(wanted, each, available, devices)
        if not slots:
            raise ScriptError(
                f"a slot of {length} tokens takes {each / 1e9:.3g} GB and {available / 1e9:.3g} GB "
                "may be used; lower max_length or raise memory_bytes."
            )
        return slots

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
        mesh = mesh_of(self._unstacked)
        return jax.device_put(table, fitted(mesh, table.shape)), starts

    def _read_prefix(self, tokens: tuple[int, ...]) -> Prefix:
        """Computes the shared prefix's keys and values, once, in chunks."""
        capacity = max(SHORTEST, 1 << (len(tokens) - 1).bit_length())
        mesh = mesh_of(self._unstacked)
        cache = kv_cache.empty(self.config, 1, capacity, self.dtype, mesh)
        scratch = reading.no_logits(self.config, 1, mesh)
        for start in range(0, len(tokens), SIZES[-1]):
            chunk = tokens[start : start + SIZES[-1]]
            size = bucket(len(chunk), SIZES)
            cache, scratch = reading.extend(
                self._unstacked,
                cache,
                scratch,
                None,
                *np.asarray([[0], [start], [len(chunk)]], np.int32),
                padded(list(chunk), size, 0),
                config=self.config,
                dtype=self.dtype,
                mesh=mesh,
            )
        self.stats.read += len(tokens)
        return Prefix(cache, np.int32(len(tokens)))


def _too_long(program: Program, limit: int, of: str) -> ScriptError:
    return ScriptError(
        f"script '{program.script.id}' can need {program.longest} tokens, {of} is "
        f"{limit}; shorten the prompt or lower max_new_tokens."
    )
