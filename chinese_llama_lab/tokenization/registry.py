"""Open a tokenizer by name, by file, by folder or by hub id."""

from __future__ import annotations

import codecs
import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from chinese_llama_lab.errors import TokenizerError
from chinese_llama_lab.paths import atomic_file, cache_dir, remove_leftovers
from chinese_llama_lab.sources.fetch import cache_lock, source_file
from chinese_llama_lab.sources.hub import cached_hub_file, hub_endpoint, hub_reachable
from chinese_llama_lab.sources.manifest import load_manifest
from chinese_llama_lab.tokenization.base import Tokenizer
from chinese_llama_lab.tokenization.fast import FastTokenizer, wordpiece
from chinese_llama_lab.tokenization.gguf_vocabulary import (
    byte_level_tokenizer,
    read_vocabulary,
    sentencepiece_model,
)
from chinese_llama_lab.tokenization.sentencepiece_model import SentencePieceTokenizer
from chinese_llama_lab.tokenization.tiktoken_file import SCHEMES, TiktokenTokenizer

HUB_FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class Known:
    """A tokenizer that the course knows by name."""

    name: str
    label: str  # what plots call it
    title: str


@cache
def known_tokenizers() -> dict[str, Known]:
    """Every tokenizer that can be opened by name: name → label and title."""
    labels = {
        "smollm2": "SmolLM2",
        "llama": "LLaMA",
        "gpt-2": "GPT-2",
        "qwen2": "Qwen2",
        "deepseek-llm": "DeepSeek-LLM",
        "baichuan": "Baichuan",
        "mistral": "Mistral v1",
        "llama-3": "Llama-3",
        "llama-4": "Llama-4",
        "qwen": "Qwen",
        "qwen3.6": "Qwen3.6",
        "deepseek-v4": "DeepSeek-V4",
        "bert-base-chinese": "BERT Chinese",
    }
    sources = load_manifest().sources.values()
    return {
        source.name: Known(source.name, labels.get(source.name, source.name), source.title)
        for source in sources
        if source.kind == "tokenizer" or source.name == "smollm2"
    }


def open_tokenizer(name_or_path: str | os.PathLike[str]) -> Tokenizer:
    """Open a tokenizer.

    Args:
        name_or_path: a name of `known_tokenizers()`; a file (`.model`, `tokenizer.json`, a tiktoken
            file, a GGUF file or a WordPiece `vocab.txt`: its content decides, not its suffix); a folder
            that holds one of them; or a hub id such as `Qwen/Qwen3-0.6B`.

    Raises:
        TokenizerError: unknown name (the near ones are offered), damaged file, hub out of reach.
        SourceError: the file of a known tokenizer could not be fetched.
    """
    key = os.fspath(name_or_path)
    known = known_tokenizers()
    if key in known:
        return _open_known(known[key])
    path = Path(key).expanduser()
    if key and path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return open_tokenizer_file(path)
    if _looks_like_hub_id(key):
        return _open_hub(key)
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
    raise TokenizerError(
        f"there is no tokenizer called {key!r}, and no file or folder of that name",
        remedy=(f"did you mean {' or '.join(near)}? " if near else "")
        + f"known names: {', '.join(known)}; or give a path, or a hub id (owner/name)",
    )


def as_tokenizer(given: Any) -> Tokenizer:
    """A `Tokenizer` from whatever the reader has at hand.

    Args:
        given: a `Tokenizer`; a name, path or hub id (see `open_tokenizer`); a fast tokenizer of transformers;
            a `tokenizers.Tokenizer`; or a `SentencePieceProcessor`.

    Raises:
        TokenizerError: it is none of these.
    """
    if isinstance(given, Tokenizer):
        return given
    if isinstance(given, (str, os.PathLike)):
        return open_tokenizer(given)
    name = str(getattr(given, "name_or_path", "") or type(given).__name__)
    inner = getattr(given, "backend_tokenizer", given)
    if isinstance(inner, tokenizers.Tokenizer):
        return FastTokenizer(Path(name).name, inner)
    if isinstance(inner, sentencepiece.SentencePieceProcessor):
        return SentencePieceTokenizer(name, inner.serialized_model_proto())
    raise TokenizerError(
        f"a {type(given).__name__} is no tokenizer that is known here",
        remedy="give a name, a path, a fast tokenizer of transformers, or a `tokenizers.Tokenizer`",
    )


