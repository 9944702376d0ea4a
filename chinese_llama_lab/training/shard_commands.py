"""`shards` from the shell: large text, tokenized and packed once, for `pretrain --shards`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chinese_llama_lab.errors import LabError


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "shards",
        help="tokenize and pack large text into shards",
        description="The text is read as a stream, so that it may be larger than the memory. A killed call"
        " goes on with --resume.",
    )
    parser.add_argument(
        "--text", action="append", default=[], type=Path, metavar="FILE", help="UTF-8, a document a line"
    )
    parser.add_argument(
        "--corpus", action="append", default=[], metavar="NAME", help="training part of a course text"
    )
    parser.add_argument(
        "--replay-text", action="append", default=[], type=Path, metavar="FILE", help="English"
    )
    parser.add_argument("--replay-corpus", action="append", default=[], metavar="NAME")
    parser.add_argument(
        "--replay-share", type=float, default=0.0, metavar="SHARE", help="of the tokens (default: 0)"
    )
    parser.add_argument(
        "--tokenizer", required=True, metavar="MODEL", help="`smollm2`, a folder, or a hub id"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the shards")
    parser.add_argument("--block", type=int, default=512, help="tokens a block (default: 512)")
    parser.add_argument("--bos", action="store_true", help="BOS before each document")
    parser.add_argument("--shard-tokens", type=int, metavar="N", help="tokens a shard (default: 67,108,864)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="cores (default: 1)")
    parser.add_argument("--resume", action="store_true", help="go on behind the last whole shard in --out")
    parser.set_defaults(handler=_shards)


def _shards(options: argparse.Namespace) -> int:
    from chinese_llama_lab.training.shards import SHARD_TOKENS, write_shards

    if not options.text and not options.corpus:
        raise LabError("there is no text to pack", remedy="give --text FILE or --corpus NAME")
    if (options.replay_text or options.replay_corpus) and not options.replay_share:
        raise LabError(
            "replay texts were given, and no share of them", remedy="give --replay-share, such as 0.1"
        )
    index = write_shards(
        _texts(options.text, options.corpus),
        _tokenizer(options.tokenizer),
        options.out,
        block=options.block,
        bos=options.bos,
        replay=_texts(options.replay_text, options.replay_corpus),
        replay_share=options.replay_share,
        shard_tokens=SHARD_TOKENS if options.shard_tokens is None else options.shard_tokens,
        workers=options.workers,
        resume=options.resume,
    )
    print(index)
    print(f"written: {index.folder}")
    return 0


def _texts(files: list[Path], names: list[str]) -> Iterator[Any]:
    """Files and documents one after the other; a course text as `pretrain` reads it."""
    from chinese_llama_lab.sources.corpora import load_corpus

    yield from files
    for name in names:
        yield from load_corpus(name).chinese_punctuation().split("train")


def _tokenizer(name: str) -> Any:
    """The tokenizer of a model; no weights are read."""
    from transformers import AutoTokenizer

    from chinese_llama_lab.sources.models import BUNDLED, converted_model

    place = converted_model(name) if name in BUNDLED else Path(name).expanduser()
    local = place.is_dir()
    try:
        found = AutoTokenizer.from_pretrained(
            str(place) if local else name, trust_remote_code=False, local_files_only=local
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LabError(
            f"the tokenizer {name!r} could not be loaded: {reason}",
            where="--tokenizer",
            remedy=f"give {', '.join(BUNDLED)}, a folder with tokenizer.json, or a hub id (owner/name)",
        ) from error
    return found
