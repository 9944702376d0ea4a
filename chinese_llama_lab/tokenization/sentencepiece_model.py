"""SentencePiece models (`tokenizer.model`): LLaMA, Mistral, Baichuan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray
from sentencepiece import sentencepiece_model_pb2

from chinese_llama_lab.errors import TokenizerError
from chinese_llama_lab.tokenization.base import Tokenizer

SPACE_MARK = "▁"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, encoded by SentencePiece itself."""

    def __init__(self, name: str, model: bytes, *, where: str | None = None) -> None:
        """
        Args:
            name: what plots call it.
            model: the serialised ModelProto (the bytes of a `.model` file).
            where: the file the bytes came from, for messages.

        Raises:
            TokenizerError: the bytes are no SentencePiece model.
        """
        self.name = name
        self.model = model
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            # A file cut between two pieces is still a well-formed message: what comes last tells.
            described = sentencepiece_model_pb2.ModelProto.FromString(model)
            if not (described.HasField("trainer_spec") and described.HasField("normalizer_spec")):
                raise ValueError("its settings, which follow the pieces, are missing")
            self.processor.LoadFromSerializedProto(model)
        except Exception as error:
            raise TokenizerError(
                f"{name} is not a whole SentencePiece model: {error}",
                where=where,
                remedy="fetch or copy the file again; a .model file is binary and must not be edited as text",
            ) from error
        self._pieces = [self.processor.id_to_piece(i) for i in range(self.vocab_size)]
        self._ids = {piece: i for i, piece in reversed(list(enumerate(self._pieces)))}
        has_bytes = any(self.processor.is_byte(i) for i in range(min(self.vocab_size, 512)))
        self.lossless = has_bytes
        self.spells_whole_characters = True
        self.family = "SentencePiece" + (" with byte fallback" if has_bytes else "")

    @classmethod
    def from_file(cls, path: Path, name: str | None = None) -> SentencePieceTokenizer:
        """Read a `.model` file."""
        return cls(name or path.name, path.read_bytes(), where=str(path))

    @property
    def vocab_size(self) -> int:
        return int(self.processor.get_piece_size())

    @property
    def unknown_id(self) -> int | None:
        return int(self.processor.unk_id())

    def token_bytes(self, token_id: int) -> bytes:
        self._check_id(token_id)
        piece = self._pieces[token_id]
        if self.processor.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        if self.processor.is_control(token_id) or self.processor.is_unknown(token_id):
            return b""
        return piece.replace(SPACE_MARK, " ").encode("utf-8")

    def find_token(self, data: bytes) -> int | None:
        try:
            token_id = self._ids.get(data.decode("utf-8").replace(" ", SPACE_MARK))
        except UnicodeDecodeError:
            token_id = None
        if token_id is not None and self.token_bytes(token_id) == data:
            return token_id
        return self._ids.get(f"<0x{data[0]:02X}>") if len(data) == 1 else None

    def decode(self, ids: Sequence[int]) -> str:
        for token_id in ids:
            self._check_id(token_id)
        return str(self.processor.decode(list(ids)))

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return list(self.processor.encode(texts))

    def _encode_flat(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        # Buffers instead of lists of Python integers: half the time of the library's own batch call.
        arrays = self.processor.encode(texts, return_type="numpy")
        lengths = np.fromiter(map(len, arrays), dtype=np.int64, count=len(arrays))
        return (np.concatenate(arrays) if arrays else np.empty(0, np.int32)), lengths
