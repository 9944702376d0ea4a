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

from chinese_llama_lab.errors import TokenizerError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The letters that DeepSeek's pattern lists one by one: those of scripts with upper and lower case. Written as
# escapes, because an editor that normalises Unicode would change the ranges.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
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
    # GGUF numbers the kinds of piece as SentencePiece does: normal, unknown, control, user-defined, …
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
