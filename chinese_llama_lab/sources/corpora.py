"""The course's texts as streams of documents, cleaned, and split once and for all.

Each corpus knows its name, language and licence. Cleaning: marks of the source removed, NFKC (the news
is full of full-width digits), exact duplicates dropped. The split into training and held-out text goes
by a hash of the text itself, so it is the same on every machine and for every subset.
"""

from __future__ import annotations

import difflib
import hashlib
import heapq
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from chinese_llama_lab.errors import SourceError
from chinese_llama_lab.sources.fetch import source_file
from chinese_llama_lab.sources.manifest import load_manifest

HELD_OUT_PART = 20  # one document in twenty
SPLITS = ("all", "train", "held-out")

# What NFKC would turn into ASCII and Chinese typesetting does not. Between two digits they stay ASCII: 12:30.
_KEPT = re.compile(r"(?<![0-9０-９])[，！？；：（）…]|[，！？；：（）…](?![0-9０-９])")


@dataclass(frozen=True)
class Document:
    """One text with where it comes from. `topic` is empty where the source has none."""

    text: str
    corpus: str
    language: str  # "zh" or "en"
    licence: str
    topic: str = ""


def _peoples_daily() -> Iterator[tuple[str, str]]:
    with source_file("peoples-daily").open(encoding="utf-8") as lines:
        for line in lines:
            # A word may hold a slash itself; the tag is what follows the last one.
            yield "".join(word.rsplit("/", 1)[0] for word in line.split()), ""


def _reviews() -> Iterator[tuple[str, str]]:
    for topic, filename in (("positive", "pos.txt"), ("negative", "neg.txt")):
        with source_file("reviews", filename).open(encoding="utf-8") as lines:
            yield from ((line.strip(), topic) for line in lines)


def _three_kingdoms() -> Iterator[tuple[str, str]]:
    for chapter in json.loads(source_file("three-kingdoms").read_text(encoding="utf-8")):
        lines = (line.strip() for line in chapter.split("\n"))
        kept = [line for line in lines if line]
        yield "\n".join(kept), kept[0].split()[0]


def _modern() -> Iterator[tuple[str, str]]:
    for filename in ("dataset_sentence_long.json", "dataset_sentence_short.json"):
        topics = json.loads(source_file("modern-sentences", filename).read_text(encoding="utf-8"))
        for topic, entry in topics.items():
            yield from ((text.strip(), topic) for text in entry["texts"])


def _hsk(language: str) -> Callable[[], Iterator[tuple[str, str]]]:
    def read() -> Iterator[tuple[str, str]]:
        for row in json.loads(source_file("hsk-sentences").read_text(encoding="utf-8")):
            text = row["chinese"] if language == "zh" else row["translation"]["en"]
            yield text.strip(), f"HSK {row['hsk_level']}"

    return read


def _alpaca_zh() -> Iterator[tuple[str, str]]:
    for row in instruction_rows():
        yield "\n".join(part for part in (row["instruction"], row["input"], row["output"]) if part), ""


def _wikipedia_en() -> Iterator[tuple[str, str]]:
    with source_file("wikipedia-en").open(encoding="utf-8") as lines:
        yield from ((line.strip(), "") for line in lines)


def _c4_en() -> Iterator[tuple[str, str]]:
    with source_file("c4-en").open(encoding="utf-8") as lines:
        yield from ((json.loads(line)["text"].strip(), "") for line in lines)


def _python_docs() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    yield from ((str(text).strip(), str(name)) for name, text in topics.items())


@dataclass(frozen=True)
class Corpus:
    """A stream of documents that can be read any number of times.

    Attributes:
        name: as in `load_corpus`.
        title: what it is.
        language: "zh" or "en".
        licence: of the text, as its source states it.
        source: its entry in the manifest, or "" for Python's own documentation.
    """

    name: str
    title: str
    language: str
    licence: str
    source: str
    _read: Callable[[], Iterator[tuple[str, str]]]
    _form: str = "nfkc"  # or "chinese", or "raw"
    _split: str = "all"
    _limit: int | None = None
    _sample: int | None = None

    def __iter__(self) -> Iterator[Document]:
        documents: Iterator[Document] = (
            Document(text, self.name, self.language, self.licence, topic)
            for text, key, topic in self._texts()
            if self._split == "all" or (self._split == "held-out") == is_held_out(key)
        )
        if self._sample is not None:
            documents = iter(_smallest_hashes(documents, self._sample))
        return documents if self._limit is None else islice(documents, self._limit)

    def _texts(self) -> Iterator[tuple[str, str, str]]:
        """(text, what its split goes by, topic)."""
        if self._form == "raw":
            yield from ((text, text, topic) for text, topic in self._read() if text)
            return
        seen: set[bytes] = set()
        for printed, topic in self._read():
            text = unicodedata.normalize("NFKC", printed).strip()
            digest = hashlib.sha256(text.encode("utf-8")).digest()
            if text and digest not in seen:
                seen.add(digest)
                yield chinese_punctuation(printed) if self._form == "chinese" else text, text, topic

    def texts(self) -> list[str]:
        """All texts, in order."""
        return [document.text for document in self]

    def split(self, part: str) -> Corpus:
        """Only the `train` or the `held-out` documents (one in twenty), or `all`."""
        if part not in SPLITS:
            raise SourceError(f"there is no split called {part!r}", remedy=f"use one of {', '.join(SPLITS)}")
        return replace(self, _split=part)

    def take(self, documents: int | None) -> Corpus:
        """Only the first so many documents; None for all."""
        return replace(self, _limit=documents)

    def sample(self, documents: int | None) -> Corpus:
        """So many documents chosen by a hash of their text, in their order; None for all.

        Unlike `take`, it draws from every part of a corpus that is ordered by topic or grade.
        """
        return replace(self, _sample=documents)

    def raw(self) -> Corpus:
        """Without NFKC and with duplicates: the text as its source prints it."""
        return replace(self, _form="raw")

    def chinese_punctuation(self) -> Corpus:
        """The same documents, in the same parts, with the punctuation that NFKC makes half-width.

        A model that is to write Chinese is trained on this form: on cleaned text it learns `,` for `，`.
        """
        return replace(self, _form="chinese")

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {self.language}, {self._split})"


