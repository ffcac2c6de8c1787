"""llama2.c's files: a header of seven numbers and float32 tensors, with a vocabulary beside it.

The layout that github.com/karpathy/llama2.c calls legacy and its published stories models have.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from cai_jax.models.config import ModelConfig
from cai_jax.sentencepiece_tokenizer import SentencePieceTokenizer
from cai_jax.weights.gguf import rotary_rows
from cai_jax.weights.names import WeightsError, file_shape, rows
from cai_jax.weights.stored import Stored
from cai_jax.weights.vocabularies import sentencepiece_model

_HEADER = struct.Struct("<7i")
_NEWER = 0x616B3432  # "ak42", of later versions' files
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")  # zipped by PyTorch, or bare
# Paths in our params, in the file's order; between the last two are tables of rotary angles.
_ORDER = (
    "embed/embedding", "layers/attention_norm/scale", "layers/q/kernel", "layers/k/kernel",
    "layers/v/kernel", "layers/o/kernel", "layers/mlp_norm/scale", "layers/gate/kernel",
    "layers/down/kernel", "layers/up/kernel", "final_norm/scale", "lm_head/kernel",
)  # fmt: skip
_TURNED = ("layers/q/kernel", "layers/k/kernel")  # whose rows are of neighbouring pairs
# Ids that llama2.c fixes.
_BOS, _EOS = 1, 2


def open_llama2c(path: Path) -> Stored:
    """Opens a model.bin of llama2.c and the vocabulary beside it.

    That is the first of tokN.bin and tokN.model, N being the vocabulary's size, tokenizer.bin and
    tokenizer.model that is there.

    Raises:
      WeightsError: the file is a pickle or of a later version, its header contradicts itself or
        the file's length, or no vocabulary of its size is beside it.
      OSError: a file cannot be read.
    """
    path = Path(path)
    config = _config(path)
    offsets, length = _offsets(config)
    found = path.stat().st_size
    if found != length:
        raise WeightsError(
            f"{path} has {found} bytes where its header asks for {length}; it is cut short, or no "
            "file of llama2.c: get it again"
        )
    heads = {row.hugging_face for row in rows(config) if row.path in _TURNED}

    def read(name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        kind, offset, shape = offsets[name]
        tensor = np.memmap(path, np.float32, "r", offset, shape)
        part = np.asarray(tensor[index[:1]])
        if kind in heads:
            part = rotary_rows(part, len(part) // config.head_dim)
        return part[(slice(None), *index[1:])]

    return Stored(config, "hugging_face", read, _tokenizer(path, config), None, (path,))


def _config(path: Path) -> ModelConfig:
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    if head.startswith(_PICKLES):
        raise WeightsError(
            f"{path} is a pickle, which could run any code; convert it to safetensors"
        )
    if len(head) < _HEADER.size:
        raise WeightsError(f"{path} is cut short in its header; get it again")
    dim, mlp, layers, heads, kv_heads, vocab, context = _HEADER.unpack(head)
    if dim == _NEWER:
        raise WeightsError(
            f"{path} is of llama2.c's version {mlp}, and only its first format, without a version, "
            "is supported; export it again with --version 0"
        )
    # A negative vocabulary says that there is an output matrix apart from the embedding.
    tied, vocab = vocab > 0, abs(vocab)
    sizes = {
        "dim": dim, "hidden_dim": mlp, "n_layers": layers, "n_heads": heads,
        "n_kv_heads": kv_heads, "vocab_size": vocab, "seq_len": context,
    }  # fmt: skip
    for name, value in sizes.items():
        if not 0 < value < 1 << 24:
            raise WeightsError(f"{path} has {name} = {value} in its header; it is no such file")
    if dim % heads or (dim // heads) % 2:
        raise WeightsError(f"{path} has dim = {dim} and n_heads = {heads}, which do not fit")
    try:
        return ModelConfig(
            vocab_size=vocab, embed=dim, layers=layers, heads=heads, kv_heads=kv_heads,
            head_dim=dim // heads, mlp=mlp, rope_theta=10000.0, norm_eps=1e-5,
            tied_embeddings=tied, context=context,
        )  # fmt: skip
    except ValueError as error:
        raise WeightsError(f"{path} describes no model: {error}") from error


def _offsets(config: ModelConfig) -> tuple[dict[str, tuple[str, int, tuple[int, ...]]], int]:
    """({Hugging Face's name: (its row's, offset in bytes, shape)}, length of the whole file)."""
    by_path = {row.path: row for row in rows(config)}
    offsets, at = {}, _HEADER.size
    for path in _ORDER:
        if path == "lm_head/kernel":
            at += 4 * config.context * config.head_dim  # cosines and sines, C/2 a position each
        if path not in by_path:
            continue
        kind, shape = by_path[path].hugging_face, file_shape(by_path[path], config)
        for layer in range(config.layers if "{}" in kind else 1):
            offsets[kind.format(layer)] = kind, at, shape
            at += 4 * math.prod(shape)
    return offsets, at


def _tokenizer(path: Path, config: ModelConfig) -> SentencePieceTokenizer:
    names = [f"{stem}{suffix}" for stem in (f"tok{config.vocab_size}", "tokenizer")
             for suffix in (".bin", ".model")]  # fmt: skip
    file = next((path.parent / n for n in names if (path.parent / n).is_file()), None)
    if file is None:
        raise WeightsError(
            f"{path.parent} has none of {', '.join(names)}; put the vocabulary there"
        )
    data = file.read_bytes()
    try:
        model = data if file.suffix == ".model" else _sentencepiece(data, config.vocab_size, file)
        tokenizer = SentencePieceTokenizer(model, adds_bos=True)
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{file} is no vocabulary: {error}") from error
    if tokenizer.vocab_size != config.vocab_size:
        raise WeightsError(
            f"{file} has {tokenizer.vocab_size} tokens and {path} {config.vocab_size}; put the "
            "model's own vocabulary there"
        )
    return tokenizer


def _sentencepiece(data: bytes, vocab_size: int, file: Path) -> bytes:
    """A SentencePiece model of a tokenizer.bin: the longest piece, then score, length and bytes."""
    tokens, scores, at = [], [], 4
    try:
        for _ in range(vocab_size):
            score, length = struct.unpack_from("<fi", data, at)
            at += 8 + length
            if length < 0 or at > len(data):
                raise ValueError("a piece goes beyond its end")
            tokens.append(data[at - length : at].decode("utf-8"))
            scores.append(score)
    except (struct.error, ValueError) as error:
        raise WeightsError(f"{file} is cut short or damaged ({error}); get it again") from error
    if at != len(data):
        raise WeightsError(
            f"{file} has more than the model's {vocab_size} tokens; put its own vocabulary there"
        )
    tokens[:3] = "<unk>", "<s>", "</s>"
    spelt = {f"<0x{byte:02X}>" for byte in range(256)}
    # llama2.c writes a space as itself, SentencePiece as "▁".
    pieces = [token if token in spelt else token.replace(" ", "▁") for token in tokens]
    types = [2, 3, 3, *(6 if token in spelt else 1 for token in tokens[3:])]
    return sentencepiece_model(pieces, types, scores, unk=0, bos=_BOS, eos=_EOS)
