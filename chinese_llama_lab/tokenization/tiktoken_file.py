"""tiktoken vocabularies: one line a token, `base64(bytes) rank`. Llama-3 and -4, Qwen, cl100k, o200k.

The file holds the ranks only. How text is cut before merging (a regular expression) and how many
special tokens follow are known by the model's name, so both stand here, as their authors state them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path

import numpy as np
import tiktoken
from numpy.typing import NDArray

from chinese_llama_lab.errors import TokenizerError
from chinese_llama_lab.tokenization.base import Tokenizer, flatten

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT4 = _CONTRACTIONS + (
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = _GPT4.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = _CONTRACTIONS + (
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Scheme:
    """What a tiktoken file does not say: how text is cut, and the size with special tokens."""

    pattern: str
    ranks: int  # lines of the file
    vocab_size: int  # with special tokens


SCHEMES = {
    "cl100k": Scheme(_GPT4, 100_256, 100_277),
    "o200k": Scheme(_O200K, 199_998, 200_019),
    "llama-3": Scheme(_GPT4, 128_000, 128_256),
    "llama-4": Scheme(_O200K, 200_000, 202_048),
    "qwen": Scheme(_QWEN, 151_643, 151_851),
    "qwen3.6": Scheme(_QWEN35, 248_044, 248_320),
}


class TiktokenTokenizer(Tokenizer):
    """A tiktoken vocabulary, encoded by tiktoken itself."""

    family = "byte-level BPE"
    unknown_id = None

    def __init__(self, name: str, ranks: dict[bytes, int], scheme: Scheme) -> None:
        """
        Args:
            name: what plots call it.
            ranks: bytes of a token → its rank, which is its id.
            scheme: the pattern and the size with special tokens.
        """
        self.name = name
        self._ranks = ranks
        self._size = scheme.vocab_size
        self.encoding = tiktoken.Encoding(
            name, pat_str=scheme.pattern, mergeable_ranks=ranks, special_tokens={}
        )
        self._bytes = {rank: data for data, rank in ranks.items()}

    @classmethod
    def from_file(cls, path: Path, name: str | None = None, scheme: str | None = None) -> TiktokenTokenizer:
        """Read a tiktoken file.

        Args:
            path: the file.
            scheme: one of `SCHEMES`; left out, the number of lines tells which it is.

        Raises:
            TokenizerError: a line is not `base64 rank`, or the scheme cannot be told.
        """
        ranks: dict[bytes, int] = {}
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except (ValueError, binascii.Error) as error:
                raise TokenizerError(
                    f"{path.name} is not a tiktoken vocabulary: {line[:40]!r} is not `base64 rank`",
                    where=f"{path}, line {number}",
                    remedy="fetch or copy the file again",
                ) from error
        matching = [key for key, value in SCHEMES.items() if value.ranks == len(ranks)]
        if scheme is None and len(matching) != 1:
            raise TokenizerError(
                f"{path.name} has {len(ranks):,} ranks, and no known vocabulary has that many",
                where=str(path),
                remedy="the file may be cut short; if it is whole, say which scheme it uses: "
                + ", ".join(f"{key} ({value.ranks:,})" for key, value in SCHEMES.items()),
            )
        key = scheme or matching[0]
        if key not in SCHEMES or SCHEMES[key].ranks != len(ranks):
            raise TokenizerError(
                f"{path.name} has {len(ranks):,} ranks and cannot be {key!r}",
                where=str(path),
                remedy=f"known schemes: {', '.join(f'{k} ({v.ranks:,} ranks)' for k, v in SCHEMES.items())}",
            )
        # A line cut short in its number, or a line of another file, would else make the library fall over.
        gaps = len(ranks) - len(set(ranks.values()) & set(range(len(ranks))))
        lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if gaps or lacking:
            problem = f"{gaps} ranks are missing" if gaps else f"{len(lacking)} of the 256 bytes are missing"
            raise TokenizerError(
                f"{path.name} is not a whole tiktoken vocabulary: {problem}",
                where=str(path),
                remedy="fetch or copy the file again",
            )
        return cls(name or path.name, ranks, SCHEMES[key])

    @property
    def vocab_size(self) -> int:
        return self._size

    def token_bytes(self, token_id: int) -> bytes:
        self._check_id(token_id)
        return self._bytes.get(token_id, b"")  # ids after the ranks are special tokens

    def find_token(self, data: bytes) -> int | None:
        return self._ranks.get(data)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        # tiktoken's own batch call makes one task a text; tasks of many texts spare most of its time.
        workers = cpu_count() or 1
        size = max(1, min(512, -(-len(texts) // (2 * workers))))
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        encode = self.encoding.encode_ordinary
        if len(parts) < 2:
            return [encode(text) for text in texts]
        with ThreadPoolExecutor(workers) as pool:
            done = pool.map(lambda part: [encode(text) for text in part], parts)
            return [ids for part in done for ids in part]

    def _encode_flat(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        return flatten(self._encode_batch(texts))
