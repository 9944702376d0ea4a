"""Which entries of a vocabulary can never come out of the tokenizer, and why.

Definition. A piece is *reachable* if some text has it in its encoding. For SentencePiece BPE and unigram
and for rank-ordered byte-level BPE that is so exactly if encoding the piece alone, as one unit, gives the
piece (`bpe.py` says why), and the normaliser and pre-tokenizer let such a unit through. With this
definition the published Chinese-LLaMA merge has 194 unreachable pieces of LLaMA's own and 345 of the 17,953
added ones.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb2

from chinese_llama_lab.vocabulary import byte_level, sp_model
from chinese_llama_lab.vocabulary.bpe import can_still_become_one, merge_steps
from chinese_llama_lab.vocabulary.errors import VocabularyError

_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")  # how a model with byte fallback names its bytes
NOT_TEXT = "not from text"  # control and unknown pieces: reserved, never produced from text by design


@dataclass(frozen=True)
class Verdict:
    """One entry of the vocabulary.

    Attributes:
        index: its id.
        piece: its string as the vocabulary spells it.
        reachable: whether some text has it in its encoding.
        reason: `""` if reachable, else one of `no merge path`, `beaten by an earlier merge`, `beaten by a
            better segmentation`, `not produced by the normaliser`, `split by the pre-tokenizer`, `contains a
            user-defined piece`, `unused`, `byte never needed`, `swallowed inside a character`, `not from
            text`.
        becomes: what comes out instead when it is encoded alone.
        beaten_by: the merge after which it could no longer arise, as `left+right`.
    """

    index: int
    piece: str
    reachable: bool
    reason: str = ""
    becomes: tuple[str, ...] = ()
    beaten_by: str = ""

    def __str__(self) -> str:
        if self.reachable:
            return f"{self.index} {self.piece!r}: reachable"
        how = f", becomes {'|'.join(self.becomes)}" if self.becomes else ""
        by = f", because {self.beaten_by} merges first" if self.beaten_by else ""
        return f"{self.index} {self.piece!r}: {self.reason}{how}{by}"


@dataclass(frozen=True)
class Reachability:
    """The verdicts for a whole vocabulary, in id order."""

    verdicts: tuple[Verdict, ...]

    def __len__(self) -> int:
        return len(self.verdicts)

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.verdicts)

    def __getitem__(self, index: int) -> Verdict:
        return self.verdicts[index]

    def unreachable(self) -> list[Verdict]:
        """Entries that text should be able to produce and never does (reserved entries are left out)."""
        return [
            v for v in self.verdicts if not v.reachable and v.reason not in (NOT_TEXT, "byte never needed")
        ]

    def of(self, piece: str) -> Verdict:
        """The verdict on one piece. Raises `VocabularyError` if the vocabulary has no such piece."""
        for verdict in self.verdicts:
            if verdict.piece == piece:
                return verdict
        raise VocabularyError(
            f"There is no piece {piece!r} in this vocabulary.", remedy="Check its spelling (▁ is U+2581)."
        )

    def reasons(self) -> Counter[str]:
        """How many entries have each reason; reachable ones count as `reachable`."""
        return Counter(v.reason or "reachable" for v in self.verdicts)

    def __repr__(self) -> str:
        return f"Reachability({len(self)} entries, {len(self.unreachable())} unreachable)"


def reachability(model: Any) -> Reachability:
    """Judge every entry of a vocabulary.

    Args:
        model: a SentencePiece model (path to a `.model`, bytes, ModelProto, SentencePieceProcessor) or a BPE
            tokenizer (path to a `tokenizer.json`, `tokenizers.Tokenizer`, a transformers fast tokenizer).

    Raises: VocabularyError if it is neither.
    """
    if isinstance(model, (bytes, pb2.ModelProto, sentencepiece.SentencePieceProcessor)):
        return _sentencepiece(sp_model.as_model(model))
    if isinstance(model, (str, Path)) and not str(model).endswith(".json"):
        return _sentencepiece(sp_model.load_model(model))
    return _tokenizers(byte_level.as_tokenizer(model))


# ---------------------------------------------------------------------------------------------- SentencePiece


def _sentencepiece(proto: Any) -> Reachability:
    kind = sp_model.model_type(proto)
    if kind not in ("bpe", "unigram"):
        raise VocabularyError(
            f"Reachability of a SentencePiece {kind} model is not defined here.",
            remedy="Give a bpe or unigram model.",
        )
    bare = sp_model.bare_processor(proto)
    alone = bare.encode([p.piece for p in proto.pieces], out_type=int)
    # The character map alone: no space added, none folded.
    mapper = sp_model.copy_model(proto)
    mapper.normalizer_spec.add_dummy_prefix = False
    mapper.normalizer_spec.remove_extra_whitespaces = False
    normalise = sentencepiece.SentencePieceProcessor(model_proto=mapper.SerializeToString())
    has_map = bool(proto.normalizer_spec.precompiled_charsmap)
    folds = proto.normalizer_spec.remove_extra_whitespaces
    own = [p.piece for p in proto.pieces if p.type == sp_model.USER_DEFINED]
    known = {
        p.piece: p.score
        for p in proto.pieces
        if p.type in (sp_model.NORMAL, sp_model.USER_DEFINED, sp_model.UNUSED)
    }
    verdicts = []
    for i, p in enumerate(proto.pieces):
        if p.type in (sp_model.CONTROL, sp_model.UNKNOWN):
            verdicts.append(Verdict(i, p.piece, False, NOT_TEXT))
        elif p.type == sp_model.BYTE:
            needed = proto.trainer_spec.byte_fallback and _byte_needed(int(p.piece[3:5], 16), known)
            verdicts.append(Verdict(i, p.piece, needed, "" if needed else "byte never needed"))
        elif p.type == sp_model.UNUSED:
            verdicts.append(Verdict(i, p.piece, False, "unused", _pieces(proto, alone[i])))
        elif p.type == sp_model.USER_DEFINED:
            # Matched before anything else; the longest match wins, so it always matches itself.
            verdicts.append(Verdict(i, p.piece, True))
        elif any(u in p.piece for u in own):
            verdicts.append(
                Verdict(i, p.piece, False, "contains a user-defined piece", _pieces(proto, alone[i]))
                if alone[i] != [i]
                else Verdict(i, p.piece, True)
            )
        elif (
            " " in p.piece
            or (folds and sp_model.SPACE * 2 in p.piece)
            or (has_map and normalise.normalize(p.piece.replace(sp_model.SPACE, " ")) != p.piece)
        ):
            verdicts.append(Verdict(i, p.piece, False, "not produced by the normaliser"))
        elif alone[i] == [i]:
            verdicts.append(Verdict(i, p.piece, True))
        elif kind == "unigram":
            verdicts.append(
                Verdict(i, p.piece, False, "beaten by a better segmentation", _pieces(proto, alone[i]))
            )
        else:
            verdicts.append(_why_not(i, p.piece, list(p.piece), known))
    return Reachability(tuple(verdicts))


def _pieces(proto: Any, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(proto.pieces[i].piece for i in ids)


def _why_not(index: int, piece: str, symbols: list[str], scores: dict[str, float]) -> Verdict:
    """Find the merge that spoilt it: the first one after which no order of merges leads to the piece."""
    final, steps = merge_steps(symbols, scores)
    if not can_still_become_one(symbols, scores):
        return Verdict(index, piece, False, "no merge path", tuple(final))
    current = list(symbols)
    for step in steps:
        current[step.position : step.position + 2] = [step.left + step.right]
        if not can_still_become_one(current, scores):
            return Verdict(
                index, piece, False, "beaten by an earlier merge", tuple(final), f"{step.left}+{step.right}"
            )
    return Verdict(index, piece, False, "no merge path", tuple(final))


def _byte_needed(byte: int, known: Mapping[str, float]) -> bool:
    """Whether a character without a piece of its own has this byte in its UTF-8 form."""
    if byte < 0x80:
        return chr(byte) not in known and chr(byte) != " "
    if byte in (0xC0, 0xC1) or byte > 0xF4:
        return False  # never in UTF-8
    if byte < 0xC0:
        # A continuation byte: the last byte of some character beyond the first planes, which no vocabulary
        # covers.
        return any(chr(c) not in known for c in range(0x10000 + byte - 0x80, 0x110000, 64))
    return any(chr(c) not in known for c in _led_by(byte))


def _led_by(lead: int) -> range:
    if lead < 0xE0:
        return range((lead & 0x1F) << 6, ((lead & 0x1F) + 1) << 6)
    if lead == 0xED:
        return range(0xD000, 0xD800)  # the rest are surrogates
    if lead < 0xF0:
        return range(max(0x800, (lead & 0x0F) << 12), ((lead & 0x0F) + 1) << 12)
    return range(max(0x10000, (lead & 0x07) << 18), min(0x110000, ((lead & 0x07) + 1) << 18))


# ---------------------------------------------------------------------------------------------- tok


def _tokenizers(tokenizer: Any) -> Reachability:
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    added = tokenizer.get_added_tokens_decoder()
    byte_like = byte_level.is_byte_level(tokenizer)
    model_only = byte_level.model_alone(tokenizer)
    by_id = sorted(vocabulary.items(), key=lambda item: item[1])
    encodings = model_only.encode_batch([token for token, _ in by_id], add_special_tokens=False)
    ranks = byte_level.merge_scores(tokenizer)
    verdicts: dict[int, Verdict] = {}
    doubtful: list[tuple[int, str]] = []
    for (token, index), encoding in zip(by_id, encodings, strict=True):
        if index in added:
            verdicts[index] = Verdict(
                index, token, not added[index].special, NOT_TEXT if added[index].special else ""
            )
        elif tokenizer.model.byte_fallback and _BYTE_PIECE.fullmatch(token):
            needed = _byte_needed(int(token[3:5], 16), vocabulary)
            verdicts[index] = Verdict(index, token, needed, "" if needed else "byte never needed")
        elif encoding.ids != [index]:
            verdicts[index] = _why_not_ranked(index, token, encoding.tokens, ranks)
        elif byte_like and not _passes(tokenizer, token):
            doubtful.append((index, token))
        else:
            verdicts[index] = Verdict(index, token, True)
    for index, token in added.items():
        if index not in verdicts:
            verdicts[index] = Verdict(
                index, token.content, not token.special, NOT_TEXT if token.special else ""
            )
    if byte_like:
        # Whole-word look-up (`ignore_merges`) can produce what merges cannot; contexts settle it by doing it.
        settle = [(v.index, v.piece) for v in verdicts.values() if not v.reachable and v.reason != NOT_TEXT]
        settle = settle if tokenizer.model.ignore_merges else []
        found = byte_level.produced_somewhere(tokenizer, doubtful + settle)
        for index, token in doubtful:
            if index in found:
                verdicts[index] = Verdict(index, token, True)
            elif len(token) == 1 and byte_level.bytes_of(token)[0] in (0xC0, 0xC1, *range(0xF5, 0x100)):
                verdicts[index] = Verdict(index, token, False, "byte never needed")
            elif byte_level.text_of(token) is None:
                verdicts[index] = Verdict(index, token, False, "swallowed inside a character")
            else:
                verdicts[index] = Verdict(
                    index,
                    token,
                    False,
                    "split by the pre-tokenizer",
                    tuple(tokenizer.encode(byte_level.text_of(token) or "", add_special_tokens=False).tokens),
                )
        for index, token in settle:
            if index in found:
                verdicts[index] = Verdict(index, token, True)
    return Reachability(tuple(verdicts[i] for i in sorted(verdicts)))


def _passes(tokenizer: Any, token: str) -> bool:
    """Whether the token's text, alone, goes through normaliser and pre-tokenizer as this one unit."""
    text = byte_level.text_of(token)
    if text is None:
        return False
    if tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str(text) != text:
        return False
    if tokenizer.pre_tokenizer is None:
        return True
    units = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return len(units) == 1 and units[0][0] == token


