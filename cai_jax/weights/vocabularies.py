"""Vocabularies of model files: GGUF metadata and Hugging Face directories to tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers

from cai_jax.sentencepiece_tokenizer import SentencePieceTokenizer
from cai_jax.tokenizer import (
    BytesTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    byte_level_table,
)
from cai_jax.weights.hugging_face import read_json
from cai_jax.weights.names import WeightsError

# llama.cpp's token types.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def from_gguf(metadata: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file, from its `tokenizer.ggml.*` metadata.

    Raises:
      WeightsError: the vocabulary's kind or pre-tokenizer is unknown, or the metadata contradict
        each other.
    """

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    kind, tokens = get("model"), get("tokens")
    if not tokens:
        raise WeightsError(f"{path} has no vocabulary; use a GGUF file that has one")
    types = get("token_type") or [1] * len(tokens)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise WeightsError(f"{path} has a vocabulary that contradicts itself; get the file again")
    for key in ("bos_token_id", "eos_token_id", "eot_token_id", "unknown_token_id"):
        if get(key) is not None and not 0 <= get(key) < len(tokens):
            raise WeightsError(f"{path} has a {key} outside its vocabulary; get the file again")

    def text(key: str) -> str:
        return "" if get(key) is None else tokens[get(key)]

    try:
        if kind == "llama":
            model = sentencepiece_model(
                tokens, types, get("scores") or [], unk=get("unknown_token_id", 0),
                bos=get("bos_token_id", -1), eos=get("eos_token_id", -1),
            )  # fmt: skip
            adds_bos = get("add_bos_token", True)
            tokenizer: Tokenizer = SentencePieceTokenizer(model, adds_bos=adds_bos)
        elif kind == "gpt2":
            pre = get("pre", "default")
            tokenizer = HuggingFaceTokenizer(
                _byte_level_bpe(tokens, types, get("merges", []), pre, path),
                bos_token=text("bos_token_id"),
                eos_token=text("eos_token_id"),
                # Files for Llama 3 may leave the key out, and mean true by it.
                adds_bos=get("add_bos_token", pre in _LLAMA3_NAMES),
            )
        else:
            raise WeightsError(
                f"{path} has a vocabulary of kind {kind!r}, and only gpt2 and llama are "
                "supported; use the model's Hugging Face directory"
            )
    except WeightsError:
        raise
    except (ValueError, KeyError) as error:
        raise WeightsError(f"{path} has an unusable vocabulary: {error}") from error
    turn_end = get("eot_token_id")
    return tokenizer if turn_end is None else tokenizer.ending_with([turn_end])


def from_directory(directory: Path, eos_ids: tuple[int, ...]) -> Tokenizer:
    """The tokenizer of a Hugging Face directory: tokenizer.json, or else tokenizer.model.

    Args:
      eos_ids: ends of sequence that config.json and generation_config.json name.

    Raises:
      WeightsError: there is neither, or the one there is cannot be used.
    """
    config_file = directory / "tokenizer_config.json"
    config = read_json(config_file) if config_file.exists() else {}
    json_file, model_file = directory / "tokenizer.json", directory / "tokenizer.model"
    try:
        if json_file.exists():
            tokenizer: Tokenizer = _from_json(json_file, config)
        elif model_file.exists():
            adds_bos = config.get("add_bos_token", True)
            tokenizer = SentencePieceTokenizer(model_file.read_bytes(), adds_bos=adds_bos)
        else:
            raise WeightsError(
                f"{directory} has no tokenizer.json and no tokenizer.model; add the model's own"
            )
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{directory} has an unusable tokenizer: {error}") from error
    known = range(tokenizer.vocab_size)
    unknown = [i for i in eos_ids if i not in known]
    if unknown:
        raise WeightsError(
            f"{directory} names the end token {unknown[0]}, which its tokenizer lacks"
        )
    return tokenizer.ending_with(eos_ids)


