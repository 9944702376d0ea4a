"""What a folder of shards holds: `index.json`, which is also the place where a killed run goes on.

The index is written anew after every shard, whole or not at all. Each shard's entry keeps the place in the
text at which it ends, so that writing can go on behind any shard that is whole.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from chinese_llama_lab.paths import write_json
from chinese_llama_lab.sources.index import sha256_of
from chinese_llama_lab.training.errors import TrainingError

INDEX = "index.json"
FORMAT = 1
SMALL = 2**16  # ids below this need 16 bits


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 over the vocabulary: every piece with its id.

    It says what an id means. Two tokenizers with the same pieces cut a text differently if their merges
    differ, and a model can still read the ids of both.
    """
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    # A byte-level vocabulary may hold any string: escapes keep what UTF-8 could not.
    return hashlib.sha256(json.dumps(pieces, ensure_ascii=True).encode("ascii")).hexdigest()


def id_type(vocabulary: int) -> str:
    """`uint16` for a vocabulary of up to 65,536 ids, else `uint32`."""
    return "uint16" if vocabulary <= SMALL else "uint32"


@dataclass(frozen=True)
class Options:
    """What two runs must share to write the same shards from the same text.

    Attributes:
        block: tokens a block. bos: whether BOS comes before each document. shard_tokens: tokens a shard, a
            multiple of `block`. replay_share: share of the tokens asked for from replay documents.
        vocabulary: ids of the tokenizer. tokenizer: its fingerprint. eos: id at each document's end.
    """

    block: int
    bos: bool
    shard_tokens: int
    replay_share: float
    vocabulary: int
    tokenizer: str
    eos: int

    @property
    def dtype(self) -> str:
        """Of the ids."""
        return id_type(self.vocabulary)


@dataclass(frozen=True)
class Place:
    """A place in one of the two texts: what was taken from it so far.

    Attributes:
        read: documents, empty ones included. documents: without them.
        tokens: with EOS. characters: code points. bytes: of UTF-8. digest: sha256 over the documents read.
    """

    read: int = 0
    documents: int = 0
    tokens: int = 0
    characters: int = 0
    bytes: int = 0
    digest: str = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class Shard:
    """One file.

    Attributes:
        name: of the file. blocks, tokens: in it. documents: that begin in it, and characters of those.
        bytes, sha256: of the file.
        main, replay: places in the texts before the document in which the shard ends. skip: tokens of that
            document which are in this shard or one before. seconds: of writing up to here.
    """

    name: str
    blocks: int
    tokens: int
    documents: int
    characters: int
    bytes: int
    sha256: str
    main: Place
    replay: Place
    skip: int
    seconds: float

    def check(self, folder: Path) -> str | None:
        """What is wrong with the file, or None; the whole file is read."""
        path = folder / self.name
        if not path.is_file():
            return f"{self.name} is missing"
        size = path.stat().st_size
        if size != self.bytes:
            return f"{self.name} has {size} bytes instead of {self.bytes}"
        if sha256_of(path) != self.sha256:
            return f"{self.name} is not what was written (its sha256 differs)"
        return None