def chinese_punctuation(text: str) -> str:
    """NFKC for all but full-width punctuation outside numbers: `１９９８年，` becomes `1998年，`."""
    pieces, end = [], 0
    for mark in _KEPT.finditer(text):
        pieces += [unicodedata.normalize("NFKC", text[end : mark.start()]), mark.group()]
        end = mark.end()
    return "".join([*pieces, unicodedata.normalize("NFKC", text[end:])]).strip()


def _text_hash(text: str, salt: str = "") -> int:
    return int.from_bytes(hashlib.sha256((salt + text).encode("utf-8")).digest()[:8], "big")


def is_held_out(text: str) -> bool:
    """Whether a text belongs to the held-out part: decided by its sha256 alone."""
    return _text_hash(text) % HELD_OUT_PART == 0


def _smallest_hashes(documents: Iterator[Document], count: int) -> list[Document]:
    """The `count` documents whose salted hashes are smallest, in their order: the same on every machine."""
    # The salt keeps the choice independent of the split, which goes by the bare hash.
    hashed = ((_text_hash(d.text, "sample:"), place, d) for place, d in enumerate(documents))
    chosen = heapq.nsmallest(count, hashed, key=lambda entry: entry[:2])
    return [document for _, _, document in sorted(chosen, key=lambda entry: entry[1])]


# name → (title, language, manifest entry, reader)
_CORPORA: dict[str, tuple[str, str, str, Callable[[], Iterator[tuple[str, str]]]]] = {
    "peoples-daily": ("news: People's Daily, January 1998", "zh", "peoples-daily", _peoples_daily),
    "reviews": ("reviews of books and products", "zh", "reviews", _reviews),
    "three-kingdoms": ("classical novel: 三国演义", "zh", "three-kingdoms", _three_kingdoms),
    "hsk-zh": ("textbook sentences, graded", "zh", "hsk-sentences", _hsk("zh")),
    "hsk-en": ("the same textbook sentences in English", "en", "hsk-sentences", _hsk("en")),
    "modern": ("modern sentences in ten topics", "zh", "modern-sentences", _modern),
    "alpaca-zh": ("Chinese instructions with answers", "zh", "alpaca-zh", _alpaca_zh),
    "wikipedia-en": ("English encyclopedia", "en", "wikipedia-en", _wikipedia_en),
    "c4-en": ("English web pages", "en", "c4-en", _c4_en),
    "python-docs": ("English technical prose: Python's documentation", "en", "", _python_docs),
}


def corpus_names() -> list[str]:
    """The names that `load_corpus` knows."""
    return list(_CORPORA)


def load_corpus(name: str) -> Corpus:
    """A corpus by name; its file is fetched when it is first read.

    Raises:
        SourceError: unknown name (the near ones are offered).
    """
    if name not in _CORPORA:
        near = difflib.get_close_matches(name, _CORPORA, n=2, cutoff=0.4)
        raise SourceError(
            f"there is no corpus called {name!r}",
            remedy=(f"did you mean {' or '.join(near)}? " if near else "") + f"known: {', '.join(_CORPORA)}",
        )
    title, language, source, read = _CORPORA[name]
    licence = load_manifest()[source].licence if source else "PSF-2.0"
    return Corpus(name, title, language, licence, source, read)


def instruction_rows() -> list[dict[str, str]]:
    """The fetched Chinese instruction rows: dicts with `instruction`, `input` and `output`."""
    rows: list[dict[str, Any]] = json.loads(source_file("alpaca-zh").read_text(encoding="utf-8"))
    return [{key: str(row.get(key) or "") for key in ("instruction", "input", "output")} for row in rows]


def glosses() -> dict[str, list[str]]:
    """CC-CEDICT: simplified word → its English glosses, in the order of the file. CC-BY-SA-4.0."""
    found: dict[str, list[str]] = {}
    with source_file("cc-cedict").open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.startswith("#") or not line.strip():
                continue
            head, _, tail = line.partition(" /")
            words = head.split(" [")[0].split(" ")
            if not tail or len(words) != 2:
                raise SourceError(
                    f"line {number} of CC-CEDICT is no entry: {line[:60]!r}",
                    where=str(source_file("cc-cedict")),
                    remedy="run `chinese-llama-lab fetch cc-cedict` again",
                )
            found.setdefault(words[1], []).extend(
                gloss for gloss in tail.rstrip("/\r\n ").split("/") if gloss
            )
    return found
