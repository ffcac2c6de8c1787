"""transformers' plain way: a batch of left-padded prompts, every call reading all of its context.

What reuses a cache is in transformers_cached.py, continuous batching in transformers_batching.py.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from workloads import STEP_TOKENS, Workload, critique_forces, revision_forces, tokens_of

from peers import Answer, Setup

CHOICE_ROWS = 16  # questions with an option each that are read in one batch


def load(setup: Setup, attention: str = "sdpa"):
    """The model in the setup's dtype."""
    torch.set_num_threads(setup.threads)
    dtype = getattr(torch, setup.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        setup.directory, dtype=dtype, attn_implementation=attention
    )
    # `generate` takes the model's own end tokens where its argument has none.
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model.eval()


def generation(limit: int, greedy: bool) -> GenerationConfig:
    """Exactly `limit` tokens, plain sampling at temperature 1 or greedily."""
    sampling = {} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=limit, do_sample=not greedy, eos_token_id=None, pad_token_id=0, **sampling
    )


def padded(sequences: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, mask), int64[B, T], padded on the left."""
    width = max(map(len, sequences))
    tokens = torch.zeros((len(sequences), width), dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
        tokens[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    return tokens, mask


def generate(model, prompts: list[tuple[int, ...]], limit: int, greedy: bool) -> list[list[int]]:
    """`limit` new tokens for each prompt, in one batch."""
    tokens, mask = padded(prompts)
    out = model.generate(
        input_ids=tokens, attention_mask=mask, generation_config=generation(limit, greedy)
    )
    return out[:, tokens.shape[1] :].tolist()


class Plain:
    """`generate` on batches of as many prompts as ours has slots."""

    def __init__(self, setup: Setup, workload: Workload):
        self.model, self.workload = load(setup), workload

    def warm(self) -> None:
        """Nothing: the first, greedy run warms what there is to warm."""

    @torch.inference_mode()
    def run(self, greedy: bool, seed: int) -> Answer:
        """Answers the workload."""
        torch.manual_seed(seed)
        if self.workload.name == "W5":
            return self._chains(greedy)
        if self.workload.items[0].options:
            return Answer(scores=self._scores())
        written: list[list[int]] = []
        items, slots = self.workload.items, self.workload.slots
        for start in range(0, len(items), slots):
            part = items[start : start + slots]
            limit = max(item.limit for item in part)
            rows = generate(self.model, [item.tokens for item in part], limit, greedy)
            written += [row[: item.limit] for row, item in zip(rows, part, strict=True)]
        return Answer(tokens=written)

    def _scores(self) -> list[list[float]]:
        """Each question is read once with each option behind it."""
        rows = [(*i.tokens, *option) for i in self.workload.items for option in i.options]
        sizes = [len(option) for i in self.workload.items for option in i.options]
        scores: list[float] = []
        for start in range(0, len(rows), CHOICE_ROWS):
            part, kept = rows[start : start + CHOICE_ROWS], sizes[start : start + CHOICE_ROWS]
            tokens, mask = padded(part)
            logits = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                logits_to_keep=max(kept) + 1,
                use_cache=False,
            ).logits
            logprobs = torch.log_softmax(logits.float(), -1)
            for row, size in enumerate(kept):
                chosen = logprobs[row, -size - 1 : -1].gather(1, tokens[row, -size:, None])
                scores.append(chosen.sum().item())
        count = len(self.workload.items[0].options)
        return [scores[i : i + count] for i in range(0, len(scores), count)]

    def _chains(self, greedy: bool) -> Answer:
        """Each response, critique and revision is a call that reads its whole context."""
        workload, tokenizer = self.workload, self.workload.tokenizer

        def call(contexts):
            return generate(self.model, contexts, STEP_TOKENS, greedy)

        opening = [workload.form.prompt(item.conversation) for item in workload.items]
        latest = call([tokens_of(tokenizer, forces) for forces in opening])
        for number in range(len(workload.items[0].principles)):
            texts = [tokenizer.decode(tokens).strip() for tokens in latest]
            contexts = [
                tokens_of(tokenizer, critique_forces(workload, item, number, text))
                for item, text in zip(workload.items, texts, strict=True)
            ]
            critiques = call(contexts)
            closing = [revision_forces(workload, item, number) for item in workload.items]
            latest = call(
                [
                    (*context, *said, *tokens_of(tokenizer, forces, opening=False))
                    for context, said, forces in zip(contexts, critiques, closing, strict=True)
                ]
            )
        return Answer(tokens=latest)


@torch.inference_mode()
def logits(setup: Setup, tokens: list[int]):
    """float32[T, V] after each token, to compare with ours."""
    return load(setup)(input_ids=torch.tensor([tokens])).logits[0].float().numpy()
