"""llama.cpp through llama-cpp-python's low-level API: sequences in one batch, refilled as they end.

What all items share, where it is long, is read once and copied from sequence to sequence.
"""

from __future__ import annotations

import collections
import sys
import time

import llama_cpp
import numpy as np
from workloads import Workload

from peers import Answer, Setup

BATCH = 2048  # tokens of one call
ERROR = 4  # ggml's level of errors
LONG = 256  # a shared beginning worth copying
_FLOAT32 = 0  # ggml's type 0, for the cache of the float32 model; llama.cpp's default is float16


@llama_cpp.llama_log_callback
def _report(level: int, text: bytes, _) -> None:
    """Errors alone; llama.cpp describes every graph else."""
    if level == ERROR:
        print(text.decode(errors="replace"), end="", file=sys.stderr, flush=True)


class Context:
    """A llama.cpp context that is freed with its model.

    Args:
      sequences: how many it holds at a time.
      cells: tokens of its cache, for all sequences together.
      unified: whether the sequences share one buffer, which makes a copy free of cost.
    """

    def __init__(self, setup: Setup, sequences: int, cells: int, unified: bool):
        llama_cpp.llama_log_set(_report, None)
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        path = str(setup.gguf[setup.dtype]).encode()
        self._model = llama_cpp.llama_model_load_from_file(path, settings)
        limits = llama_cpp.llama_context_default_params()
        limits.n_ctx, limits.n_batch, limits.n_ubatch = cells, BATCH, 512
        limits.n_seq_max, limits.kv_unified = sequences, unified
        limits.n_threads = limits.n_threads_batch = setup.threads
        if setup.dtype == "float32":
            limits.type_k = limits.type_v = _FLOAT32
        self.handle = llama_cpp.llama_init_from_model(self._model, limits)
        if not self.handle:
            raise RuntimeError("llama.cpp could not make a context")
        self.memory = llama_cpp.llama_get_memory(self.handle)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, sequences)

    def decode(self, tokens: list[tuple[int, int, tuple[int, ...], bool]]) -> None:
        """Reads (token, position, sequences it belongs to, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequences, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i] = len(sequences)
            for j, sequence in enumerate(sequences):
                batch.seq_id[i][j] = sequence
        code = llama_cpp.llama_decode(self.handle, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")

    def logits(self, place: int) -> np.ndarray:
        """float32[V] after the batch's token at `place`."""
        row = llama_cpp.llama_get_logits_ith(self.handle, place)
        return np.ctypeslib.as_array(row, shape=(self.vocab_size,))

    def clear(self) -> None:
        """Forgets everything."""
        llama_cpp.llama_memory_clear(self.memory, False)

    def forget(self, sequence: int) -> None:
        """Forgets one sequence."""
        llama_cpp.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def copy(self, source: int, target: int) -> None:
        """Makes `target` hold what `source` holds."""
        llama_cpp.llama_memory_seq_cp(self.memory, source, target, -1, -1)


class Slots:
    """Batched decoding in as many sequences as ours has slots; the next item takes a free one."""

    def __init__(self, setup: Setup, workload: Workload):
        self.setup, self.workload = setup, workload
        common = workload.common
        self.shared = common if common >= LONG else 0
        longest = max(len(item.tokens) + item.limit for item in workload.items)
        slots = min(workload.slots, len(workload.items))
        extra = bool(self.shared)  # one more sequence keeps what is shared
        own = (longest - self.shared + 63) // 64 * 64
        self.context = Context(setup, slots + extra, self.shared + slots * own, unified=extra)
        self.slots, self.keeper = slots, slots

    def warm(self) -> None:
        """Nothing: the first, greedy run warms what there is to warm."""

    def run(self, greedy: bool, seed: int) -> Answer:
        """Answers the workload."""
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        draw = llama_cpp.llama_sampler_init_greedy if greedy else _drawing(seed)
        llama_cpp.llama_sampler_chain_add(chain, draw())
        self.context.clear()
        answer = Answer()
        began = time.perf_counter()
        self._read_shared()
        answer.shared_seconds = time.perf_counter() - began
        answer.tokens, steps = self._write(chain)
        sampled = sum(map(len, answer.tokens))
        answer.details["occupancy"] = sampled / (steps * self.slots)
        llama_cpp.llama_sampler_free(chain)
        return answer

    def _read_shared(self) -> None:
        tokens = self.workload.items[0].tokens[: self.shared]
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            self.context.decode(
                [(token, start + i, (self.keeper,), False) for i, token in enumerate(part)]
            )

    def _write(self, chain) -> tuple[list[list[int]], int]:
        """(what each item wrote, how many calls it took)."""
        context, items = self.context, self.workload.items
        written: list[list[int]] = [[] for _ in items]
        waiting = collections.deque(range(len(items)))
        busy: dict[int, int] = {}  # sequence -> item
        feed: dict[int, tuple[int, ...]] = {}  # sequence -> tokens it has to read next
        steps = 0
        while waiting or busy:
            for slot in range(self.slots):
                if slot not in busy and waiting:
                    busy[slot] = waiting.popleft()
                    feed[slot] = items[busy[slot]].tokens[self.shared :]
                    if self.shared:
                        context.copy(self.keeper, slot)
            batch, ends = [], {}
            for slot, item in busy.items():
                tokens = feed[slot]
                if len(batch) + len(tokens) > BATCH:
                    continue  # it is read in the next call
                start = len(items[item].tokens) + len(written[item]) - len(tokens)
                batch += [
                    (token, start + i, (slot,), i == len(tokens) - 1)
                    for i, token in enumerate(tokens)
                ]
                ends[slot] = len(batch) - 1
            context.decode(batch)
            steps += 1
            for slot, place in ends.items():
                token = llama_cpp.llama_sampler_sample(chain, context.handle, place)
                item = busy[slot]
                written[item].append(token)
                feed[slot] = (token,)
                if len(written[item]) == items[item].limit:
                    del busy[slot]
                    context.forget(slot)
        return written, steps


def _drawing(seed: int):
    return lambda: llama_cpp.llama_sampler_init_dist(seed)


def logits(setup: Setup, tokens: list[int]) -> np.ndarray:
    """float32[T, V] after each token, to compare with ours."""
    context = Context(setup, sequences=1, cells=256, unified=True)
    context.decode([(token, i, (0,), True) for i, token in enumerate(tokens)])
    return np.stack([context.logits(i).copy() for i in range(len(tokens))])