@dataclass(frozen=True)
class ShardIndex:
    """A folder of shards.

    Attributes:
        folder: where they are. options: what they were written with. shards: in order.
        complete: whether the text came to its end. main, replay: all that was taken from the two texts.
        tail: tokens at the end that fill no block and are left out.
        seconds: of writing, of all processes that went on with one another (what a kill threw away is not
            in it). workers: processes that tokenized, each on one core.
    """

    folder: Path
    options: Options
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    main: Place = field(default_factory=Place)
    replay: Place = field(default_factory=Place)
    tail: int = 0
    seconds: float = 0.0
    workers: int = 1

    @property
    def blocks(self) -> int:
        """Blocks of all shards."""
        return sum(shard.blocks for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens of all shards; the tail is not among them."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents that are not empty, replayed ones included."""
        return self.main.documents + self.replay.documents

    @property
    def empty(self) -> int:
        """Documents without text, which are left out."""
        return self.main.read + self.replay.read - self.documents

    @property
    def characters(self) -> int:
        """Code points of all documents."""
        return self.main.characters + self.replay.characters

    @property
    def text_bytes(self) -> int:
        """Bytes of all documents in UTF-8."""
        return self.main.bytes + self.replay.bytes

    @property
    def characters_per_token(self) -> float:
        """Of the whole mix, EOS counted as a token."""
        return self.characters / max(1, self.tokens + self.tail)

    @property
    def replay_share(self) -> float:
        """Share of the tokens that belong to replayed documents."""
        return self.replay.tokens / max(1, self.main.tokens + self.replay.tokens)

    @property
    def tokens_per_second(self) -> float:
        """Written, over all workers."""
        return (self.tokens + self.tail) / self.seconds if self.seconds else 0.0

    @property
    def megabytes_per_second(self) -> float:
        """Text read, in 1,000,000 bytes of UTF-8 a second, over all workers."""
        return self.text_bytes / 1e6 / self.seconds if self.seconds else 0.0

    def __repr__(self) -> str:
        replay = f", {self.replay_share:.1%} of the tokens replayed" if self.options.replay_share else ""
        if abs(self.replay_share - self.options.replay_share) > 0.02:
            replay += f" ({self.options.replay_share:.1%} asked for)"
        empty = f", {self.empty:,} empty ones left out" if self.empty else ""
        end = f"tail of {self.tail} tokens left out" if self.complete else "not complete"
        return (
            f"{self.blocks:,} blocks of {self.options.block} tokens in {len(self.shards)} shards from"
            f" {self.documents:,} documents{empty}{replay}; {end}\n"
            f"{self.seconds:.1f} s with {self.workers} worker{'s' if self.workers > 1 else ''}:"
            f" {self.tokens_per_second:,.0f} tokens/s, {self.megabytes_per_second:.2f} MB/s of UTF-8"
        )

    def save(self) -> None:
        """Write `index.json`. The sums are there for whoever reads it; they are not read back."""
        content = {
            "format": FORMAT,
            "complete": self.complete,
            "options": asdict(self.options),
            "dtype": self.options.dtype,
            "blocks": self.blocks,
            "tokens": self.tokens,
            "tail": self.tail,
            "documents": self.documents,
            "empty_documents": self.empty,
            "characters": self.characters,
            "text_bytes": self.text_bytes,
            "replay_share": round(self.replay_share, 6),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "megabytes_per_second": round(self.megabytes_per_second, 4),
            "workers": self.workers,
            "main": asdict(self.main),
            "replay": asdict(self.replay),
            "shards": [asdict(shard) for shard in self.shards],
        }
        write_json(self.folder / INDEX, content)


def read_index(folder: Path) -> ShardIndex:
    """The index of a folder, complete or not.

    Raises: TrainingError: there is none, or it cannot be read, or was written by another version.
    """
    path = Path(folder) / INDEX
    remedy = "give a folder that write_shards wrote (`chinese-llama-lab shards`)"
    if not path.is_file():
        raise TrainingError(
            f"the folder holds no shards: {INDEX} is missing", where=str(folder), remedy=remedy
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise TrainingError(
                f"{INDEX} has format {content['format']}, and this version reads {FORMAT}",
                where=str(path),
                remedy="write the shards anew",
            )
        kept = {entry.name: content[entry.name] for entry in fields(ShardIndex) if entry.name in content}
        shards = [
            Shard(**{**shard, "main": Place(**shard["main"]), "replay": Place(**shard["replay"])})
            for shard in kept.pop("shards")
        ]
        kept |= {"main": Place(**kept["main"]), "replay": Place(**kept["replay"])}
        options = Options(**kept.pop("options"))
        return ShardIndex(Path(folder), options, tuple(shards), **kept)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{INDEX} cannot be read: {error!r}", where=str(path), remedy="write the shards anew: " + remedy
        ) from error
