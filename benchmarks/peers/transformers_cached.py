"""transformers with its own means of reading a shared beginning once: a cache that is copied."""

from __future__ import annotations

import copy
import itertools
import time

import torch
from workloads import Item, Workload, common_length

from peers import Answer, Setup
from peers.transformers_peer import generation, load, padded

ROWS = 16  # conversations of one batch


class Prefix:
    """The few-shots' cache is computed once and copied for every batch of conversations."""

    def __init__(self, setup: Setup, workload: Workload):
        self.model, self.workload = load(setup), workload

    def warm(self) -> None:
        """Nothing: the first, greedy run warms what there is to warm."""

    @torch.inference_mode()
    def run(self, greedy: bool, seed: int) -> Answer:
        """Answers the workload."""
        torch.manual_seed(seed)
        items, shared = self.workload.items, self.workload.common
        began = time.perf_counter()
        prefix, cache = read(self.model, items[0].tokens[:shared])
        answer = Answer(shared_seconds=time.perf_counter() - began)
        for start in range(0, len(items), ROWS):
            part = items[start : start + ROWS]
            tokens, mask = behind(prefix, [item.tokens[shared:] for item in part])
            out = self.model.generate(
                input_ids=tokens,
                attention_mask=mask,
                past_key_values=repeated(cache, len(part)),
                generation_config=generation(part[0].limit, greedy),
            )
            answer.tokens += out[:, tokens.shape[1] :].tolist()
        return answer


class Options:
    """The conversation's cache serves all questions about it, a question's serves all options."""

    def __init__(self, setup: Setup, workload: Workload):
        self.model, self.workload = load(setup), workload

    def warm(self) -> None:
        """Nothing: the first run warms what there is to warm."""

    @torch.inference_mode()
    def run(self, greedy: bool, seed: int) -> Answer:
        """Answers the workload; nothing is drawn."""
        answer = Answer()
        for _, group in itertools.groupby(self.workload.items, lambda item: item.group):
            everything = list(group)
            for start in range(0, len(everything), ROWS):
                answer.scores += self._score(everything[start : start + ROWS])
        return answer

    def _score(self, items: list[Item]) -> list[list[float]]:
        shared = common_length([item.tokens for item in items])
        shared = min(shared, min(len(item.tokens) for item in items) - 1)
        prefix, cache = read(self.model, items[0].tokens[:shared])
        tokens, mask = behind(prefix, [item.tokens[shared:] for item in items])
        asked = self._forward(tokens[:, shared:], mask, repeated(cache, len(items)), kept=1)
        first = torch.log_softmax(asked.logits[:, -1].float(), -1)
        count = len(items[0].options)
        options = torch.tensor([option for item in items for option in item.options])
        width = options.shape[1]  # both options have as many tokens; `padded` is not needed
        asked.past_key_values.batch_repeat_interleave(count)
        mask = torch.cat([mask.repeat_interleave(count, 0), torch.ones_like(options[:, :-1])], 1)
        rest = self._forward(options[:, :-1], mask, asked.past_key_values, kept=width - 1)
        logprobs = torch.cat(
            [
                first.repeat_interleave(count, 0)[:, None],
                torch.log_softmax(rest.logits.float(), -1),
            ],
            1,
        )
        scores = logprobs.gather(2, options[:, :, None])[:, :, 0].sum(1)
        return scores.reshape(len(items), count).tolist()

    def _forward(self, tokens: torch.Tensor, mask: torch.Tensor, cache, kept: int):
        positions = (mask.cumsum(1) - 1)[:, -tokens.shape[1] :].clamp(min=0)
        return self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=kept,
        )


def read(model, tokens: tuple[int, ...]):
    """(tokens int64[1, P], their cache)."""
    prefix = torch.tensor([tokens])
    return prefix, model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values


def behind(prefix: torch.Tensor, rests: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, mask) of the prefix and then each rest; padding stands between the two."""
    tokens, mask = padded(rests)
    prefix = prefix.expand(len(rests), -1)
    return torch.cat([prefix, tokens], 1), torch.cat([torch.ones_like(prefix), mask], 1)


def repeated(cache, count: int):
    """A copy of the cache for `count` rows."""
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(count)
    return cache
