"""One small interface over every kind of tokenizer the course compares.

A tokenizer here turns plain text into ids and back and can say which bytes an id stands for.
It adds no BOS or EOS and reads no special tokens out of text: `"</s>"` in a text is four
ordinary characters. Chat templates and special tokens belong to the models' own classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from chinese_llama_lab.errors import TextError, TokenizerError


class Tokenizer(ABC):
    """Encode, decode, and look inside a vocabulary.

    Attributes:
        name: what plots and tables call it.
        family: the kind of model, such as `SentencePiece BPE` or `byte-level BPE`.
        lossless: False where decoding cannot give every text back (WordPiece, unknown pieces, bytes
            without a token).
        spells_whole_characters: True where a character that has no token becomes all of its bytes, as in
            SentencePiece; byte-level BPE may join some of them.
    """

    name: str
    family: str
    lossless: bool = True
    spells_whole_characters: bool = False

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""

    @property
    @abstractmethod
    def unknown_id(self) -> int | None:
        """Id of the unknown token, or None where every text can be spelled."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes an id stands for; empty for control and unknown tokens.

        A word-boundary mark (`▁`, `Ġ`) is the space that it stands for. The bytes of one token
        need not be whole characters.

        Raises:
            TokenizerError: `token_id` is not in the vocabulary.
        """

    @abstractmethod
    def find_token(self, data: bytes) -> int | None:
        """The id whose bytes are exactly `data`, or None. The inverse of `token_bytes` where one exists."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of a list of ids, as the reference library gives it."""

    @abstractmethod
    def _encode_flat(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """`encode_flat` on texts that are known to be valid Unicode."""

    @abstractmethod
    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode_batch` on texts that are known to be valid Unicode."""

    def encode(self, text: str) -> list[int]:
        """Ids of one text.

        Raises:
            TextError: the text has a lone surrogate, so it has no UTF-8 form.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; in parallel where the library can.

        Raises:
            TextError: naming the text and the position of a lone surrogate.
        """
        checked = list(texts)
        utf8_lengths(checked)
        return self._encode_batch(checked)

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of all texts in one array, shape (total,), and the number of ids of each, shape (len(texts),).

        The form that counting wants: no Python integer is made for each token.
        """
        checked = list(texts)
        utf8_lengths(checked)
        return self._encode_flat(checked)

    def tokens(self, text: str) -> list[bytes]:
        """The bytes of each token of a text, in order."""
        return [self.token_bytes(token_id) for token_id in self.encode(text)]

    def begins_unfinished(self, token_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each id, whether a character begins in its bytes and does not end there (cached)."""
        known = self.__dict__.setdefault("_unfinished", np.full(self.vocab_size, -1, dtype=np.int8))
        for token_id in token_ids[known[token_ids] < 0].tolist():
            known[token_id] = missing_bytes(self.token_bytes(token_id)) > 0
        return np.asarray(known[token_ids] == 1)

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(
                f"id {token_id} is not in the vocabulary of {self.name}",
                remedy=f"ids run from 0 to {self.vocab_size - 1}",
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.family}, {self.vocab_size:,} tokens)"


def utf8_lengths(texts: Iterable[str], *, first: int = 0) -> list[int]:
    """Bytes of each text in UTF-8.

    Args:
        texts: the texts; `first` is the number of the first one, for the message.

    Raises:
        TextError: naming the text and the position of a lone surrogate, or a value that is no text.
    """
    lengths = []
    for number, text in enumerate(texts, start=first):
        try:
            lengths.append(len(text.encode("utf-8")))
        except UnicodeEncodeError as error:
            raise TextError(
                f"a lone surrogate U+{ord(text[error.start]):04X} has no UTF-8 form",
                where=f"document {number}, character {error.start}",
                remedy="read the file again with its true encoding, or drop the character: "
                "text.encode('utf-8', 'ignore').decode('utf-8')",
            ) from None
        except AttributeError:
            raise TextError(
                f"a text was expected, and {type(text).__name__} was found",
                where=f"document {number}",
                remedy="pass strings; for a data set name the text column",
            ) from None
    return lengths


def flatten(batches: list[list[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Join lists of ids into one array, with the length of each."""
    lengths = np.fromiter(map(len, batches), dtype=np.int64, count=len(batches))
    flat = np.empty(int(lengths.sum()), dtype=np.int32)
    start = 0
    for ids in batches:
        flat[start : start + len(ids)] = ids
        start += len(ids)
    return flat, lengths


def missing_bytes(data: bytes) -> int:
    """How many bytes the last character still lacks when it *begins* in `data`; 0 if it is whole.

    A tail that only continues an earlier token's character counts as 0: that character was
    already counted where it began.
    """
    for back in range(1, min(3, len(data)) + 1):
        lead = data[-back]
        if lead >= 0xC0:
            needed = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return max(0, needed - back)
        if lead < 0x80:
            return 0
    return 0
