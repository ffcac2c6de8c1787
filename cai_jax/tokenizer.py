"""Text to token ids and back: what every tokenizer has, bytes, and Hugging Face tokenizers.

Text never parses into a control token unless the caller says so: `encode(text)` spells
"<|im_end|>" out letter by letter, `encode(text, control=True)` reads it as the token. Tokens are
exact: the bytes of the tokens of a text, joined, are the text's UTF-8.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable
from typing import Protocol, Self

import tokenizers

# The names under which chat models know the end of a turn or of a text. A reply that samples one
# of them is over, whichever of them the model file calls its end of sequence.
END_NAMES = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
)


class Tokenizer(Protocol):
    """What every tokenizer has.

    Attributes:
      vocab_size: number of ids.
      bos_id: the token that starts every context; None when this tokenizer adds none.
      bos_token, eos_token: the control tokens' text as chat templates know them; "" if none.
      end_ids: tokens that end a reply (end of sequence first, then ends of turn).
      pad_id: a token that is none of the end ids, so that masking padding never masks an end.
      control_tokens: text of each control token to its id.
    """

    vocab_size: int
    bos_id: int | None
    bos_token: str
    eos_token: str
    end_ids: tuple[int, ...]
    control_tokens: dict[str, int]

    @property
    def pad_id(self) -> int: ...

    def encode(self, text: str, control: bool = False) -> list[int]:
        """Token ids of `text`, no BOS added; control tokens only when `control`."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; control tokens have none, broken UTF-8 becomes U+FFFD."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes `token` stands for; empty for control tokens."""
        ...

    def ending_with(self, ids: Iterable[int]) -> Self:
        """The same tokenizer with `ids` among its end ids."""
        ...


class TokenizerBase:
    """What the tokenizers share: everything that follows from `_text_ids` and `_bytes`.

    A subclass sets `vocab_size`, `bos_id`, `bos_token`, `eos_token`, `end_ids`, `control_tokens`
    and defines `_text_ids(text)` and `_bytes`, the bytes of each id.
    """

    _bytes: list[bytes]
    vocab_size: int
    bos_id: int | None
    end_ids: tuple[int, ...]
    control_tokens: dict[str, int]

    def _text_ids(self, text: str) -> list[int]:
        raise NotImplementedError

    def encode(self, text: str, control: bool = False) -> list[int]:
        if control:
            ids: list[int] = []
            for piece in self._control_pattern.split(text):
                token = self.control_tokens.get(piece)
                ids += self.encode(piece) if token is None else [token]
            return ids
        ids = self._text_ids(text)
        if self._control_ids.isdisjoint(ids):
            return ids
        # The underlying tokenizer read a control token out of plain text: cut every spelling of
        # one after its first character, so that no piece spells it any more.
        cuts = [m.start() + 1 for m in self._control_pattern.finditer(text)]
        if not cuts or len(text) < 2:
            raise ValueError(
                "the tokenizer reads a control token out of plain text and cannot be kept from it; "
                "use another model file"
            )
        pieces = [text[i:j] for i, j in itertools.pairwise([0, *cuts, len(text)])]
        return [token for piece in pieces for token in self.encode(piece)]

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self._bytes[token] for token in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def ending_with(self, ids: Iterable[int]) -> Self:
        other = copy.copy(self)
        other.end_ids = tuple(dict.fromkeys((*self.end_ids, *ids)))
        return other

    @property
    def pad_id(self) -> int:
        taken = {*self.end_ids, self.bos_id}
        free = (t for t in reversed(self.control_tokens.values()) if t not in taken)
        return next(free, next(i for i in range(self.vocab_size) if i not in taken))

    @functools.cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.control_tokens.values())

    @functools.cached_property
    def _control_pattern(self) -> re.Pattern:
        names = sorted(filter(None, self.control_tokens), key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, names)) + ")" if names else "(?!)")


class BytesTokenizer(TokenizerBase):
    """One token a byte: ids 0..255 are bytes, 256 begins, 257 ends, 258 pads."""

    def __init__(self):
        self.vocab_size = 259
        self.control_tokens = {"<|begin|>": 256, "<|end|>": 257, "<|pad|>": 258}
        self.bos_token, self.eos_token = "<|begin|>", "<|end|>"
        self.bos_id: int | None = 256
        self.end_ids: tuple[int, ...] = (257,)
        self._bytes = [bytes([i]) for i in range(256)] + [b"", b"", b""]

    def _text_ids(self, text: str) -> list[int]:
        return list(text.encode())


class HuggingFaceTokenizer(TokenizerBase):
    """A `tokenizers.Tokenizer`: byte-level BPE, or BPE and Unigram over "▁" with byte fallback.

    Args:
      backend: the tokenizer. What it would put before a text (a space, a BOS) is taken off.
      bos_token: text of the BOS; "" if there is none.
      eos_token: text of the end-of-sequence token; "" if there is none.
      adds_bos: whether every context starts with the BOS.
      control_tokens: text to id of control tokens beyond those `backend` marks as special.

    Raises:
      ValueError: the bytes of the tokens cannot be known, or BOS or EOS is not in the vocabulary.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token: str,
        eos_token: str,
        adds_bos: bool,
        control_tokens: dict[str, int] | None = None,
    ):
        spec = json.loads(backend.to_str())
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(_without_prefix(spec)))
        # Special tokens spelled in a text stay text; `encode(control=True)` finds them itself.
        self._backend.encode_special_tokens = True
        vocab = backend.get_vocab(with_added_tokens=True)
        added = {t["content"]: t for t in spec["added_tokens"]}
        control = {name: t["id"] for name, t in added.items() if t["special"]}
        control |= control_tokens or {}
        for kind, name in (("BOS", bos_token), ("EOS", eos_token)):
            if name:
                if name not in vocab:
                    raise ValueError(f"the tokenizer's {kind} token {name!r} has no id")
                control[name] = vocab[name]
        if adds_bos and not bos_token:
            raise ValueError("the tokenizer adds a BOS but names none")
        self.vocab_size = max(vocab.values()) + 1
        self.bos_token, self.eos_token = bos_token, eos_token
        self.bos_id = vocab[bos_token] if adds_bos else None
        self.control_tokens = dict(sorted(control.items(), key=lambda item: item[1]))
        self.end_ids = reply_end_ids(eos_token, self.control_tokens)
        to_bytes = _byte_reader(spec)
        if to_bytes is metaspace_bytes:
            require_byte_tokens(vocab)
        self._bytes = [b""] * self.vocab_size
        for name, token in vocab.items():
            if name not in control:
                self._bytes[token] = name.encode() if name in added else to_bytes(name)

    def _text_ids(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def to_json(self) -> str:
        """The `tokenizer.json` of this tokenizer, as it is used here (no prefix, no BOS)."""
        return self._backend.to_str(pretty=True)


def reply_end_ids(eos_token: str, control_tokens: dict[str, int]) -> tuple[int, ...]:
    """Ids of the control tokens that end a reply: the end of sequence, then those of END_NAMES."""
    names = [name for name in (eos_token, *END_NAMES) if name in control_tokens]
    return tuple(dict.fromkeys(control_tokens[name] for name in names))


def require_byte_tokens(vocab: Iterable[str]) -> None:
    """ValueError unless the vocabulary has <0x00> to <0xFF>, to spell every text."""
    missing = {f"<0x{byte:02X}>" for byte in range(256)}.difference(vocab)
    if missing:
        raise ValueError(f"the vocabulary lacks byte tokens ({min(missing)}) to spell every text")


def _without_prefix(spec: dict) -> dict:
    """A tokenizer.json that puts nothing before a text and neither cuts nor pads it."""

    def clean(node):
        if not isinstance(node, dict):
            return node
        kind = node.get("type")
        if kind == "Prepend":
            return None
        if kind == "Sequence":
            key = next(k for k in ("normalizers", "pretokenizers", "processors") if k in node)
            return node | {key: [n for n in map(clean, node[key]) if n is not None]}
        if kind == "ByteLevel":
            return node | {"add_prefix_space": False}
        if kind == "Metaspace":
            return node | {"prepend_scheme": "never"}
        return node

    changed = {key: clean(spec.get(key)) for key in ("normalizer", "pre_tokenizer")}
    return spec | changed | {"truncation": None, "padding": None}


def _byte_reader(spec: dict) -> Callable[[str], bytes]:
    """How this tokenizer.json spells bytes in its tokens, from its decoder."""
    decoder = spec.get("decoder") or {}
    kinds = {node.get("type") for node in (decoder, *decoder.get("decoders", ()))}
    if "ByteLevel" in kinds:
        return _byte_level_bytes
    if "Metaspace" in kinds or "ByteFallback" in kinds:
        return metaspace_bytes
    raise ValueError(
        f"a tokenizer with decoder {decoder.get('type')!r} is not supported, "
        "only byte-level and SentencePiece-like ones are"
    )


def metaspace_bytes(piece: str) -> bytes:
    """The bytes of a piece that spells a space as "▁" and a lone byte as <0xFF>."""
    if re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


def _byte_level_bytes(piece: str) -> bytes:
    table = byte_level_table()
    return bytes(table[char] for char in piece)


@functools.cache
def byte_level_table() -> dict[str, int]:
    """GPT-2's printable character for each byte, inverted (Radford et al. 2019, encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}
