"""Merge a Chinese SentencePiece model into a base BPE model: as it was published, or repaired.

`published` appends every piece the base lacks with score 0 (Chinese-LLaMA-Alpaca v1,
`merge_tokenizers.py`). A score of 0 beats every merge LLaMA ever learnt, ties with all others, and pays no
heed to how BPE reaches a piece; the result loses 194 of LLaMA's own pieces, never produces 345 of its new
ones, and cannot be converted.

`repaired` keeps three rules, each of which makes one promise true by construction:
1. Only Han pieces (with or without the `▁` of a line's beginning) are added: text without Han cannot change.
2. Every added score lies below every score of the base. So BPE first runs exactly as the base would, then
   joins what the base left: English, code and digits in mixed text keep their tokens, and no base piece is
   lost.
3. Pieces are added in an order learnt by BPE on the new words, each as the join of the two symbols its word
   is made of *at that moment*. Later pieces rank lower, so what was reachable once stays reachable. A word
   without a second-last step gets it (`completed`) while there is room, else it is left out (`dropped`).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from chinese_llama_lab.vocabulary import han, sp_model
from chinese_llama_lab.vocabulary.errors import VocabularyError
from chinese_llama_lab.vocabulary.frequent_joins import count_joins, frequent_joins, most_frequent
from chinese_llama_lab.vocabulary.reachability import reachability

Policy = Literal["repaired", "published"]
AUTO = "auto"
# Measured with the published Chinese model on six kinds of text: see `results/bench_merge.csv`.
FILL_FOR_EACH = 4
NOT_HAN = "not Han alone"


@dataclass(frozen=True)
class MergeResult:
    """What `merge` made.

    Attributes:
        model: the merged ModelProto.
        policy: the policy it was made with.
        base_size: number of pieces of the base; they keep their ids 0 .. base_size - 1.
        pad_id: id of the pad piece, or None.
        added: pieces of the extra model that were added, in id order.
        completed: pieces that were added because a longer word needs them on its way.
        dropped: pieces of the extra model that were left out, with the reason.
        rescored: base pieces whose tied scores were told apart, with their new scores.
        filled: further joins of Chinese pieces, from `texts` or from the list of frequent ones.
    """

    model: Any
    policy: Policy
    base_size: int
    pad_id: int | None
    added: tuple[str, ...]
    completed: tuple[str, ...] = ()
    dropped: dict[str, str] = field(default_factory=dict)
    rescored: dict[str, float] = field(default_factory=dict)
    filled: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.model.pieces)

    @property
    def sha256(self) -> str:
        """sha256 of the serialised model."""
        return sp_model.sha256(self.model)

    def summary(self) -> str:
        """One line for a reader."""
        why = ", ".join(f"{n} {reason}" for reason, n in Counter(self.dropped.values()).most_common())
        return (
            f"{self.policy}: {self.base_size} + {len(self) - self.base_size} = {len(self)} pieces"
            f" ({len(self.added)} added, {len(self.completed)} completed, {len(self.filled)} filled,"
            f" pad id {self.pad_id};"
            f" left out: {why or 'none'})"
        )


def merge(
    base: Any,
    extra: Any,
    policy: Policy = "repaired",
    *,
    pad: str | None = AUTO,
    complete: bool | int = True,
    texts: Iterable[str] | None = None,
    fill: int | None = None,
) -> MergeResult:
    """Merge the pieces of `extra` into `base`.

    Args:
        base: a SentencePiece BPE model (path, bytes, ModelProto or processor). Not changed.
        extra: a SentencePiece unigram or BPE model.
        policy: `repaired` (for use) or `published` (bit for bit what Chinese-LLaMA-Alpaca v1 shipped).
        pad: the pad piece. `repaired`: a control piece, right after the base's pieces; by default `<pad>`,
            or the base's own pad piece where it has one. `published`: a NORMAL piece with score 0 at the
            end, by default none (Alpaca's is `[PAD]`). None adds none.
        complete: add missing steps on the way to a longer word (`越来` for `越来越`): by default as many as
            pieces of the extra model were left out, or a number, or False; words still unreachable are
            dropped.
        texts: Chinese text to learn further joins of Chinese pieces from (`repaired` only); by default a
            list that was learnt from the course's corpora (`frequent_joins.py`).
        fill: how many such joins to add at most. By default four for each piece of digits, letters or
            punctuation that was left out: the published merge joins digits, the repaired one may not, and
            this makes up for it on text full of numbers. 0 adds none.

    Returns: a MergeResult.

    Raises: VocabularyError if either is no sound SentencePiece model, the base is not BPE, the base has
        tied scores that cannot be told apart, the pad piece is taken, or nothing would be added.
    """
    base_model = sp_model.as_model(base, where="base model", expect="bpe")
    extra_model = sp_model.as_model(extra, where="extra model")
    if sp_model.model_type(extra_model) not in ("unigram", "bpe"):
        raise VocabularyError(
            f"The extra model is a {sp_model.model_type(extra_model)} model.",
            where="extra model",
            remedy="Give a unigram or BPE model.",
        )
    if policy == "published" and (texts is not None or fill is not None):
        raise VocabularyError(
            "The published policy looks at no text and fills nothing.",
            where="texts, fill",
            remedy="Leave them out, or use the policy 'repaired'.",
        )
    if policy == "published":
        result = _published(base_model, extra_model, None if pad == AUTO else pad)
    elif policy == "repaired":
        result = _repaired(base_model, extra_model, pad, complete, texts, fill)
    else:
        raise VocabularyError(
            f"There is no policy {policy!r}.", where="policy", remedy="Choose 'repaired' or 'published'."
        )
    if not result.added:
        raise VocabularyError(
            f"The extra model adds nothing: {dict(Counter(result.dropped.values()))}.",
            where="extra model",
            remedy="Give a model trained on Chinese text whose pieces the base does not have.",
        )
    return result


def _published(base: Any, extra: Any, pad: str | None) -> MergeResult:
    model = sp_model.copy_model(base)
    have = {p.piece for p in base.pieces}
    added, dropped = [], {}
    for piece in extra.pieces:
        if piece.piece in have:
            dropped[piece.piece] = "in the base"
            continue
        _append(model, piece.piece, 0.0)
        added.append(piece.piece)
    pad_id = None
    if pad is not None:
        _refuse_taken(pad, have | set(added))
        pad_id = len(model.pieces)
        _append(model, pad, 0.0)
    return MergeResult(model, "published", len(base.pieces), pad_id, tuple(added), dropped=dropped)


def _append(model: Any, text: str, score: float, kind: int | None = None) -> None:
    piece = model.pieces.add()
    piece.piece = text
    piece.score = score
    # Setting even the default would add bytes to the file, and `published` must match bit for bit.
    if kind is not None:
        piece.type = kind


def _refuse_taken(pad: str, have: set[str]) -> None:
    if not pad or pad in have:
        raise VocabularyError(
            f"The pad piece {pad!r} is {'taken by another piece' if pad else 'empty'}.",
            where="pad",
            remedy="Choose another string, or pad=None.",
        )


# ----------------------------------------------------------------------------------------------- repaired


def _repaired(
    base: Any,
    extra: Any,
    pad: str | None,
    complete: bool | int,
    texts: Iterable[str] | None,
    fill: int | None,
) -> MergeResult:
    model = sp_model.copy_model(base)
    rescored = _tell_ties_apart(model)
    pad_id = _reserve_pad(model, pad)
    words, dropped = _choose(model, extra)
    score = _Descending(min(p.score for p in model.pieces))

    # Single characters first: BPE starts from characters, and a fast tokenizer can only start from known
    # ones.
    known = {p.piece for p in model.pieces}
    characters = [w for w in words if len(w) == 1]
    needed = dict.fromkeys(c for w in words for c in w if c not in known and c not in words)
    completed = list(needed)
    for character in characters + completed:
        _append(model, character, score.next(), sp_model.NORMAL)
    targets = {w: weight for w, weight in words.items() if len(w) > 1}
    start = sp_model.bare_processor(model).encode(list(targets), out_type=str) if targets else []
    # `True`: as many as pieces were left out, so that the result is no larger than the published one.
    room = sum(reason == NOT_HAN for reason in dropped.values()) if complete is True else int(complete)
    order, extra_steps = _learn_order(
        [(symbols, weight) for symbols, weight in zip(start, targets.values(), strict=True)],
        set(targets),
        room,
        taken={p.piece for p in model.pieces},
        ranks={w: rank for rank, w in enumerate(targets)} if sp_model.model_type(extra) == "bpe" else None,
    )
    for piece in order:
        _append(model, piece, score.next(), sp_model.NORMAL)
    completed += extra_steps
    reached = set(characters) | set(order)
    dropped |= {w: "no merge path" for w in words if w not in reached}
    left_out = sum(reason == NOT_HAN for reason in dropped.values())
    wanted = FILL_FOR_EACH * left_out - len(completed) if fill is None else fill
    filled = _fill(model, texts, wanted, score)
    model = _prove(base, model, dropped)
    present = {p.piece for p in model.pieces}
    if model.HasField("trainer_spec"):
        model.trainer_spec.vocab_size = len(model.pieces)
    return MergeResult(
        model,
        "repaired",
        len(base.pieces),
        pad_id,
        added=tuple(w for w in characters + order if w in words and w in present),
        completed=tuple(w for w in completed if w in present),
        dropped=dropped,
        rescored=rescored,
        filled=tuple(w for w in filled if w in present),
    )


class _Descending:
    """Distinct float32 scores, each below the one before, starting below `start`."""

    def __init__(self, start: float) -> None:
        self.last = np.float32(start)

    def next(self) -> float:
        # At -1e9 (LLaMA's runs of spaces) neighbouring float32 numbers are 64 apart; a step of 1 would be
        # lost.
        step = max(1.0, 2 * float(np.spacing(np.abs(self.last))))
        self.last = np.float32(float(self.last) - step)
        return float(self.last)


def _tell_ties_apart(model: Any) -> dict[str, float]:
    """Give equal scores of the base distinct values without changing any encoding; returns what changed.

    SentencePiece merges the leftmost of equals, a fast tokenizer the one with the lower rank. LLaMA's 15
    runs of
    spaces share one score: SentencePiece grows a run from the left. Ranking longer runs first does the same.
    """
    groups: dict[float, list[int]] = defaultdict(list)
    for i, p in enumerate(model.pieces):
        if p.type == sp_model.NORMAL:
            groups[p.score].append(i)
    changed: dict[str, float] = {}
    scores = sorted(groups)
    for score, members in groups.items():
        if len(members) < 2:
            continue
        texts = [model.pieces[i].piece for i in members]
        # A single character is never the result of a merge: its score decides nothing.
        multi = [t for t in texts if len(t) > 1]
        if len({c for t in multi for c in t}) > 1:
            raise VocabularyError(
                f"{len(multi)} pieces of the base share the score {score + 0.0:g}"
                f" (such as {multi[0]!r} and {multi[-1]!r}):"
                " which merges first depends on the text, and no order of pieces is equal to that.",
                where="base model",
                remedy="Repair from the original base, not from a model merged with policy='published'.",
            )
        below = max((s for s in scores if s < score), default=-math.inf)
        value = np.float32(score)
        for i in sorted(members, key=lambda i: (-len(model.pieces[i].piece), i)):
            if float(value) <= below:
                raise VocabularyError(
                    f"There is no room to tell apart {len(members)} pieces with the score {score:g}.",
                    where="base model",
                    remedy="Spread the base's scores further apart.",
                )
            if float(value) != model.pieces[i].score:
                model.pieces[i].score = float(value)
                changed[model.pieces[i].piece] = float(value)
            value = np.nextafter(value, np.float32(-np.inf))
    return changed


def _reserve_pad(model: Any, pad: str | None) -> int | None:
    names = {p.piece: i for i, p in enumerate(model.pieces)}
    own = names.get(model.trainer_spec.pad_piece)
    if (
        own is not None
        and model.pieces[own].type == sp_model.CONTROL
        and pad in (AUTO, model.trainer_spec.pad_piece)
    ):
        return own
    if pad is None:
        return None
    name = "<pad>" if pad == AUTO else pad
    _refuse_taken(name, set(names))
    index = len(model.pieces)
    _append(model, name, 0.0, sp_model.CONTROL)
    model.trainer_spec.pad_piece = name
    model.trainer_spec.pad_id = index
    return index


def _choose(model: Any, extra: Any) -> tuple[dict[str, float], dict[str, str]]:
    """The pieces of `extra` that may be added, with a weight like a frequency; the others, and why."""
    have = {p.piece: p.type for p in model.pieces}
    words: dict[str, float] = {}
    dropped: dict[str, str] = {}
    unigram = sp_model.model_type(extra) == "unigram"
    for rank, p in enumerate(extra.pieces):
        body = p.piece.removeprefix(sp_model.SPACE)
        if p.type in (
            sp_model.CONTROL,
            sp_model.UNKNOWN,
            sp_model.BYTE,
            sp_model.UNUSED,
            sp_model.USER_DEFINED,
        ):
            dropped[p.piece] = f"{sp_model.KIND_NAMES[p.type]} piece"
        elif p.piece in have:
            dropped[p.piece] = "in the base"
        elif not han.is_han(body) or (body != p.piece and sp_model.SPACE not in have):
            dropped[p.piece] = NOT_HAN
        else:
            # A unigram score is a log-probability. A BPE score is a rank; Zipf's law makes a frequency of it.
            words[p.piece] = math.exp(p.score) if unigram else 1.0 / (rank + 10)
    return words, dropped


def _learn_order(
    words: list[tuple[list[str], float]],
    targets: set[str],
    room: int,
    *,
    taken: set[str],
    ranks: dict[str, int] | None = None,
) -> tuple[list[str], list[str]]:
    """BPE training on weighted words, restricted to merges whose result is wanted.

    Args:
        words: each word's starting symbols and weight.
        targets: the wanted pieces.
        room: when no wanted merge is left, how many unwanted ones may be added inside unfinished words.
        taken: strings that are pieces already.
        ranks: the order of a BPE model, kept as it is; None orders by weight, as for a unigram model.

    Returns: all results in merge order, and those of them that were not targets.
    """
    symbols = [list(s) for s, _ in words]
    weights = [w for _, w in words]
    allowed = set(targets)
    unfinished = {i for i, s in enumerate(symbols) if len(s) > 1}
    pairs: dict[tuple[str, str], float] = defaultdict(float)
    where: dict[tuple[str, str], set[int]] = defaultdict(set)
    for i in unfinished:
        for pair in zip(symbols[i], symbols[i][1:], strict=False):
            pairs[pair] += weights[i]
            where[pair].add(i)

    def urgency(pair: tuple[str, str]) -> float:
        """The smaller, the sooner."""
        return -pairs[pair] if ranks is None else float(ranks.get(pair[0] + pair[1], len(ranks)))

    # Ties are broken by the pair itself, so the order does not depend on how Python stores a set.
    heap = [(urgency(pair), pair) for pair in pairs if pair[0] + pair[1] in allowed]
    heapq.heapify(heap)
    order: list[str] = []
    done = set(taken)
    completed: list[str] = []
    while True:
        while heap:
            key, pair = heapq.heappop(heap)
            piece = pair[0] + pair[1]
            if piece in done or not where[pair] or key != urgency(pair):
                continue  # out of date: the pair was pushed again with its present weight
            order.append(piece)
            done.add(piece)
            for changed in _apply(pair, symbols, weights, pairs, where, unfinished):
                if changed[0] + changed[1] in allowed:
                    heapq.heappush(heap, (urgency(changed), changed))
        steps: dict[tuple[str, str], float] = defaultdict(float)
        for i in sorted(unfinished):
            for pair in zip(symbols[i], symbols[i][1:], strict=False):
                if pair[0] + pair[1] not in done:
                    steps[pair] += weights[i]
        if len(completed) >= room or not steps:
            return order, completed
        best = min(steps, key=lambda pair: (-steps[pair], pair))
        allowed.add(best[0] + best[1])
        completed.append(best[0] + best[1])
        heapq.heappush(heap, (urgency(best), best))


def _apply(
    pair: tuple[str, str],
    symbols: list[list[str]],
    weights: list[float],
    pairs: dict[tuple[str, str], float],
    where: dict[tuple[str, str], set[int]],
    unfinished: set[int],
) -> list[tuple[str, str]]:
    """Merge `pair` in every word that has it, leftmost first; returns the pairs whose weight changed."""
    touched: set[tuple[str, str]] = set()
    for i in sorted(where[pair]):
        word = symbols[i]
        for old in itertools.pairwise(word):
            touched.add(old)
            where[old].discard(i)
        new: list[str] = []
        j = 0
        while j < len(word):
            if j + 1 < len(word) and (word[j], word[j + 1]) == pair:
                new.append(word[j] + word[j + 1])
                j += 2
            else:
                new.append(word[j])
                j += 1
        symbols[i] = new
        if len(new) == 1:
            unfinished.discard(i)
        for fresh in itertools.pairwise(new):
            touched.add(fresh)
            where[fresh].add(i)
    for changed in touched:
        # Summed afresh, in a fixed order: adding and subtracting floats would leave dust behind.
        pairs[changed] = sum(
            weights[i] * sum(p == changed for p in zip(symbols[i], symbols[i][1:], strict=False))
            for i in sorted(where[changed])
        )
    return sorted(touched)


def _fill(model: Any, texts: Iterable[str] | None, room: int, score: _Descending) -> list[str]:
    """Append up to `room` joins of two neighbouring Han pieces, the most frequent first.

    Two pieces that stand side by side in some encoding also do so in the encoding of the two alone
    (`bpe.py`), so each pair can be joined, at the lowest ranks, without a further step on the way.
    """
    if room <= 0:
        return []
    have = {p.piece for p in model.pieces}
    if texts is None:
        alone = sp_model.bare_processor(model)
        words = [w for w in frequent_joins() if w not in have]
        cut = alone.encode(words, out_type=str)
        best = [w for w, pieces in zip(words, cut, strict=True) if len(pieces) == 2][:room]
    else:
        counts = count_joins(model, texts)
        best = most_frequent(Counter({w: n for w, n in counts.items() if w not in have}), room)
    for piece in best:
        _append(model, piece, score.next(), sp_model.NORMAL)
    return best


def _prove(base: Any, model: Any, dropped: dict[str, str]) -> Any:
    """Check the promise on the finished model; drop a word that fails it (a base that never learnt it
    could).
    """
    before = {v.index for v in reachability(base).unreachable()}
    while True:
        bad = {v.index: v for v in reachability(model).unreachable()}
        lost = [v for i, v in bad.items() if i < len(base.pieces) and i not in before]
        failing = [i for i in bad if i >= len(base.pieces)]
        if lost:  # cannot happen while every added score is below every base score
            raise VocabularyError(
                f"{len(lost)} base pieces would become unreachable, such as {lost[0]}.",
                where="merge",
                remedy="Please report this base model: the repaired merge must never do that.",
            )
        if not failing:
            return model
        kept = sp_model.copy_model(model)
        del kept.pieces[:]
        for i, piece in enumerate(model.pieces):
            if i in failing:
                dropped[piece.piece] = "no merge path"
            else:
                kept.pieces.add().CopyFrom(piece)
        model = kept