def _why_not_ranked(
    index: int, token: str, becomes: Sequence[str], ranks: dict[tuple[str, str], int]
) -> Verdict:
    """As `_why_not`, for merges ranked by pair."""
    current = list(token)
    steps: list[tuple[str, str]] = []
    possible = _pair_path(current, ranks)
    while possible:
        pairs = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(current)) if pair in ranks]
        if not pairs:
            break
        _, i = min(pairs)
        steps.append((current[i], current[i + 1]))
        current[i : i + 2] = [current[i] + current[i + 1]]
        if not _pair_path(current, ranks):
            left, right = steps[-1]
            return Verdict(
                index, token, False, "beaten by an earlier merge", tuple(becomes), f"{left}+{right}"
            )
    return Verdict(index, token, False, "no merge path", tuple(becomes))


def _pair_path(symbols: Sequence[str], ranks: dict[tuple[str, str], int]) -> bool:
    n = len(symbols)
    ends = [{i + 1} for i in range(n)]
    for length in range(2, n + 1):
        for i in range(n - length + 1):
            j = i + length
            for k in range(i + 1, j):
                if k in ends[i] and j in ends[k] and ("".join(symbols[i:k]), "".join(symbols[k:j])) in ranks:
                    ends[i].add(j)
                    break
    return n in ends[0]