def to_json(tokenizer: HuggingFaceTokenizer | BytesTokenizer) -> str:
    """A tokenizer.json that gives the same ids; bytes become byte-level BPE without merges."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.to_json()
    vocab = byte_level_table() | tokenizer.control_tokens
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(tokenizer.control_tokens))
    return backend.to_str(pretty=True)


def _from_json(file: Path, config: dict) -> Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise WeightsError(f"{file} is not a tokenizer.json: {error}") from error

    def text(key: str) -> str:
        value = config.get(key) or ""
        return value["content"] if isinstance(value, dict) else value

    bos = text("bos_token")
    # Whether a BOS is added is the tokenizer's own affair (its post-processor) unless the
    # configuration says it outright.
    first = backend.encode("a", add_special_tokens=True).ids[:1]
    adds_bos = config.get("add_bos_token")
    if adds_bos is None:
        adds_bos = bool(bos) and first == [backend.token_to_id(bos)]
    return HuggingFaceTokenizer(
        backend, bos_token=bos, eos_token=text("eos_token"), adds_bos=adds_bos
    )


def _byte_level_bpe(
    tokens: list[str], types: list[int], merges: list[str], pre: str, path: Path
) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer with llama.cpp's pre-tokenizer `pre`."""
    pairs = [tuple(merge.split(" ")) for merge in merges]
    # Tokens put in whole, not by merging; as added tokens they need no merge.
    whole = {
        i: token
        for i, token in enumerate(tokens)
        if types[i] in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    }
    try:
        backend = tokenizers.Tokenizer(
            # Llama 3's vocabulary has words whole that no merge makes.
            models.BPE(
                {token: i for i, token in enumerate(tokens)},
                pairs,
                ignore_merges=pre in _LLAMA3_NAMES,
            )
        )
    except Exception as error:  # the library raises plain Exception
        raise WeightsError(f"{path} has merges that its vocabulary lacks: {error}") from error
    backend.pre_tokenizer = _pre_tokenizer(pre, path)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [
            tokenizers.AddedToken(token, special=types[i] != _USER_DEFINED, normalized=False)
            for i, token in whole.items()
        ]
    )
    return backend


def _pre_tokenizer(pre: str, path: Path) -> pre_tokenizers.PreTokenizer:
    """What llama.cpp means by `tokenizer.ggml.pre`, in the tokenizers library's terms."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre in ("gpt-2", "olmo", "jais", "mpt"):
        return gpt2
    if pre in ("smollm", "starcoder", "refact", "codeshell", "exaone"):
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    patterns = dict.fromkeys(_LLAMA3_NAMES, _LLAMA3) | {"qwen2": _QWEN2}
    if pre in patterns:
        pattern = tokenizers.Regex(patterns[pre])
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Split(pattern, behavior="isolated", invert=False), plain]
        )
    raise WeightsError(
        f"{path} has the pre-tokenizer {pre!r}, which is not supported; "
        "use the model's Hugging Face directory"
    )


def sentencepiece_model(
    pieces: list[str], types: list[int], scores: list[float], *, unk: int, bos: int, eos: int
) -> bytes:
    """A SentencePiece model, BPE with byte fallback, of a vocabulary that was taken out of one.

    Args:
      types: of each piece, as SentencePiece numbers them.
      unk, bos, eos: their ids; -1 of a BOS or EOS that there is none of.

    Raises:
      ValueError: there is not a score for each piece.
    """
    if len(scores) != len(pieces):
        raise ValueError(f"it has {len(pieces)} pieces and {len(scores)} scores")
    proto = sentencepiece_model_pb2.ModelProto()
    for piece, kind, score in zip(pieces, types, scores, strict=True):
        proto.pieces.add(piece=piece, type=int(kind), score=float(score))
    trainer = proto.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = True
    trainer.unk_id, trainer.bos_id, trainer.eos_id = unk, bos, eos
    trainer.unk_piece = pieces[unk]
    trainer.bos_piece = pieces[bos] if bos >= 0 else ""
    trainer.eos_piece = pieces[eos] if eos >= 0 else ""
    proto.normalizer_spec.name = "identity"
    return proto.SerializeToString()
