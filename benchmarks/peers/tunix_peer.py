"""google-tunix's sampler, the decoding of another JAX post-training library."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from tunix.generate import sampler as tunix_sampler
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from workloads import Workload

from cai_jax.weights.safetensors import read_directory
from peers import Answer, Setup


class Numbers:
    """A tokenizer for the sampler, which takes text alone: the text spells the token ids."""

    def __init__(self, pad: int):
        self._pad = pad

    def encode(self, text: str, **_) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids, **_) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> None:
        return None  # the ids are whole, nothing is put before them

    def eos_id(self) -> int:
        return -1

    def pad_id(self) -> int:
        return self._pad


def load(setup: Setup):
    """(shape, tunix's model with the setup's weights, tokenizer)."""
    shape, _, tokenizer, _ = read_directory(setup.directory)
    config = llama.ModelConfig(
        num_layers=shape.layers,
        vocab_size=shape.vocab_size,
        embed_dim=shape.embed,
        hidden_dim=shape.mlp,
        num_heads=shape.heads,
        head_dim=shape.head_dim,
        num_kv_heads=shape.kv_heads,
        rope_theta=int(shape.rope_theta),
        norm_eps=shape.norm_eps,
        weight_tying=shape.tied_embeddings,
    )
    # Its attention leaves out the config's rope_theta and would rotate by the default, 1e6.
    llama.apply_rope = functools.partial(llama.apply_rope, rope_theta=shape.rope_theta)
    model = llama_params.create_model_from_safe_tensors(
        str(setup.directory), config, dtype=jnp.dtype(setup.dtype)
    )
    return shape, model, tokenizer


class Sampler:
    """One batch of all items, which have one limit."""

    def __init__(self, setup: Setup, workload: Workload):
        shape, model, tokenizer = load(setup)
        self.items = workload.items
        self.longest = max(len(item.tokens) for item in self.items)
        cache = tunix_sampler.CacheConfig(
            cache_size=self.longest + self.items[0].limit + 1,
            num_layers=shape.layers,
            num_kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
        )
        numbers = Numbers(tokenizer.pad_id)
        self.sampler = tunix_sampler.Sampler(model, numbers, cache)

    def warm(self) -> None:
        """Compiles; greedy decoding is compiled apart, by the check."""
        self.run(greedy=False, seed=0)

    def run(self, greedy: bool, seed: int) -> Answer:
        """Answers the workload."""
        drawing = {} if greedy else {"temperature": 1.0, "top_p": 1.0, "seed": seed}
        out = self.sampler(
            [" ".join(map(str, item.tokens)) for item in self.items],
            max_generation_steps=self.items[0].limit,
            max_prompt_length=self.longest,
            eos_tokens=[-1],
            **drawing,
        )
        return Answer(tokens=[[int(token) for token in row] for row in out.tokens])
