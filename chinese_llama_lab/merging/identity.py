"""What goes along with the weights: tokenizer, config, generation config, and what it was all made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chinese_llama_lab.merging.adapter import Adapter
from chinese_llama_lab.merging.base import EMBEDDING, Base
from chinese_llama_lab.merging.files import AdapterError, read_json
from chinese_llama_lab.sources.index import sha256_of
from chinese_llama_lab.vocabulary.consistency import SPARE_ROWS

MADE_OF = "made_of.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates",
)
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_GENERATION = "generation_config.json"


def _tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, or None."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _VOCABULARIES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever it stumbles over
        raise AdapterError(
            f"the tokenizer cannot be loaded: {error}", where=str(folder), remedy="copy it again"
        ) from error


def choose_tokenizer(base: Path, chain: Sequence[Adapter], rows: int | None) -> tuple[Path, Any]:
    """The tokenizer of the last adapter that brings one, else the base's, and its folder.

    Raises: AdapterError: an adapter gives a token another id, or has fewer tokens; or there are more tokens
        than `rows`.
    """
    folder, tokenizer = base, _tokenizer(base)
    known: dict[str, int] = tokenizer.get_vocab() if tokenizer is not None else {}
    for adapter in chain:
        brought = _tokenizer(adapter.folder)
        if brought is None:
            continue
        own: dict[str, int] = brought.get_vocab()
        moved = [token for token, index in known.items() if own.get(token, index) != index]
        if moved or len(own) < len(known):
            what = (
                f"token {moved[0]!r} has id {own[moved[0]]}, and {known[moved[0]]} before"
                if moved
                else f"it has {len(own)} tokens, and there were {len(known)} before"
            )
            adapter.refuse(
                f"it has another vocabulary: {what}", "give the base and the chain that it was trained on"
            )
        folder, tokenizer, known = adapter.folder, brought, own
    if known and rows is not None and max(known.values()) >= rows:
        raise AdapterError(
            f"the tokenizer has {max(known.values()) + 1} tokens and the merged model {rows} rows",
            where=str(folder),
            remedy="resize the base with extend_embeddings first, or give the adapter in between",
        )
    return folder, tokenizer


def write_identity(
    out: Path,
    base: Base,
    shapes: Mapping[str, Sequence[int]],
    dtype: str,
    *,
    untied: bool,
    tokenizer: tuple[Path, Any],
) -> None:
    """Write config, generation config and tokenizer, which all say what the merged weights are."""
    config = dict(base.config)
    config.pop("torch_dtype", None)  # what older versions call it
    config["dtype"] = dtype
    if untied:
        config["tie_word_embeddings"] = False
    generation = read_json(base.folder / _GENERATION) if (base.folder / _GENERATION).is_file() else None
    folder, loaded = tokenizer
    if EMBEDDING in shapes:
        rows = shapes[EMBEDDING][0]
        config["vocab_size"] = rows
        if config.pop(SPARE_ROWS, 0) and loaded is not None and rows > len(loaded):
            config[SPARE_ROWS] = rows - len(loaded)
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
        elif (folder / name).is_dir():
            shutil.copytree(folder / name, out / name)
    if folder != base.folder and loaded.pad_token_id is not None:  # a pad that came with an adapter
        for settings in (config, generation):
            if settings is not None:
                settings["pad_token_id"] = loaded.pad_token_id
    for name, settings in (("config.json", config), (_GENERATION, generation)):
        if settings is not None:
            text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
            (out / name).write_text(text, encoding="utf-8")


def made_of(base: Base, chain: Sequence[Adapter], tokenizer: Path, dtype: str) -> dict[str, Any]:
    """sha256 of every file that went in, and how they were put together."""
    own = ("config.json", _GENERATION, MADE_OF, *base.files)
    return {
        "base": _hashes(base.folder, own),
        "adapters": [
            _hashes(a.folder, ("adapter_config.json", a.path.name, "run.json", MADE_OF)) for a in chain
        ],
        "tokenizer": _hashes(tokenizer, _TOKENIZER_FILES),
        "dtype": dtype,
    }


def _hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: sha256_of(folder / name) for name in names if (folder / name).is_file()}
