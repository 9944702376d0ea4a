"""How many tokens a character costs.

*Fertility* here is tokens per character (Unicode code points), because Chinese has no spaces to
count words by. One pass over the text, in bounded memory: per batch the ids are counted, never kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinese_llama_lab.errors import TextError
from chinese_llama_lab.tokenization.base import Tokenizer, utf8_lengths
from chinese_llama_lab.tokenization.coverage import character_coverage, standard_characters
from chinese_llama_lab.tokenization.registry import as_tokenizer

BATCH_DOCUMENTS = 2048
BATCH_CHARACTERS = 1 << 20
# Documents are dealt into this many groups for the bootstrap, so memory stays bounded however long
# the stream is. With fewer documents than groups each document is its own group: the exact bootstrap.
GROUPS = 512
# The reference is encoded in full up to here, and in one batch of sixteen after that.
REFERENCE_CHARACTERS = 100_000
REFERENCE_STRIDE = 16


@dataclass(frozen=True)
class Fertility:
    """What one tokenizer costs on one text. Shares are between 0 and 1; `characters` are code points."""

    tokenizer: str
    text: str
    documents: int
    empty_documents: int
    characters: int
    bytes: int
    tokens: int
    interval: tuple[float, float]  # bootstrap over documents; with a single document both ends are the figure
    confidence: float
    split_share: float  # characters cut into several tokens
    byte_share: float  # characters of two bytes or more that became one token a byte
    unknown_share: float  # tokens that are the unknown token: text that is lost
    coverage: Mapping[str, float] = field(
        default_factory=dict
    )  # level → share of its characters with one token
    relative_length: float | None = None  # tokens, divided by the reference's on the same documents
    reference: str | None = None
    reference_characters: int = 0  # how many characters `relative_length` was measured on

    @property
    def tokens_per_character(self) -> float:
        return self.tokens / self.characters

    @property
    def characters_per_token(self) -> float:
        return self.characters / self.tokens if self.tokens else float("inf")

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens if self.tokens else float("inf")

    def row(self) -> dict[str, Any]:
        """One flat row for a table or a CSV file."""
        row: dict[str, Any] = {
            "tokenizer": self.tokenizer,
            "text": self.text,
            "documents": self.documents,
            "characters": self.characters,
            "tokens": self.tokens,
            "tokens_per_character": round(self.tokens_per_character, 4),
            "low": round(self.interval[0], 4),
            "high": round(self.interval[1], 4),
            "characters_per_token": round(self.characters_per_token, 4),
            "bytes_per_token": round(self.bytes_per_token, 4),
            "split_share": round(self.split_share, 6),
            "byte_share": round(self.byte_share, 6),
            "unknown_share": round(self.unknown_share, 6),
            "relative_length": None if self.relative_length is None else round(self.relative_length, 4),
            "reference": self.reference,
            "reference_characters": self.reference_characters,
        }
        row.update({f"coverage_{level}": round(share, 4) for level, share in self.coverage.items()})
        return row

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"{self.tokenizer} on {self.text}: {self.tokens_per_character:.4f} tokens per character "
            f"[{low:.4f}, {high:.4f}], {self.characters:,} characters in {self.documents:,} documents"
        )


class _Tally:
    """Running counts for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self.group_tokens = np.zeros(GROUPS, dtype=np.int64)
        self.byte_characters = 0
        # For each id: 0, or 1 for a lone continuation byte, or 2–4 for a lone first byte of so many.
        self.lone = np.zeros(tokenizer.vocab_size, dtype=np.uint8)
        for byte in range(0x80, 0xF5):
            token_id = tokenizer.find_token(bytes([byte]))
            if token_id is not None:
                self.lone[token_id] = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4

        self.leads = {needed: np.flatnonzero(self.lone == needed) for needed in (2, 3, 4)}

    def add(self, texts: list[str], groups: NDArray[np.int64]) -> int:
        """Count one batch; returns its number of tokens."""
        flat, lengths = self.tokenizer._encode_flat(texts)
        counts = np.bincount(flat, minlength=len(self.counts))
        self.counts += counts
        self.group_tokens += np.bincount(groups, weights=lengths, minlength=GROUPS).astype(np.int64)
        present = [n for n in (2, 3, 4) if counts[self.leads[n]].any()]
        if self.tokenizer.spells_whole_characters:  # each first byte is followed by the others
            self.byte_characters += sum(int(counts[self.leads[n]].sum()) for n in present)
            present = []
        kinds = self.lone[flat] if present else self.lone[:0]
        for needed in present:
            whole = kinds[: len(kinds) - needed + 1] == needed
            for place in range(1, needed):
                whole &= kinds[place : len(kinds) - needed + 1 + place] == 1
            self.byte_characters += int(np.count_nonzero(whole))
        return int(lengths.sum())

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    def split_characters(self) -> int:
        """Characters that begin in one token and end in a later one."""
        used = np.flatnonzero(self.counts)
        return int(self.counts[used][self.tokenizer.begins_unfinished(used)].sum())

    def unknown_tokens(self) -> int:
        unknown = self.tokenizer.unknown_id
        return 0 if unknown is None else int(self.counts[unknown])