# ---------------------------------------------------------------------------------------------- comparing two


@dataclass(frozen=True)
class Change:
    """One stretch of one text that two tokenizers cut differently.

    Attributes:
        line: index into the texts. start, end: the stretch, in pieces-as-text characters of that line.
        text: the stretch (`▁` stands for a space). before, after: the pieces it was cut into.
    """

    line: int
    start: int
    end: int
    text: str
    before: tuple[str, ...]
    after: tuple[str, ...]


def changed_segmentation(before: Any, after: Any, texts: Iterable[str]) -> list[Change]:
    """Where and how two tokenizers cut the same texts differently: the stretches between common cuts.

    Args:
        before, after: anything with `encode(text)` that yields pieces: a SentencePiece model (path, bytes,
            ModelProto, processor) or a fast tokenizer.
        texts: the lines to compare.

    Returns: the changes, in order. `Counter((c.before, c.after) for c in changes)` makes a table of them.

    Raises: VocabularyError if the two do not spell a text alike (another normaliser), naming the line.
    """
    cut_before, cut_after = _cutter(before), _cutter(after)
    changes: list[Change] = []
    for number, line in enumerate(texts):
        changes += _compare(number, cut_before(line), cut_after(line))
    return changes


def _compare(number: int, old: list[tuple[str, bytes]], new: list[tuple[str, bytes]]) -> Iterator[Change]:
    if b"".join(b for _, b in old) != b"".join(b for _, b in new):
        raise VocabularyError(
            "The two tokenizers do not spell this text alike (they normalise differently).",
            where=f"line {number}",
            remedy="Compare tokenizers with the same normaliser, or normalise the texts first.",
        )
    whole = b"".join(b for _, b in old)
    i = j = 0
    at_old = at_new = start = 0
    first_i = first_j = 0
    while i < len(old) or j < len(new):
        if at_old <= at_new and i < len(old):
            at_old += len(old[i][1])
            i += 1
        else:
            at_new += len(new[j][1])
            j += 1
        if at_old == at_new:
            left = tuple(p for p, _ in old[first_i:i])
            right = tuple(p for p, _ in new[first_j:j])
            if left != right:
                offset = len(whole[:start].decode("utf-8", errors="ignore"))
                text = whole[start:at_old].decode("utf-8", errors="replace")
                yield Change(number, offset, offset + len(text), text, left, right)
            start, first_i, first_j = at_old, i, j