def _looks_like_hub_id(key: str) -> bool:
    return key.count("/") == 1 and not key.startswith((".", "/", "~")) and all(key.split("/"))


@cache  # a tokenizer never changes once it is open, and some take a second to build
def _open_known(known: Known) -> Tokenizer:
    try:
        return _open_source(known)
    except TokenizerError as error:
        raise TokenizerError(
            error.what,
            where=error.where,
            remedy=f"the file in the cache is damaged: run `chinese-llama-lab fetch --verify {known.name}`",
        ) from error


def _open_source(known: Known) -> Tokenizer:
    names = [member.filename for member in load_manifest()[known.name].members]
    path = source_file(known.name, names[0])
    if path.suffix == ".gguf":
        return _open_gguf(path, known.label, cached_as=known.name)
    if known.name in SCHEMES:
        return TiktokenTokenizer.from_file(path, known.label, scheme=known.name)
    if path.name == "vocab.txt":
        return wordpiece(path, known.label)
    return open_tokenizer_file(path, known.label)


def _open_folder(folder: Path) -> Tokenizer:
    for filename in (*HUB_FILES, "vocab.txt"):
        if (folder / filename).is_file():
            return open_tokenizer_file(folder / filename, folder.name)
    others = sorted(path for path in folder.iterdir() if path.suffix in (".model", ".gguf", ".tiktoken"))
    if len(others) == 1:
        return open_tokenizer_file(others[0], folder.name)
    raise TokenizerError(
        "the folder holds no tokenizer" if not others else f"the folder holds {len(others)} tokenizers",
        where=str(folder),
        remedy="name one of them: " + ", ".join(path.name for path in others)
        if others
        else "it should hold tokenizer.json, a .model file, vocab.txt, a .tiktoken or a .gguf file",
    )


def _open_hub(repo: str) -> Tokenizer:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    cached = [path for path in (cached_hub_file(repo, name) for name in HUB_FILES) if path]
    if cached:
        return open_tokenizer_file(cached[0], repo.split("/")[1])
    if not hub_reachable():
        raise _hub_out_of_reach(repo, ConnectionError(f"{hub_endpoint()} does not answer"))
    for filename in HUB_FILES:
        try:
            path = Path(hf_hub_download(repo, filename))
        except EntryNotFoundError:
            continue
        except Exception as error:  # the hub client and its HTTP library have many error classes
            raise _hub_out_of_reach(repo, error) from error
        return open_tokenizer_file(path, repo.split("/")[1])
    raise TokenizerError(
        f"{repo} on the hub has neither {' nor '.join(HUB_FILES)}", remedy="download its tokenizer by hand"
    )


def _hub_out_of_reach(repo: str, error: Exception) -> TokenizerError:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return TokenizerError(
        f"{repo} could not be read from the hub, and is not in its cache: {reason}",
        remedy=f"check the id and the network, set HF_ENDPOINT to a mirror, log in for a gated model, or use "
        f"one that comes from a package index: {', '.join(known_tokenizers())}",
    )