def iterate_texts(texts: Any, column: str = "text", *, first: int = 0) -> Iterator[str]:
    """Texts out of whatever holds them: strings, documents with `.text`, rows or a `datasets` data set.

    `first` is the number of the first item, for messages.

    Raises:
        TextError: a row has no such column, or an item is none of these.
    """
    _refuse_other_than_texts(texts)
    for number, item in enumerate(texts, start=first):
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            if not isinstance(item.get(column), str):
                raise TextError(
                    f"there is no text in column {column!r}",
                    where=f"row {number}",
                    remedy=f"columns are {', '.join(map(str, item))}: pass column=…",
                )
            yield item[column]
        elif isinstance(getattr(item, "text", None), str):
            yield item.text
        else:
            raise TextError(
                f"a text was expected, and {type(item).__name__} was found",
                where=f"document {number}",
                remedy="pass strings, documents, or rows with a text column",
            )


def _check_options(resamples: int, confidence: float, seed: int) -> None:
    """Raise TextError for an option that no bootstrap can have."""
    for name, value, fine, allowed in (
        ("resamples", resamples, resamples >= 1, "1 or more"),
        ("confidence", confidence, 0 < confidence < 1, "a number between 0 and 1, such as 0.95"),
        ("seed", seed, seed >= 0, "0 or more"),
    ):
        if not fine:
            raise TextError(f"{name} cannot be {value}", remedy=f"use {allowed}")


def _refuse_other_than_texts(texts: Any) -> None:
    """Raise TextError for one text, a table, a dictionary of splits, and what cannot be iterated over."""
    if hasattr(texts, "itertuples"):  # iterating over a pandas table gives the names of its columns
        raise TextError(
            "a list of texts was expected, and a table was found",
            remedy=f"pass one of its columns: {', '.join(map(str, texts.columns))}",
        )
    if isinstance(texts, str):
        raise TextError("a list of texts was expected, and one text was found", remedy="pass [text]")
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable):
        raise TextError(
            f"a list of texts was expected, and {type(texts).__name__} was found",
            remedy=f"choose one of its parts: {', '.join(map(str, texts))}"
            if isinstance(texts, Mapping)
            else "pass a list, a generator, a corpus or a data set; for a file, read_documents(path)",
        )


def _batches(texts: Iterable[Any], column: str) -> Iterator[list[str]]:
    """Lists of texts, limited by number and by characters, so that memory is bounded either way."""
    if isinstance(texts, list):  # the common case, and twice as fast: no Python step for each text
        for start in range(0, len(texts), BATCH_DOCUMENTS):
            part = texts[start : start + BATCH_DOCUMENTS]
            if set(map(type, part)) == {str} and sum(map(len, part)) <= BATCH_CHARACTERS:
                yield part
            else:
                yield from _grouped(iterate_texts(part, column, first=start))
    else:
        yield from _grouped(iterate_texts(texts, column))


