"""SentencePiece models as tokenizers."""

from __future__ import annotations

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from cai_jax.tokenizer import (
    TokenizerBase,
    metaspace_bytes,
    reply_end_ids,
    require_byte_tokens,
)


class SentencePieceTokenizer(TokenizerBase):
    """A SentencePiece model, read without the space it would put before every text.

    Segments of a Script are tokenized one by one, so a space before each would change the text.
    "▁" in a text is SentencePiece's own sign for a space and comes back as one.

    Args:
      model: the bytes of a `tokenizer.model`.
      adds_bos: whether every context starts with the BOS.
      control_tokens: text to id of control tokens beyond those the model marks as control.

    Raises:
      ValueError: `model` is not a SentencePiece model, or names no BOS where it should add one.
    """

    def __init__(
        self,
        model: bytes,
        *,
        adds_bos: bool,
        control_tokens: dict[str, int] | None = None,
    ):
        proto = sentencepiece_model_pb2.ModelProto()
        try:
            proto.ParseFromString(model)
        except Exception as error:  # protobuf's DecodeError, without depending on protobuf
            raise ValueError("the vocabulary is not a SentencePiece model") from error
        if not proto.pieces:
            raise ValueError("the vocabulary is not a SentencePiece model")
        proto.normalizer_spec.add_dummy_prefix = False
        proto.normalizer_spec.remove_extra_whitespaces = False
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(
                model_proto=proto.SerializeToString()
            )
        except RuntimeError as error:
            raise ValueError(f"SentencePiece cannot use the vocabulary: {error}") from error
        sp = self._processor
        self.vocab_size = sp.get_piece_size()
        pieces = [sp.id_to_piece(i) for i in range(self.vocab_size)]
        require_byte_tokens(pieces)
        control = {pieces[i]: i for i in range(self.vocab_size) if sp.is_control(i)}
        control |= control_tokens or {}
        bos, eos = sp.bos_id(), sp.eos_id()
        self.bos_token = sp.id_to_piece(bos) if bos >= 0 else ""
        self.eos_token = sp.id_to_piece(eos) if eos >= 0 else ""
        if adds_bos and bos < 0:
            raise ValueError("the tokenizer adds a BOS but names none")
        self.bos_id = bos if adds_bos else None
        self.control_tokens = dict(sorted(control.items(), key=lambda item: item[1]))
        self.end_ids = reply_end_ids(self.eos_token, self.control_tokens)
        self._bytes = [
            b"" if token in self._control_ids else metaspace_bytes(piece)
            for token, piece in enumerate(pieces)
        ]

    def _text_ids(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def to_model(self) -> bytes:
        """The `tokenizer.model` this tokenizer was made from."""
        return self._model
