"""Vocabularies inside GGUF files (llama.cpp's format), rebuilt for the library that made them.

`llama` vocabularies are SentencePiece BPE models: pieces, scores and kinds are all that matters, and
they become a `ModelProto` again. `gpt2` vocabularies are byte-level BPE: merges plus a way of cutting
text, which GGUF stores as a name only. Other kinds are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from ..errors import TokenizerError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The letters that DeepSeek's pattern lists one by one: those of scripts with upper and lower case. Written as
# escapes, because an editor that normalises Unicode would change the ranges.
_CASED_LETTERS = (
    "A-Za-z\u00B5\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u01BA\u01BC-\u01BF\u01C4-\u0293\u0295-\u02AF"
    "\u0370-\u0373\u0376\u0377\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C\u038E-\u03A1"
    "\u03A3-\u03F5\u03F7-\u0481\u048A-\u052F\u0531-\u0556\u10A0-\u10C5\u13A0-\u13F5\u13F8-\u13FD"
    "\u1C90-\u1CBA\u1CBD-\u1CBF\u1D00-\u1D2B\u1D6B-\u1D77\u1D79-\u1D9A\u1E00-\u1F15\u1F18-\u1F1D"
    "\u1F20-\u1F45\u1F48-\u1F4D\u1F50-\u1F57\u1F59\u1F5B\u1F5D\u1F5F-\u1F7D\u1F80-\u1FB4"
    "\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC\u1FD0-\u1FD3\u1FD6-\u1FDB\u1FE0-\u1FEC"
    "\u1FF2-\u1FF4\u1FF6-\u1FFC\u2102\u2107\u210A-\u2113\u2115\u2119-\u211D\u2124\u2126\u2128"
    "\u212A-\u212D\u212F-\u2134\u2139\u213C-\u213F\u2145-\u2149\u214E\u2183\u2184\u2C00-\u2C7B"
    "\u2C7E-\u2CE4\u2CEB-\u2CEE\u2CF2\u2CF3\uA640-\uA66D\uA680-\uA69B\uA722-\uA76F\uA771-\uA787"
    "\uA78B-\uA78E\uAB70-\uABBF\uFB00-\uFB06\uFB13-\uFB17\uFF21-\uFF3A\uFF41-\uFF5A"
    "\U00010400-\U0001044F\U000104B0-\U000104D3\U000104D8-\U000104FB\U00010C80-\U00010CB2"
    "\U00010CC0-\U00010CF2\U000118A0-\U000118DF\U0001E900-\U0001E943"
)
# How each named pre-tokenizer cuts text, one pattern after the other.
# Source: the table in llama.cpp's `llama-vocab.cpp`, checked against its test vectors in our tests.
PATTERNS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),),
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?[{_CASED_LETTERS}]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        r"[一-龥ࠀ-一가-퟿]+",
        r"\p{N}+",
    ),
}


def read_vocabulary(path: Path) -> dict[str, Any]:
    """The `tokenizer.*` metadata of a GGUF file, without the `tokenizer.ggml.` prefix.

    Raises:
        TokenizerError: no GGUF file, cut short, or without a vocabulary.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        found = {
            name.removeprefix("tokenizer.ggml.").removeprefix("tokenizer."): field.contents()
            for name, field in reader.fields.items()
            if name.startswith("tokenizer.")
        }
    except OSError:
        raise
    except Exception as error:  # the reader indexes into the file and fails in many ways
        raise TokenizerError(
            f"{path.name} is not a whole GGUF file: {type(error).__name__}: {error}",
            where=str(path),
            remedy="fetch or copy the file again",
        ) from error
    if "model" not in found or "tokens" not in found:
        raise TokenizerError(f"{path.name} holds no vocabulary", where=str(path), remedy="use another file")
    return found


def sentencepiece_model(vocabulary: dict[str, Any]) -> bytes:
    """A `llama` vocabulary as a serialised SentencePiece ModelProto (BPE, byte fallback, identity)."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type = 2  # BPE
    proto.trainer_spec.vocab_size = len(vocabulary["tokens"])
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.split_digits = True
    proto.trainer_spec.unk_surface = " \u2047 "
    proto.trainer_spec.pad_id = -1
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = bool(vocabulary.get("add_space_prefix", True))
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    # GGUF numbers the kinds of piece (normal, unknown, control, user-defined, unused, byte) as SentencePiece does.
    kinds = vocabulary.get("token_type") or [1] * len(vocabulary["tokens"])
    for token, score, kind in zip(vocabulary["tokens"], vocabulary["scores"], kinds, strict=True):
        proto.pieces.add(piece=token, score=score, type=int(kind))
    return proto.SerializeToString()


def byte_level_tokenizer(vocabulary: dict[str, Any], *, where: str) -> tokenizers.Tokenizer:
    """A `gpt2` vocabulary as a `tokenizers.Tokenizer`.

    Raises:
        TokenizerError: its pre-tokenizer is none of `PATTERNS`.
    """
    name = str(vocabulary.get("pre", "default"))
    if name not in PATTERNS:
        raise TokenizerError(
            f"the GGUF vocabulary cuts text by {name!r}, which is not known here",
            where=where,
            remedy=f"known are {', '.join(PATTERNS)}; convert the model's tokenizer.json instead",
        )
    table: dict[str, int] = {}
    for number, token in enumerate(vocabulary["tokens"]):
        table.setdefault(token, number)
    merges = [tuple(merge.split(" ")) for merge in vocabulary["merges"]]
    tokenizer = tokenizers.Tokenizer(models.BPE(table, [(left, right) for left, right in merges]))
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in PATTERNS[name]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = vocabulary.get("token_type", [])
    special = [t for t, kind in zip(vocabulary["tokens"], kinds, strict=False) if int(kind) == 3]
    tokenizer.add_special_tokens(special)
    return tokenizer
