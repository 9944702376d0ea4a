"""`fertility`: tokens per character of the reader's own files, from the shell."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinese_llama_lab.errors import LabError, TextError

if TYPE_CHECKING:
    from chinese_llama_lab.tokenization.fertility import Fertility

PLOT_FORMATS = (".png", ".svg", ".pdf")


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "fertility",
        help="tokens per character of text files under one or more tokenizers",
        description="One document a line, UTF-8. A tokenizer is a known name (`chinese-llama-lab sources`), "
        "a file, a folder or a hub id.",
    )
    parser.add_argument("files", nargs="*", metavar="FILE", type=Path)
    parser.add_argument(
        "--corpus", action="append", default=[], metavar="NAME", help="one of the course's texts"
    )
    parser.add_argument("--tokenizer", action="append", nargs="+", required=True, metavar="NAME_OR_PATH")
    parser.add_argument("--reference", default="llama", help="whose length is 1 (default: llama), or `none`")
    parser.add_argument("--no-coverage", action="store_true", help="do not look up the standard characters")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--csv", type=Path, metavar="OUT", help="write every figure to a CSV file")
    parser.add_argument("--plot", type=Path, metavar="OUT", help=f"draw it ({', '.join(PLOT_FORMATS)})")
    parser.set_defaults(handler=_fertility)


def _fertility(options: argparse.Namespace) -> int:
    from chinese_llama_lab.sources.corpora import load_corpus
    from chinese_llama_lab.sources.textfiles import check_text_file, read_documents
    from chinese_llama_lab.tokenization.fertility import compare
    from chinese_llama_lab.tokenization.registry import open_tokenizer

    if not options.files and not options.corpus:
        raise LabError(
            "there is nothing to measure",
            remedy="name one or more text files before --tokenizer, or --corpus NAME",
        )
    for out in (options.csv, options.plot):  # what cannot be written is said before the work, not after it
        if out and (out.is_dir() or not _nearest_folder(out).is_dir()):
            raise LabError("no file can be written there", where=str(out), remedy="give another path")
    if options.plot and options.plot.suffix.lower() not in PLOT_FORMATS:
        raise LabError(
            f"a plot cannot be written as {options.plot.suffix or 'a file without suffix'}",
            where=str(options.plot),
            remedy=f"use one of {', '.join(PLOT_FORMATS)}",
        )
    inputs = [*options.files, *(Path(name) for group in options.tokenizer for name in group)]
    for out in (options.csv, options.plot):
        if out and any(path.exists() and out.exists() and path.samefile(out) for path in inputs):
            raise LabError("that would overwrite what is read", where=str(out), remedy="give another path")
    names = [name for group in options.tokenizer for name in group]
    tokenizers = [open_tokenizer(name) for name in names]
    labels = [tokenizer.name for tokenizer in tokenizers]
    for place, name in enumerate(names):
        if labels.count(labels[place]) > 1:  # two files of one name: their paths tell them apart
            tokenizers[place] = copy(tokenizers[place])
            tokenizers[place].name = name
    corpora = [load_corpus(name) for name in options.corpus]
    for path in options.files:  # a path mistyped last must not cost the work done first
        check_text_file(path)
    measured: list[Fertility] = []
    texts: list[tuple[str, Iterable[Any]]] = [(str(path), read_documents(path)) for path in options.files]
    texts += [(corpus.name, corpus) for corpus in corpora]
    bad: list[TextError] = []
    for name, documents in texts:
        try:
            found = compare(
                tokenizers,
                documents,
                text_name=name,
                reference=None if options.reference == "none" else options.reference,
                coverage=not options.no_coverage,
                seed=options.seed,
                progress=sys.stderr.isatty(),
            )
        except TextError as error:  # a bad file must not cost the others
            bad.append(error)
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            continue
        measured += found
        _print(found)
        if options.csv:  # after each text, so that a kill loses nothing
            _write_csv(options.csv, measured)
    if options.csv and measured:
        print(f"written: {options.csv}")
    if options.plot and measured:
        _draw(options.plot, measured)
        print(f"written: {options.plot}")
    if bad and measured:
        print(f"{len(bad)} of {len(texts)} texts could not be measured, see above", file=sys.stderr)
    return 1 if bad else 0


def _nearest_folder(path: Path) -> Path:
    """The first thing above `path` that exists."""
    return next(parent for parent in path.absolute().parents if parent.exists())


def _print(measured: list[Fertility]) -> None:
    first = measured[0]
    print(
        f"{first.text}: {first.characters:,} characters, {first.bytes:,} bytes, {first.documents:,} documents"
    )
    width = max(len(result.tokenizer) for result in measured)
    head = f"  {'tokenizer':<{width}}  tokens/char  [95 % interval]    chars/token  bytes/token"
    print(f"{head}  × {first.reference or '—'}  cut chars  as bytes  unknown  level 1/2/3")
    for result in measured:
        low, high = result.interval
        relative = "" if result.relative_length is None else f"{result.relative_length:.3f}"
        levels = "/".join(f"{share:.0%}" for share in result.coverage.values())
        print(
            f"  {result.tokenizer:<{width}}  {result.tokens_per_character:11.4f}  [{low:.4f}, {high:.4f}]"
            f"  {result.characters_per_token:11.3f}  {result.bytes_per_token:11.3f}"
            f"  {relative:>{len(first.reference or '—') + 2}}  {result.split_share:9.2%}"
            f"  {result.byte_share:8.2%}  {result.unknown_share:7.2%}  {levels}"
        )


def _write_csv(path: Path, measured: list[Fertility]) -> None:
    from chinese_llama_lab.paths import atomic_file

    rows = [result.row() for result in measured]
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _draw(path: Path, measured: list[Fertility]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from chinese_llama_lab.paths import atomic_file
    from chinese_llama_lab.plots import plot_fertility, use_style

    use_style()
    figure, _ = plot_fertility(measured, title="Tokens per character, with 95 % intervals over documents")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)
    pyplot.close(figure)
