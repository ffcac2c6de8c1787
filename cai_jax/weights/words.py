"""The files in Hugging Face layout that a model's tokenizer and chat template are in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cai_jax.sentencepiece_tokenizer import SentencePieceTokenizer
from cai_jax.tokenizer import Tokenizer
from cai_jax.weights import vocabularies
from cai_jax.weights.hugging_face import read_json
from cai_jax.weights.names import WeightsError

# What a directory's tokenizer consists of; copied as it is when a model is written back.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


def read_words(directory: Path, raw: dict, vocab_size: int) -> tuple[Tokenizer, str | None]:
    """(tokenizer, chat template or None) of a directory.

    Args:
      raw: its config.json, which names ends of sequence too.
      vocab_size: rows of the model's embedding.

    Raises:
      WeightsError: there is no tokenizer, it cannot be used, or it has more tokens than that.
    """
    tokenizer = vocabularies.from_directory(directory, _eos_ids(raw, directory))
    if tokenizer.vocab_size > vocab_size:
        raise WeightsError(
            f"{directory} has {tokenizer.vocab_size} tokens but embeddings for {vocab_size}; put "
            "the model's own tokenizer there"
        )
    return tokenizer, _chat_template(directory)


def write_words(
    directory: Path, tokenizer: Tokenizer, template: str | None, source: Path | None
) -> None:
    """Writes tokenizer and chat template.

    Args:
      source: a directory in the same layout, whose files are copied as they are. Without it they
        are made from `tokenizer` and `template`.
    """
    if source is not None and Path(source).is_dir():
        for name in TOKENIZER_FILES:
            if (Path(source) / name).is_file() and Path(source).resolve() != directory.resolve():
                shutil.copyfile(Path(source) / name, directory / name)
        return
    sentencepiece = isinstance(tokenizer, SentencePieceTokenizer)
    if sentencepiece:
        (directory / "tokenizer.model").write_bytes(tokenizer.to_model())
    else:
        (directory / "tokenizer.json").write_text(vocabularies.to_json(tokenizer), "utf-8")
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer" if sentencepiece else "PreTrainedTokenizerFast",
            "bos_token": tokenizer.bos_token or None,
            "eos_token": tokenizer.eos_token or None,
            "add_bos_token": tokenizer.bos_id is not None,
            "clean_up_tokenization_spaces": False,
        },
    )
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, "utf-8")


def write_json(file: Path, content: dict) -> None:
    """Writes a JSON file as such directories have them."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _chat_template(directory: Path) -> str | None:
    file = directory / "chat_template.jinja"
    if file.exists():
        return file.read_text("utf-8")
    config = directory / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.exists() else None
    if isinstance(template, list):  # named templates; the one called default is for chat
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template


def _eos_ids(raw: dict, directory: Path) -> tuple[int, ...]:
    file = directory / "generation_config.json"
    ids: list[int] = []
    for settings in (raw, read_json(file) if file.exists() else {}):
        value = settings.get("eos_token_id")
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(ids))
