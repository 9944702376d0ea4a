"""SentencePiece BPE for llama.cpp: kinds and scores of pieces, from `tokenizer.model` or from merges.

llama.cpp joins the two neighbours whose union is the piece with the highest score, as SentencePiece does. It
normalises nothing, folds no spaces, and takes no notice of pieces marked unused: a model that counts on any
of these is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chinese_llama_lab.inference.gguf_config import GgufError
from chinese_llama_lab.inference.gguf_cutting import FOR_OTHERS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # as SentencePiece numbers them
SPACE = "\u2581"


def read_pieces(path: Path) -> Any:
    """The ModelProto of a `tokenizer.model`.

    Raises: GgufError: damaged, a unigram model, or one whose rules for text llama.cpp does not have.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
        # A file cut between two pieces still parses; what follows the pieces is missing then.
        whole = len(proto.pieces) > 0 and proto.HasField("trainer_spec") and proto.HasField("normalizer_spec")
    except DecodeError:
        whole = False
    rules, training = proto.normalizer_spec, proto.trainer_spec
    wrong = ""
    if not whole:
        wrong = "tokenizer.model is no whole SentencePiece model"
    elif training.model_type != 2:
        wrong = "tokenizer.model is not SentencePiece BPE (a unigram model cuts text by another algorithm)"
    elif rules.precompiled_charsmap or rules.remove_extra_whitespaces:
        wrong = "tokenizer.model normalises text or folds spaces, and llama.cpp does neither"
    elif training.treat_whitespace_as_suffix or not rules.escape_whitespaces:
        wrong = "tokenizer.model treats spaces in a way that llama.cpp does not know"
    elif any(piece.type == UNUSED for piece in proto.pieces):
        wrong = "tokenizer.model has pieces marked unused, which llama.cpp would use"
    if wrong:
        raise GgufError(wrong, where=str(path), remedy=FOR_OTHERS)
    return proto


def encoder(proto: Any) -> Callable[[str], list[int]]:
    """text -> ids, by SentencePiece itself."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=proto.SerializeToString())
    return lambda text: list(processor.encode(text))


def refuse_disagreement(table: dict[str, int], proto: Any, folder: Path) -> None:
    """Raise `GgufError` unless transformers has the pieces of `tokenizer.model` under their ids."""
    odd = [piece.piece for index, piece in enumerate(proto.pieces) if table.get(piece.piece) != index]
    if odd:
        raise GgufError(
            f"tokenizer.model and the other tokenizer files are of two tokenizers: {len(odd)} pieces differ, "
            f"such as {odd[0]!r}",
            where=str(folder),
            remedy="remove the files that do not belong to the model",
        )


def describe(types: list[int], proto: Any) -> list[float]:
    """Scores of all ids; `types` is filled in place. Tokens added behind the pieces have score 0."""
    scores = [0.0] * len(types)
    for index, piece in enumerate(proto.pieces):
        scores[index] = piece.score
        if piece.type != NORMAL:
            types[index] = piece.type
    return scores


def describe_merges(tokens: list[str], types: list[int], model: dict[str, Any]) -> list[float]:
    """The same from the `model` of a `tokenizer.json`, which has merges and no scores.

    The rank of the merge that makes a piece orders the pieces as their scores did. A piece that none makes
    is a single character, or never comes up.
    """
    made: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        made.setdefault(left + right, rank)
    scores = [0.0] * len(tokens)
    for index, token in enumerate(tokens):
        if token == model.get("unk_token"):
            types[index] = UNKNOWN
        elif types[index] == NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[index] = BYTE
        elif types[index] == NORMAL:
            scores[index] = -float(made.get(token, len(made)))
    return scores
