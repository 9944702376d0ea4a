"""Read, check and write SentencePiece models (`ModelProto`), refusing whatever is not one.

This file does not train, merge or convert; it only makes sure that later files start from a sound model.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections import Counter
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as pb2

from chinese_llama_lab.paths import atomic_file
from chinese_llama_lab.vocabulary.errors import VocabularyError

# The generated protobuf classes carry no type hints, so a ModelProto is `Any` to mypy.
Proto = Any
SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
KIND_NAMES = {1: "normal", 2: "unknown", 3: "control", 4: "user-defined", 5: "unused", 6: "byte"}
_TYPE_NAMES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


def _what_it_looks_like(data: bytes) -> str:
    """Name the file format that `data` seems to be, for the error message."""
    head = data[:4096]
    if not data:
        return "an empty file"
    if head.lstrip()[:1] == b"{":
        return "a JSON file (a `tokenizer.json` is for `tokenizers.Tokenizer.from_file`)"
    if head[:4] == b"GGUF":
        return "a GGUF file"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "a zip archive or a pickle"
    first = head.split(b"\n", 1)[0].split()
    if len(first) == 2 and first[1].isdigit():
        try:
            base64.b64decode(first[0], validate=True)
            return "a tiktoken file (base64 token and rank on each line: byte-level BPE, see `continue_bpe`)"
        except binascii.Error:
            pass
    lines = head.decode("utf-8", errors="ignore").splitlines()
    if any(line.strip() in ("[UNK]", "[CLS]", "[PAD]") for line in lines) or any(
        line.startswith("##") for line in lines
    ):
        return "a WordPiece vocabulary (one token a line)"
    return "not a complete SentencePiece model (damaged, cut short, or of another format)"


def parse_model(data: bytes, *, where: str = "bytes", expect: str | None = None) -> Proto:
    """Parse and check a serialised SentencePiece model.

    Args:
        data: the bytes of a `.model` file.
        where: name used in error messages.
        expect: `"bpe"` or `"unigram"`; None takes either.

    Returns: the `ModelProto`.

    Raises:
        VocabularyError: not a SentencePiece model, cut short, duplicated pieces, no or several unknown
            pieces, a score that is not finite, or another algorithm than `expect`.
    """
    proto = pb2.ModelProto()
    try:
        proto.ParseFromString(data)
        # A file cut between two pieces still parses; it has lost the specs that follow the pieces.
        whole = len(proto.pieces) > 0 and proto.HasField("trainer_spec") and proto.HasField("normalizer_spec")
    except DecodeError:
        whole = False
    if not whole:
        raise VocabularyError(
            f"This is no SentencePiece model: it looks like {_what_it_looks_like(data)}.",
            where=where,
            remedy="Give the `.model` file that SentencePiece wrote; download it again if it was cut.",
        )
    check_model(proto, where=where, expect=expect)
    return proto


def check_model(proto: Proto, *, where: str = "model", expect: str | None = None) -> None:
    """Raise `VocabularyError` unless `proto` is sound; see `parse_model` for what is checked."""
    kind = model_type(proto)
    if expect is not None and kind != expect:
        raise VocabularyError(
            f"This is a SentencePiece {kind} model, and a {expect} model is needed here.",
            where=where,
            remedy=f"Give a model trained with model_type={expect!r}.",
        )
    first_at: dict[str, int] = {}
    for index, piece in enumerate(proto.pieces):
        if not piece.piece:
            raise VocabularyError(
                f"Piece {index} is empty.", where=where, remedy="Train or export the model again."
            )
        if piece.piece in first_at:
            raise VocabularyError(
                f"Piece {piece.piece!r} stands twice, at {first_at[piece.piece]} and {index}.",
                where=where,
                remedy="Remove one of the two: SentencePiece refuses to load such a model.",
            )
        first_at[piece.piece] = index
        if not math.isfinite(piece.score):
            raise VocabularyError(
                f"Piece {piece.piece!r} has the score {piece.score}.",
                where=f"{where}, piece {index}",
                remedy="Scores must be finite numbers; train or export the model again.",
            )
    unknown = kinds(proto)["unknown"]
    if unknown != 1:
        raise VocabularyError(
            f"The model has {unknown} unknown pieces; it needs exactly one.",
            where=where,
            remedy="Train or export the model again.",
        )
    try:
        sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except RuntimeError as error:
        raise VocabularyError(
            f"SentencePiece itself refuses the model: {error}",
            where=where,
            remedy="Train or export it again.",
        ) from error


def load_model(path: str | Path, *, expect: str | None = None) -> Proto:
    """Read a `.model` file. Raises `VocabularyError` as `parse_model` does, or if there is no such file."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VocabularyError(
            f"The model cannot be read: {error.strerror}.", where=str(path), remedy="Check the path."
        ) from error
    return parse_model(data, where=str(path), expect=expect)


def as_model(model: Proto | bytes | str | Path, *, where: str = "model", expect: str | None = None) -> Proto:
    """A checked `ModelProto` from a path, bytes, a `ModelProto` or a `SentencePieceProcessor`."""
    if isinstance(model, (str, Path)):
        return load_model(model, expect=expect)
    if isinstance(model, bytes):
        return parse_model(model, where=where, expect=expect)
    if isinstance(model, sentencepiece.SentencePieceProcessor):
        return parse_model(model.serialized_model_proto(), where=where, expect=expect)
    if isinstance(model, pb2.ModelProto):
        check_model(model, where=where, expect=expect)
        return model
    raise VocabularyError(
        f"A {type(model).__name__} is not a SentencePiece model.",
        where=where,
        remedy="Pass a path, bytes, a ModelProto or a SentencePieceProcessor.",
    )


def save_model(proto: Proto, path: str | Path) -> Path:
    """Write `proto` to `path`, whole or not at all. Raises `VocabularyError` if it is not sound."""
    check_model(proto, where=str(path))
    path = Path(path)
    with atomic_file(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    return path


def copy_model(proto: Proto) -> Proto:
    """A copy that may be changed."""
    other = pb2.ModelProto()
    other.CopyFrom(proto)
    return other


def model_type(proto: Proto) -> str:
    """`"unigram"`, `"bpe"`, `"word"` or `"char"`."""
    return _TYPE_NAMES.get(proto.trainer_spec.model_type, "unknown")


def kinds(proto: Proto) -> Counter[str]:
    """Number of pieces of each kind (`normal`, `control`, `byte`, ...)."""
    return Counter(KIND_NAMES[piece.type] for piece in proto.pieces)


def sha256(proto: Proto) -> str:
    """sha256 of the serialised model, as hexadecimal digits."""
    return hashlib.sha256(proto.SerializeToString()).hexdigest()


def processor(proto: Proto) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece itself, loaded with `proto`."""
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def bare_processor(proto: Proto) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece without its normaliser: a string goes in as it is, no space is added or folded."""
    bare = copy_model(proto)
    bare.normalizer_spec.name = "identity"
    bare.normalizer_spec.precompiled_charsmap = b""
    bare.normalizer_spec.add_dummy_prefix = False
    bare.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=bare.SerializeToString())
