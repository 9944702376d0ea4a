"""Tokenizers of the `tokenizers` library (`tokenizer.json`): byte-level BPE, Metaspace BPE, WordPiece."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from chinese_llama_lab.errors import TokenizerError
from chinese_llama_lab.tokenization.base import Tokenizer

SPACE_MARK = "▁"
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


@cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each of the 256 bytes: character → byte.

    Printable Latin-1 stands for itself; the other bytes are moved, in order, to U+0100 and on.
    Source: Radford et al., 2019, `encoder.py` of GPT-2 (the rule, written anew).
    """
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    moved = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + place): byte for place, byte in enumerate(moved)})
    return alphabet


@cache
def byte_letters() -> dict[int, str]:
    """The alphabet read backwards: byte → character."""
    return {byte: letter for letter, byte in byte_alphabet().items()}


class FastTokenizer(Tokenizer):
    """A `tokenizers.Tokenizer`. Its special tokens are never read out of text."""

    def __init__(self, name: str, tokenizer: tokenizers.Tokenizer, *, copy: bool = True) -> None:
        """
        Args:
            name: what plots call it.
            tokenizer: the library's tokenizer.
            copy: leave `tokenizer` as it is; False where nobody else uses it.
        """
        serialised = tokenizer.to_str()
        if copy:  # padding, truncation and special tokens are switched off below
            tokenizer = tokenizers.Tokenizer.from_str(serialised)
        self.name = name
        self.tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        described: dict[str, Any] = json.loads(serialised)
        model = described["model"]
        self.kind = str(model.get("type", "BPE"))
        marks = json.dumps([described.get("pre_tokenizer"), described.get("decoder")])
        self.byte_level = '"ByteLevel"' in marks
        self._special = {entry["id"] for entry in described.get("added_tokens", []) if entry.get("special")}
        self._plain_added = {
            entry["id"]: str(entry["content"])
            for entry in described.get("added_tokens", [])
            if not entry.get("special")
        }
        self._prefix = str(model.get("continuing_subword_prefix") or "")
        unknown = model.get("unk_token") or (
            "" if model.get("unk_id") is None else model["vocab"][model["unk_id"]][0]
        )
        self._unknown = tokenizer.token_to_id(unknown) if unknown and not self.byte_level else None
        # A vocabulary may have holes in its numbering: the largest id counts, not the number of entries.
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self._size = max(vocabulary.values(), default=-1) + 1
        if len(vocabulary) <= len(self._special):
            problem = "nothing but special tokens" if vocabulary else "no tokens at all"
            raise TokenizerError(f"{name} has {problem}", remedy="fetch, copy or save the tokenizer again")
        self.family = f"byte-level {self.kind}" if self.byte_level else self.kind
        # SmolLM2 has no token for 21 of the 256 bytes, and drops them without a word.
        self.lossless = (
            vocabulary.keys() >= byte_alphabet().keys()
            if self.byte_level
            else bool(model.get("byte_fallback"))
            and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
        )

    @classmethod
    def from_file(cls, path: Path, name: str | None = None) -> FastTokenizer:
        """Read a `tokenizer.json`.

        Raises:
            TokenizerError: the file is no JSON, or not one that `tokenizers` understands.
        """
        try:
            tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
        except Exception as error:  # tokenizers raises a bare Exception
            raise TokenizerError(
                f"{path.name} is not a whole tokenizer.json: {error}",
                where=str(path),
                remedy="fetch or copy the file again",
            ) from error
        return cls(name or path.name, tokenizer, copy=False)

    @property
    def vocab_size(self) -> int:
        return self._size

    @property
    def unknown_id(self) -> int | None:
        return self._unknown

    def token_bytes(self, token_id: int) -> bytes:
        token = self.tokenizer.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            self._check_id(token_id)
            return b""  # a hole in the numbering
        if token_id in self._special or token_id == self._unknown:
            return b""
        if token_id in self._plain_added:
            return self._plain_added[token_id].encode("utf-8")
        if self.byte_level:
            try:
                return bytes(map(byte_alphabet().__getitem__, token))
            except KeyError:  # an added token that its file does not list as one
                return token.encode("utf-8")
        if _BYTE_PIECE.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        if self._prefix and token.startswith(self._prefix):
            token = token[len(self._prefix) :]
        return token.replace(SPACE_MARK, " ").encode("utf-8")

    def find_token(self, data: bytes) -> int | None:
        if self.byte_level:
            letters = byte_letters()
            found = self.tokenizer.token_to_id("".join(letters[byte] for byte in data))
        else:
            try:
                found = self.tokenizer.token_to_id(data.decode("utf-8").replace(" ", SPACE_MARK))
            except UnicodeDecodeError:
                found = None
            if found is None and len(data) == 1:
                found = self.tokenizer.token_to_id(f"<0x{data[0]:02X}>")
        return None if found is None or self.token_bytes(found) != data else int(found)

    def decode(self, ids: Sequence[int]) -> str:
        for token_id in ids:
            self._check_id(token_id)
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_flat(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        flat = np.fromiter(
            chain.from_iterable(e.ids for e in encodings), dtype=np.int32, count=int(lengths.sum())
        )
        return flat, lengths


def wordpiece(vocabulary: Path, name: str) -> FastTokenizer:
    """A BERT WordPiece tokenizer from its `vocab.txt`, lower-casing and splitting Chinese as BERT does.

    Raises:
        TokenizerError: the file is not UTF-8, or lacks BERT's unknown token.
    """
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    # Bytes, not text lines: U+2028 is a token of BERT's, and universal newlines would break it in two.
    try:
        lines = vocabulary.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{vocabulary.name} is not UTF-8, or cut short",
            where=f"{vocabulary}, byte {error.start}",
            remedy="fetch or copy the file again",
        ) from error
    table = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    if "[UNK]" not in table:
        raise TokenizerError(
            f"{vocabulary.name} is not a WordPiece vocabulary: it has no [UNK]",
            where=str(vocabulary),
            remedy="give a .model, a tokenizer.json, a tiktoken file, a GGUF file or a vocab.txt",
        )
    tokenizer = tokenizers.Tokenizer(models.WordPiece(table, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(
        [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in table]
    )
    return FastTokenizer(name, tokenizer, copy=False)