def open_tokenizer_file(path: Path, name: str | None = None) -> Tokenizer:
    """Open a tokenizer file of any known kind, told by its content.

    Raises:
        TokenizerError: empty, damaged, or of no known kind.
    """
    label = name or (path.parent.name if path.name in (*HUB_FILES, "vocab.txt") else path.stem)
    with path.open("rb") as stream:
        head = stream.read(4096)
    if not head:
        raise TokenizerError("the file is empty", where=str(path), remedy="fetch or copy it again")
    for fits, opener in _KINDS:
        if fits(head, path):
            return opener(path, label)
    instead = next((kind for start, kind in _NO_TOKENIZERS.items() if head.lstrip().startswith(start)), "")
    raise TokenizerError(
        f"{path.name} is of no known kind" + (f": it is {instead}" if instead else ""),
        where=str(path),
        remedy="give a SentencePiece .model, a tokenizer.json, a tiktoken file, a GGUF file or a vocab.txt",
    )


def _open_gguf(path: Path, name: str, cached_as: str | None = None) -> Tokenizer:
    """Rebuild a GGUF vocabulary. Reading one takes seconds: a source's is kept once converted."""
    if cached_as is None:
        vocabulary = read_vocabulary(path)
        if vocabulary["model"] == "llama":
            return SentencePieceTokenizer(name, sentencepiece_model(vocabulary), where=str(path))
        if vocabulary["model"] == "gpt2":
            return FastTokenizer(name, byte_level_tokenizer(vocabulary, where=str(path)))
        raise TokenizerError(
            f"{path.name} holds a vocabulary of kind {vocabulary['model']!r}",
            where=str(path),
            remedy="only `llama` (SentencePiece) and `gpt2` (byte-level BPE) are known; "
            "use the model's tokenizer.json instead",
        )
    converted = converted_gguf(cached_as)
    try:
        return open_tokenizer_file(converted, name)
    except TokenizerError:  # damaged since it was made, and no fetch would replace it
        converted.unlink(missing_ok=True)
        return open_tokenizer_file(converted_gguf(cached_as), name)


def converted_gguf(source: str) -> Path:
    """A GGUF source's vocabulary in its library's own format, converted once."""
    member = load_manifest()[source].members[0]
    # The name holds the hash of what it was made from: a new source never meets an old conversion.
    folder = cache_dir() / "derived" / f"tokenizer-{source}-{member.sha256[:12]}-v1"
    with cache_lock(folder.name):
        for filename in HUB_FILES:
            if (folder / filename).is_file():
                return folder / filename
        path = source_file(source, member.filename)
        made = _open_gguf(path, source)
        if isinstance(made, SentencePieceTokenizer):
            data, target = made.model, folder / "tokenizer.model"
        else:
            assert isinstance(made, FastTokenizer)
            data, target = made.tokenizer.to_str().encode("utf-8"), folder / "tokenizer.json"
        remove_leftovers(target)
        with atomic_file(target) as temporary:
            temporary.write_bytes(data)
    return target


def _is_wordpiece(head: bytes, path: Path) -> bool:
    with path.open("rb") as stream:
        return b"[UNK]" in head.split(b"\n") or b"[UNK]" in stream.read(1 << 16).splitlines()


def _is_tiktoken(head: bytes, path: Path) -> bool:
    first = head.split(b"\n")[0].split()
    return len(first) == 2 and first[1].isdigit() and len(first[0]) % 4 == 0


# How files begin that often lie where a tokenizer was expected.
_NO_TOKENIZERS = {
    b"<": "a web page, so the download went wrong",
    b"version https://git-lfs": "a Git LFS pointer, so the file itself was not downloaded (git lfs pull)",
}

_KINDS: list[tuple[Callable[[bytes, Path], bool], Callable[[Path, str], Tokenizer]]] = [
    (lambda head, _: head.startswith(b"GGUF"), _open_gguf),
    (lambda head, _: head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"), FastTokenizer.from_file),
    (_is_tiktoken, TiktokenTokenizer.from_file),
    (_is_wordpiece, wordpiece),
    # Whatever else is binary is offered to SentencePiece, which says clearly if it is not one.
    (lambda head, _: b"\x00" in head or head.startswith(b"\n"), SentencePieceTokenizer.from_file),
]