def _grouped(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _interval(
    tokens: NDArray[np.int64], characters: NDArray[np.int64], resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile bootstrap of Σ tokens / Σ characters over groups of documents."""
    used = characters > 0
    tokens, characters = tokens[used], characters[used]
    draws = np.random.default_rng(seed).integers(0, len(tokens), (resamples, len(tokens)), dtype=np.int32)
    ratios = tokens[draws].sum(axis=1) / characters[draws].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def compare(
    tokenizers: Sequence[Any],
    texts: Iterable[Any],
    *,
    text_name: str | None = None,
    column: str = "text",
    reference: Any = "llama",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    coverage: bool = True,
    progress: bool = False,
) -> list[Fertility]:
    """Measure several tokenizers in one pass over one text.

    Args:
        tokenizers: whatever `as_tokenizer` knows: names, paths, or tokenizers of ours or of the libraries.
        texts: strings, documents, mappings, or a `datasets` data set; read once, never held whole.
        text_name: what tables call the text; left out, the name of a corpus, else `text`.
        column: the text column, where rows are mappings.
        reference: whose length counts as 1 in `relative_length`, or None.
        resamples: bootstrap resamples over documents (dealt into at most 512 groups).
        confidence: of the interval.
        seed: of the bootstrap.
        coverage: whether to look up the standard characters (fetches their list).
        progress: show a bar.

    Returns:
        One `Fertility` for each tokenizer, in order.

    Raises:
        TextError: no characters at all, a lone surrogate (document and position are named), a value
            that is no text.
    """
    _check_options(resamples, confidence, seed)
    if isinstance(tokenizers, str):
        tokenizers = [tokenizers]
    _refuse_other_than_texts(texts)
    opened = [as_tokenizer(tokenizer) for tokenizer in tokenizers]
    named = {t: o for t, o in zip(tokenizers, opened, strict=True) if isinstance(t, str)}
    base = None if reference is None else named.get(reference) or as_tokenizer(reference)
    if coverage:  # its list may have to be fetched: before the work, not after it
        standard_characters()
    tallies = [_Tally(tokenizer) for tokenizer in opened]
    # A reference that is itself measured is not encoded twice.
    same = next((t for t in tallies if t.tokenizer is base), None)
    base_tokens = base_characters = 0
    own_tokens = [0] * len(tallies)  # tokens of each on the documents the reference was measured on

    name = text_name or str(getattr(texts, "name", None) or "text")
    group_characters = np.zeros(GROUPS, dtype=np.int64)
    documents = empty = characters = size = 0
    for number, batch in enumerate(_batches(_with_progress(texts, progress, name), column)):
        lengths = np.fromiter(map(len, batch), dtype=np.int64, count=len(batch))
        try:  # all at once: a tenth of the time
            size += len("".join(batch).encode("utf-8"))
        except UnicodeEncodeError:
            utf8_lengths(batch, first=documents)  # names the document
            raise
        groups = np.arange(documents, documents + len(batch), dtype=np.int64) % GROUPS
        measured = base is not None and (characters < REFERENCE_CHARACTERS or number % REFERENCE_STRIDE == 0)
        counts = [tally.add(batch, groups) for tally in tallies]
        if base is not None and (measured or same is not None):
            if same is not None:
                base_tokens += counts[tallies.index(same)]
            else:
                base_tokens += len(base._encode_flat(batch)[0])
            own_tokens = [own + count for own, count in zip(own_tokens, counts, strict=True)]
            base_characters += int(lengths.sum())
        group_characters += np.bincount(groups, weights=lengths, minlength=GROUPS).astype(np.int64)
        documents += len(batch)
        empty += int(np.count_nonzero(lengths == 0))
        characters += int(lengths.sum())
    if not characters:
        raise TextError(
            "there is nothing to measure: "
            + (f"all {documents} documents are empty" if documents else "no documents"),
            where=name,
            remedy="check the path and the column, or whether an earlier step used the iterator up",
        )
    return [
        Fertility(
            tokenizer=tally.tokenizer.name,
            text=name,
            documents=documents,
            empty_documents=empty,
            characters=characters,
            bytes=size,
            tokens=tally.tokens,
            interval=_interval(tally.group_tokens, group_characters, resamples, confidence, seed),
            confidence=confidence,
            split_share=tally.split_characters() / characters,
            byte_share=tally.byte_characters / characters,
            unknown_share=tally.unknown_tokens() / max(1, tally.tokens),
            coverage=character_coverage(tally.tokenizer) if coverage else {},
            relative_length=own / base_tokens if base_tokens else None,
            reference=base.name if base else None,
            reference_characters=base_characters,
        )
        for tally, own in zip(tallies, own_tokens, strict=True)
    ]


def fertility(tokenizer: Any, texts: Iterable[Any], **options: Any) -> Fertility:
    """Measure one tokenizer; options as in `compare`.

    >>> fertility("llama", ["人工智能是计算机科学、心理学、哲学等学科融合的交叉学科。"]).tokens
    35
    """
    return compare([tokenizer], texts, **options)[0]


def _with_progress(texts: Iterable[Any], progress: bool, name: str) -> Iterable[Any]:
    if not progress:
        return texts
    from tqdm.auto import tqdm

    total = len(texts) if isinstance(texts, Sized) else None
    return tqdm(texts, total=total, desc=name, unit="doc", leave=False)