def _cutter(model: Any) -> Any:
    """A function from a text to its pieces, each with the bytes it covers."""
    if isinstance(model, (bytes, pb2.ModelProto, sentencepiece.SentencePieceProcessor)) or (
        isinstance(model, (str, Path)) and not str(model).endswith(".json")
    ):
        sp = sp_model.processor(sp_model.as_model(model))

        def cut_sp(text: str) -> list[tuple[str, bytes]]:
            pieces, ids = sp.encode(text, out_type=str), sp.encode(text, out_type=int)
            return [
                (piece, bytes([int(piece[3:5], 16)]) if sp.is_byte(index) else piece.encode())
                for piece, index in zip(pieces, ids, strict=True)
            ]

        return cut_sp
    tokenizer = byte_level.as_tokenizer(model)
    bytes_level = byte_level.is_byte_level(tokenizer)
    table = byte_level.byte_alphabet()

    def cut(text: str) -> list[tuple[str, bytes]]:
        out = []
        for token in tokenizer.encode(text, add_special_tokens=False).tokens:
            if bytes_level and all(c in table for c in token):
                covered = bytes(table[c] for c in token)
            elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                covered = bytes([int(token[3:5], 16)])
            else:
                covered = token.encode()
            out.append((token, covered))
        return out

    return cut
