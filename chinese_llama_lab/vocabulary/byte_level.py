"""Open a BPE `tokenizer.json` and see its tokens as bytes.

A byte-level vocabulary spells each of the 256 bytes as one printable character (GPT-2's table), so its
tokens may begin or end inside a character. This file does not train anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chinese_llama_lab.tokenization.fast import byte_alphabet, byte_letters
from chinese_llama_lab.vocabulary.errors import VocabularyError


def spell(data: bytes) -> str:
    """Bytes as a byte-level vocabulary spells them."""
    table = byte_letters()
    return "".join(table[b] for b in data)


def bytes_of(token: str) -> bytes:
    """The bytes a byte-level token stands for. Raises KeyError if it is not spelt in the table."""
    table = byte_alphabet()
    return bytes(table[c] for c in token)


def text_of(token: str) -> str | None:
    """The token's text, or None if it begins or ends inside a character."""
    try:
        return bytes_of(token).decode("utf-8")
    except (UnicodeDecodeError, KeyError):
        return None


def as_tokenizer(tokenizer: Any, *, where: str = "tokenizer") -> Tokenizer:
    """The `tokenizers.Tokenizer` in whatever was given; its model must be BPE.

    Args:
        tokenizer: a path to a `tokenizer.json`, a `tokenizers.Tokenizer` or a transformers fast tokenizer.

    Raises: VocabularyError for anything else (WordPiece, unigram, a tiktoken or SentencePiece file).
    """
    if isinstance(tokenizer, (str, Path)):
        where = str(tokenizer)
        try:
            text = Path(tokenizer).read_text(encoding="utf-8")
            loaded = Tokenizer.from_str(text)
        except Exception as error:
            raise VocabularyError(
                f"This is no tokenizer.json: {str(error)[:200]}",
                where=where,
                remedy="Give a `tokenizer.json`; convert a tiktoken file or a SentencePiece model first.",
            ) from error
    elif isinstance(tokenizer, Tokenizer):
        loaded = tokenizer
    else:
        inner = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(inner, Tokenizer):
            raise VocabularyError(
                f"A {type(tokenizer).__name__} has no `tokenizers` backend.",
                where=where,
                remedy="Pass a fast tokenizer, a `tokenizers.Tokenizer` or a path to a `tokenizer.json`.",
            )
        loaded = inner
    kind = type(loaded.model).__name__
    if kind != "BPE":
        raise VocabularyError(
            f"The tokenizer's model is {kind}, and BPE is needed here.",
            where=where,
            remedy="Give a BPE tokenizer (SmolLM2, Llama-3, Qwen, GPT-2 …).",
        )
    return loaded


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer maps text onto GPT-2's byte alphabet and its vocabulary spells bytes that way.

    Not all 256 need be there: SmolLM2's lacks the bytes its training text never had.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return '"ByteLevel"' in _pipeline(tokenizer) and any(c in vocabulary for c in byte_alphabet())


def _pipeline(tokenizer: Tokenizer) -> str:
    state = json.loads(tokenizer.to_str())
    return json.dumps([state["normalizer"], state["pre_tokenizer"]])


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The merges in order, as pairs of token strings."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    # Older files write a merge as "left right", newer ones as a list of two.
    split = (m.split(" ", 1) if isinstance(m, str) else m for m in merges)
    return [(left, right) for left, right in split]


def merge_scores(tokenizer: Tokenizer) -> dict[tuple[str, str], int]:
    """Rank of each merge (0 is applied first)."""
    return {pair: rank for rank, pair in enumerate(merges_of(tokenizer))}


def model_alone(tokenizer: Tokenizer) -> Tokenizer:
    """The BPE model without normaliser, pre-tokenizer, look-up of whole words and added tokens."""
    state = json.loads(tokenizer.to_str())
    state["model"]["ignore_merges"] = False
    state.update(normalizer=None, pre_tokenizer=None, post_processor=None, decoder=None, added_tokens=[])
    state.update(truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(state))


def produced_somewhere(tokenizer: Tokenizer, wanted: Iterable[tuple[int, str]]) -> set[int]:
    """Which of the wanted ids come out of the whole tokenizer in at least one context that was tried.

    Contexts: the token's text between a handful of neighbours; for a token that begins or ends inside a
    character, every character of the Basic Multilingual Plane and a sample of the others, then completions
    on both sides.
    """
    wanted = list(wanted)
    found: set[int] = set()
    neighbours = ["", "a", " ", ".", "\n", "1", "中"]
    partial = []
    texts: list[str] = []
    for _, token in wanted:
        text = text_of(token)
        if text is None:
            partial.append(token)
        else:
            texts += [left + text + right for left in neighbours for right in neighbours]
    if partial:
        texts += [chr(c) for c in range(0x80, 0x10000) if not 0xD800 <= c < 0xE000]
        texts += [chr(c) for c in range(0x10000, 0x110000, 61)]
        for token in partial:
            texts += _completions(token)
    ids = {index for index, _ in wanted}
    for at in range(0, len(texts), 20_000):
        for encoding in tokenizer.encode_batch(texts[at : at + 20_000], add_special_tokens=False):
            found.update(ids.intersection(encoding.ids))
    return found


def _completions(token: str) -> list[str]:
    """Valid texts that contain the token's bytes, up to 64 endings for each of a few beginnings."""
    data = bytes_of(token) if all(c in byte_alphabet() for c in token) else b""
    lead_in = 0
    while lead_in < len(data) and 0x80 <= data[lead_in] < 0xC0:
        lead_in += 1
    if lead_in > 3 or not data:
        return []
    fronts: list[bytes] = [b""]
    if lead_in:
        fronts = [
            front
            for lead in ([bytes([lead]) for lead in range(0xC2, 0xE0)] if lead_in == 1 else [])
            + [
                bytes([first]) + b"\x98" * (n - lead_in - 1)
                for n, leads in ((3, range(0xE1, 0xED)), (4, range(0xF0, 0xF4)))
                if n > lead_in
                for first in leads
            ]
            for front in [lead]
        ]
    backs: list[bytes] = [b""]
    tail = len(data)
    while tail > lead_in and 0x80 <= data[tail - 1] < 0xC0:
        tail -= 1
    if tail > lead_in:
        lead = data[tail - 1]
        length = 2 if 0xC2 <= lead < 0xE0 else 3 if 0xE0 <= lead < 0xF0 else 4 if lead >= 0xF0 else 1
        missing = length - (len(data) - tail + 1)
        if missing > 0:
            backs = [bytes([b]) + b"\x98" * (missing - 1) for b in range(0x80, 0xC0)]
    out = []
    for front in fronts:
        for back in backs:
            try:
                text = (front + data + back).decode("utf-8")
                out += [text, text + "中"]  # a space may belong to the unit on its right
            except UnicodeDecodeError:
                continue
    return out
