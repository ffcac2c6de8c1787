"""A preference model as transformers' sequence classification: one label, whose logit is the score.

transformers reads it at the last token of a row that is not padding, and has no bias there.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np

from cai_jax.models.config import ModelConfig
from cai_jax.models.heads import without_scalar_head
from cai_jax.models.transformer import Params
from cai_jax.tokenizer import Tokenizer
from cai_jax.weights import names
from cai_jax.weights.hugging_face import json_of
from cai_jax.weights.safetensors import SHARD_BYTES, write_model
from cai_jax.weights.words import write_json


def write_classifier(
    directory: Path,
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    template: str | None,
    source: Path | None = None,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> float:
    """Writes a trunk with a scalar head; its padding is a token that ends nothing.

    Args:
      as `safetensors.write_directory`'s.

    Returns:
      the head's bias, which the format has no place for: by so much the scores of the written
      model are lower, each of them, so no comparison changes. 0 of most preference models.

    Raises:
      WeightsError: `params` are not those of `config`.
      OSError: the directory cannot be written.
    """
    trunk = dataclasses.replace(config, tied_embeddings=True)  # which has no output matrix
    head = params["scalar_head"]
    score = np.asarray(head["kernel"]).T
    tensors = itertools.chain(
        names.disassemble(without_scalar_head(params), trunk, "hugging_face"),
        [("score.weight", score)],
    )
    description = json_of(trunk, tokenizer)
    (architecture,) = description["architectures"]
    description |= {
        "architectures": [architecture.replace("ForCausalLM", "ForSequenceClassification")],
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "pad_token_id": tokenizer.pad_id,
    }
    write_model(directory, tensors, description, tokenizer, template, source, dtype, shard_bytes)
    texts = {token: text for text, token in tokenizer.control_tokens.items()}
    file = Path(directory) / "tokenizer_config.json"
    if file.exists() and tokenizer.pad_id in texts:  # many chat models' pads are ends of turn
        words = json.loads(file.read_text("utf-8"))
        write_json(file, words | {"pad_token": texts[tokenizer.pad_id]})
    return float(np.asarray(head["bias"])[0])
