"""`train-vocab`, `merge-vocab`, `continue-bpe`, `extend` and `reachability` from the shell."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

from chinese_llama_lab.errors import LabError


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the five commands to the command line."""
    train = subparsers.add_parser("train-vocab", help="train a Chinese SentencePiece model")
    _add_texts(train)
    train.add_argument("--size", type=int, default=20_000, help="pieces (default: 20000)")
    train.add_argument("--type", choices=("unigram", "bpe"), default="unigram", help="default: unigram")
    train.add_argument("--character-coverage", type=float, default=0.9995)
    train.add_argument("--byte-fallback", action="store_true")
    train.add_argument("--normalization", default="nmt_nfkc", help="nmt_nfkc (default), nfkc, identity, …")
    train.add_argument("--out", type=Path, required=True, metavar="FILE.model")
    train.set_defaults(handler=_train)

    merging = subparsers.add_parser("merge-vocab", help="merge a SentencePiece model into a base's")
    merging.add_argument("base", help="the base: `llama`, `mistral`, or a .model file")
    merging.add_argument("extra", type=Path, help="the Chinese model, a .model file")
    merging.add_argument("--policy", choices=("repaired", "published"), default="repaired")
    _add_texts(merging)  # optional here: they show which joins of Chinese pieces are worth the room left
    merging.add_argument("--fill", type=int, metavar="N", help="learn N further pieces from the text")
    merging.add_argument("--pad", help="name of the padding piece (repaired: <pad> unless told otherwise)")
    merging.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="must not exist")
    merging.set_defaults(handler=_merge)

    going_on = subparsers.add_parser("continue-bpe", help="go on training a byte-level BPE tokenizer")
    going_on.add_argument("tokenizer", help="`smollm2`, `qwen2`, a tokenizer.json, a folder, or a hub id")
    _add_texts(going_on)
    going_on.add_argument("--tokens", type=int, required=True, help="how many to add")
    going_on.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="must not exist")
    going_on.set_defaults(handler=_continue)

    extending = subparsers.add_parser("extend", help="give a model the rows that a longer tokenizer needs")
    extending.add_argument("model", help="`smollm2`, a folder, or a hub id")
    extending.add_argument("tokenizer", type=Path, help="folder of the longer tokenizer")
    extending.add_argument("--strategy", default="subtoken-mean", help="default: subtoken-mean")
    extending.add_argument("--pad-to-multiple-of", type=int, metavar="N")
    extending.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    extending.add_argument("--seed", type=int, default=0)
    extending.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="must not exist")
    extending.set_defaults(handler=_extend)

    judging = subparsers.add_parser(
        "reachability", help="which pieces a tokenizer can never produce, and why"
    )
    judging.add_argument("tokenizer", help="a name, a .model file, a tokenizer.json, or a folder")
    judging.add_argument(
        "--all", action="store_true", help="print every unreachable piece, not the first twenty"
    )
    judging.set_defaults(handler=_reachability)


def _add_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text", action="append", default=[], type=Path, metavar="FILE", help="UTF-8, a document a line"
    )
    parser.add_argument(
        "--corpus", action="append", default=[], metavar="NAME", help="training part of a course text"
    )


def _texts(options: argparse.Namespace) -> Iterable[str]:
    from itertools import chain

    from chinese_llama_lab.sources.corpora import load_corpus
    from chinese_llama_lab.sources.textfiles import read_all

    if not options.text and not options.corpus:
        raise LabError("there is no text to learn from", remedy="give --text FILE or --corpus NAME")
    corpora = [load_corpus(name).split("train") for name in options.corpus]
    return chain(read_all(options.text), *((d.text for d in corpus) for corpus in corpora))


def _sentencepiece_file(name: str) -> Path:
    from chinese_llama_lab.sources.fetch import source_file
    from chinese_llama_lab.sources.manifest import load_manifest
    from chinese_llama_lab.tokenization.registry import converted_gguf, known_tokenizers

    if name not in known_tokenizers():
        return Path(name)
    member = load_manifest()[name].members[0].filename
    return converted_gguf(name) if member.endswith(".gguf") else source_file(name, member)


def _train(options: argparse.Namespace) -> int:
    from chinese_llama_lab.vocabulary.sp_model import save_model
    from chinese_llama_lab.vocabulary.sp_train import train_sentencepiece

    result = train_sentencepiece(
        _texts(options),
        options.size,
        options.type,
        character_coverage=options.character_coverage,
        byte_fallback=options.byte_fallback,
        normalization=options.normalization,
    )
    save_model(result.model, options.out)
    print(f"{len(result):,} pieces written to {options.out}{'. ' + result.message if result.message else ''}")
    return 0


