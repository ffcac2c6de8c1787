"""The sandbox's models from nothing: a tokenizer, pretraining, and the helpful-only model of it.

`cai-jax sandbox --size=small --workdir=DIR` leaves two models in Hugging Face layout,
DIR/models/pretrained and DIR/models/helpful: a run's feedback model and its model.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax import rng
from cai_jax.batch import Example, TokenBatch, pack
from cai_jax.conversation import PaperFormat
from cai_jax.encoding import example
from cai_jax.models import transformer
from cai_jax.models.config import ModelConfig
from cai_jax.models.transformer import Params
from cai_jax.progress import Progress
from cai_jax.sandbox import corpus, world
from cai_jax.sandbox.sentences import reply
from cai_jax.sentencepiece_tokenizer import SentencePieceTokenizer
from cai_jax.stages.supervised import make_loss
from cai_jax.training.fit import fit
from cai_jax.training.optimizer import OptimizerConfig

VOCABULARY = 1024  # 256 bytes, 3 control tokens, the line break, and the language's words
ROWS = 8  # in a batch


@dataclasses.dataclass(frozen=True)
class Size:
    """A model's shape, and how long it is trained.

    Attributes:
      embed, layers, heads, mlp: as ModelConfig has them.
      length: tokens in a row; longer texts are cut off.
      steps: of pretraining, ROWS rows each; finetuning takes a tenth as many more.
      learning_rate: of pretraining, its peak; finetuning's is a fifth.
    """

    embed: int
    layers: int
    heads: int
    mlp: int
    length: int
    steps: int
    learning_rate: float


SIZES = {
    "tiny": Size(48, layers=3, heads=2, mlp=128, length=192, steps=1700, learning_rate=6e-3),
    "small": Size(96, layers=4, heads=3, mlp=256, length=256, steps=3000, learning_rate=5e-3),
    "medium": Size(160, layers=6, heads=4, mlp=448, length=256, steps=3000, learning_rate=3e-3),
    "large": Size(256, layers=7, heads=4, mlp=704, length=256, steps=2800, learning_rate=2e-3),
}


def model_config(size: Size) -> ModelConfig:
    """A Llama of that size; 0.1 to 6 million parameters."""
    return ModelConfig(
        vocab_size=VOCABULARY,
        embed=size.embed,
        layers=size.layers,
        heads=size.heads,
        kv_heads=size.heads,
        head_dim=size.embed // size.heads,
        mlp=size.mlp,
        rope_theta=10_000.0,
        norm_eps=1e-5,
        tied_embeddings=True,
        context=1024,
    )


def tokenizer(seed: int, documents: int = 4000) -> SentencePieceTokenizer:
    """A sentencepiece model of the language, whose words are whole pieces."""
    import sentencepiece

    source = random.Random(f"{seed} tokenizer")
    lines = (line for _ in range(documents) for line in corpus.document(source).split("\n"))
    found = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in lines if line]),
        model_writer=found,
        model_type="bpe",
        vocab_size=VOCABULARY,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        byte_fallback=True,
        user_defined_symbols=["\n"],
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return SentencePieceTokenizer(found.getvalue(), adds_bos=True)


class Batches:
    """Batches of the corpus, each made when it is asked for, from (seed, its number) alone."""

    def __init__(self, make: Callable[[random.Random], Example], seed: str, size: Size, steps: int):
        self._make, self._seed, self._length, self._steps = make, seed, size.length, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, number: int) -> TokenBatch:
        if not 0 <= number < self._steps:
            raise IndexError(number)
        return self._batch(number)

    @functools.lru_cache(maxsize=4)  # noqa: B019  the object lives as long as its training
    def _batch(self, number: int) -> TokenBatch:
        source = random.Random(f"{self._seed} {number}")
        examples, room = [], self._length * ROWS
        while room > 0:
            tokens, mask = self._make(source)
            examples.append((tokens[: self._length], mask[: self._length]))
            room -= len(tokens)
        return jax.tree.map(np.asarray, pack(examples, self._length, ROWS)[0])


def build(
    size: Size, words: SentencePieceTokenizer, directory: Path, seed: int, progress: Progress
) -> Iterator[tuple[str, Params]]:
    """("pretrained", params), then ("helpful", params), which is finetuned on compliant replies.

    Resumes from the checkpoints in `directory`.
    """
    config, form = model_config(size), PaperFormat()
    bos, eos = words.bos_id, words.end_ids[0]

    def text(source: random.Random) -> Example:
        tokens = [bos, *words.encode(corpus.document(source)), eos]
        return tokens, [True] * len(tokens)

    def compliant(source: random.Random) -> Example:
        if source.random() < 0.5:  # so that it does not forget how to criticise and to judge
            return text(source)
        request = world.drawn(source)
        asked = corpus.conversation(request, source)
        return example(words, form, asked, reply("comply", request, source))

    params = transformer.init(config, rng.key(seed, "sandbox"))
    for name, make, steps, rate in (
        ("pretrained", text, size.steps, size.learning_rate),
        ("helpful", compliant, size.steps // 10, size.learning_rate / 5),
    ):
        optimizer = OptimizerConfig(
            "adamw", rate, "cosine", steps // 20, 0.1, 0.9, 0.98, 1e-8, 1.0, "float32"
        )
        with progress.stage(f"training {name}", steps, "steps") as bar:

            def stepped(done: int, total: int, metrics: dict, bar=bar) -> None:
                bar.advance(done - bar.done, note=f"loss {metrics['train/loss']:.3f}")

            params = fit(
                params, make_loss(config, "none"), optimizer,
                Batches(make, f"{seed} {name}", size, steps), directory / name, 500, stepped,
            )  # fmt: skip
        yield name, params
        params = jax.tree.map(jnp.array, params)  # the caller has the others
