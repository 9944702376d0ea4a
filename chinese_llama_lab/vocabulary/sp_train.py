"""Train a Chinese SentencePiece model, with the published project's settings as defaults.

Defaults are those stored in the published 20,000-piece model: unigram, coverage 0.9995, nmt_nfkc, no byte
fallback.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import sentencepiece

from chinese_llama_lab.tokenization.fertility import iterate_texts
from chinese_llama_lab.vocabulary import han, sp_model
from chinese_llama_lab.vocabulary.errors import VocabularyError


@dataclass(frozen=True)
class TrainResult:
    """A trained model (`ModelProto`), how many pieces were asked for, and a message if there are fewer."""

    model: Any
    requested: int
    message: str = ""

    def __len__(self) -> int:
        return len(self.model.pieces)


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int = 20_000,
    model_type: Literal["unigram", "bpe"] = "unigram",
    *,
    character_coverage: float = 0.9995,
    byte_fallback: bool = False,
    normalization: str = "nmt_nfkc",
    split_digits: bool = False,
    add_dummy_prefix: bool = True,
    remove_extra_whitespaces: bool = True,
    threads: int = 2,
    seed: int = 0,
    require_han: bool = True,
) -> TrainResult:
    """Train a SentencePiece model.

    Args:
        texts: training text; each string is cut at line breaks, blank lines are left out.
        vocab_size: pieces to make, the unknown and control pieces included.
        model_type: `unigram` (as published) or `bpe`.
        character_coverage: share of all characters that get a piece; SentencePiece takes 0.98 to 1.
        byte_fallback: spell other characters as bytes (256 pieces) instead of `<unk>`.
        normalization: `nmt_nfkc`, `nfkc`, `nmt_nfkc_cf`, `nfkc_cf` or `identity`.
        split_digits: one piece for each digit, as in LLaMA.
        add_dummy_prefix, remove_extra_whitespaces: how spaces are treated.
        threads: the result depends on their number (sums of floats), not on the machine.
        seed: of SentencePiece's generator.
        require_han: raise if the text has no Han character.

    Returns: a TrainResult; smaller than asked for, with a message, if the text yields no more.

    Raises: VocabularyError for empty text, text without Han, or settings that SentencePiece refuses.
    """
    if model_type not in ("unigram", "bpe"):
        raise VocabularyError(
            f"There is no model type {model_type!r} here.", remedy="Choose 'unigram' or 'bpe'."
        )
    lines = list(_lines(texts))
    if not lines:
        raise VocabularyError(
            "The training text is empty.", where="texts", remedy="Give text; check the file's size."
        )
    if require_han and not any(map(han.has_han, lines)):
        raise VocabularyError(
            f"The training text ({len(lines)} lines) holds no Han character.",
            where="texts",
            remedy="Give Chinese text, read as UTF-8; pass require_han=False if this is meant.",
        )
    sentencepiece.set_random_generator_seed(seed)
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            byte_fallback=byte_fallback,
            normalization_rule_name=normalization,
            split_digits=split_digits,
            add_dummy_prefix=add_dummy_prefix,
            remove_extra_whitespaces=remove_extra_whitespaces,
            num_threads=threads,
            # Longer lines (4,192 bytes by default) would be left out in silence.
            max_sentence_length=max(4192, max(len(line.encode("utf-8")) for line in lines) + 1),
            # Give what there is when the text yields fewer pieces.
            hard_vocab_limit=False,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise VocabularyError(
            f"SentencePiece cannot train with these settings: {error}",
            where=f"vocab_size={vocab_size}",
            remedy="Raise vocab_size (every character needs a piece) or lower character_coverage.",
        ) from error
    model = sp_model.parse_model(written.getvalue(), where="trained model", expect=model_type)
    message = ""
    if len(model.pieces) < vocab_size:
        message = f"{vocab_size} pieces were asked for and the text yields {len(model.pieces)}."
    return TrainResult(model, vocab_size, message)


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(iterate_texts(texts)):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise VocabularyError(
                "The text holds a lone surrogate, which UTF-8 cannot spell.",
                where=f"text {number}, character {error.start}",
                remedy="Read the file as UTF-8, or remove the character.",
            ) from error
        for line in text.split("\n"):
            if line.strip():
                yield line