def _merge(options: argparse.Namespace) -> int:
    from chinese_llama_lab.tokenization.registry import known_tokenizers
    from chinese_llama_lab.vocabulary.merge import AUTO, merge
    from chinese_llama_lab.vocabulary.reachability import reachability
    from chinese_llama_lab.vocabulary.save import refuse_existing, save_tokenizer

    refuse_existing(options.out)
    base = _sentencepiece_file(options.base)
    given = options.text or options.corpus
    if given and options.policy == "published":
        raise LabError(
            "the published policy looks at no text", remedy="leave --text and --corpus out, or --policy"
        )
    texts = _texts(options) if given else None
    result = merge(
        base, options.extra, options.policy, pad=options.pad or AUTO, texts=texts, fill=options.fill
    )
    save_tokenizer(result, options.out)
    print(result.summary())
    print(f"{len(reachability(result.model).unreachable())} pieces can never be produced")
    print(f"sha256 of tokenizer.model: {result.sha256}")
    if options.base in known_tokenizers() and options.policy == "published":
        print(
            "(the base was rebuilt from its pieces and scores: the original's bytes need its own .model file)"
        )
    print(f"written: {options.out}")
    return 0


def _fast_tokenizer(name: str) -> object:
    """A transformers tokenizer, so that special tokens and the chat template come along."""
    from transformers import AutoTokenizer

    from chinese_llama_lab.sources.models import BUNDLED, converted_model
    from chinese_llama_lab.tokenization.fast import FastTokenizer
    from chinese_llama_lab.tokenization.registry import open_tokenizer
    from chinese_llama_lab.tokenization.tiktoken_file import TiktokenTokenizer

    if name in BUNDLED:
        return AutoTokenizer.from_pretrained(converted_model(name))
    if Path(name).is_dir():
        return AutoTokenizer.from_pretrained(name)
    opened = open_tokenizer(name)
    if not isinstance(opened, FastTokenizer):
        raise LabError(
            f"{name} holds no list of merges that could be continued: it is a "
            f"{'tiktoken vocabulary' if isinstance(opened, TiktokenTokenizer) else opened.family + ' model'}",
            remedy="give the model's tokenizer.json; merge SentencePiece models with merge-vocab",
        )
    return opened.tokenizer


def _continue(options: argparse.Namespace) -> int:
    from transformers import PreTrainedTokenizerFast

    from chinese_llama_lab.paths import atomic_folder
    from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
    from chinese_llama_lab.vocabulary.save import refuse_existing

    refuse_existing(options.out)
    result = continue_bpe(_fast_tokenizer(options.tokenizer), _texts(options), options.tokens)
    tokenizer = result.tokenizer
    if not hasattr(tokenizer, "save_pretrained"):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    with atomic_folder(options.out) as folder:
        tokenizer.save_pretrained(folder)
    print(f"{len(result):,} tokens added; written: {options.out}")
    if result.message:
        print(result.message)
    return 0


def _extend(options: argparse.Namespace) -> int:
    from transformers import AutoTokenizer

    from chinese_llama_lab.paths import atomic_folder
    from chinese_llama_lab.sources.corpora import glosses
    from chinese_llama_lab.sources.models import load_base
    from chinese_llama_lab.vocabulary.embeddings import extend_embeddings
    from chinese_llama_lab.vocabulary.save import refuse_existing

    refuse_existing(options.out)
    if not (options.tokenizer / "tokenizer.json").is_file():
        raise LabError(
            "there is no tokenizer.json in that folder",
            where=str(options.tokenizer),
            remedy="give the folder that continue-bpe or merge-vocab wrote",
        )
    model, old = load_base(options.model, dtype=options.dtype)
    if getattr(model.config, "quantization_config", None) is not None:
        raise LabError(
            "the weights of this model are quantized: rows cannot be added to them",
            where=str(options.model),
            remedy="extend the model that it was made from, then quantize the result",
        )
    new = AutoTokenizer.from_pretrained(options.tokenizer)
    words = {word: found[0] for word, found in glosses().items()} if options.strategy == "gloss" else None
    report = extend_embeddings(
        model,
        old,
        new,
        options.strategy,
        seed=options.seed,
        pad_to_multiple_of=options.pad_to_multiple_of,
        glosses=words,
    )
    with atomic_folder(options.out) as folder:
        model.save_pretrained(folder)
        new.save_pretrained(folder)
        sentencepiece_file = options.tokenizer / "tokenizer.model"
        if sentencepiece_file.is_file():  # transformers saves the fast tokenizer alone
            shutil.copyfile(sentencepiece_file, folder / "tokenizer.model")
    print(report)
    print(f"written: {options.out}")
    return 0


def _reachability(options: argparse.Namespace) -> int:
    from chinese_llama_lab.tokenization.fast import FastTokenizer
    from chinese_llama_lab.tokenization.registry import open_tokenizer
    from chinese_llama_lab.tokenization.sentencepiece_model import SentencePieceTokenizer
    from chinese_llama_lab.vocabulary.reachability import reachability

    opened = open_tokenizer(options.tokenizer)
    if isinstance(opened, SentencePieceTokenizer):
        judged = reachability(opened.model)
    elif isinstance(opened, FastTokenizer):
        judged = reachability(opened.tokenizer)
    else:
        raise LabError(
            f"{opened.name} is a tiktoken vocabulary, which holds ranks and no merges",
            remedy="give its tokenizer.json, or the GGUF vocabulary",
        )
    lost = judged.unreachable()
    print(f"{len(judged):,} entries, {len(lost):,} can never be produced")
    for reason, count in judged.reasons().most_common():
        print(f"  {count:>7,}  {reason}")
    for verdict in lost if options.all else lost[:20]:
        print(verdict)
    return 0
