"""Go on training a byte-level BPE tokenizer from the merges it has, inside Han runs only.

Exactly BPE: at each step the most frequent adjacent pair of tokens becomes a new token. Three rules are ours.
- **Where.** Pairs are counted inside runs of Han characters, in the units and tokens the tokenizer itself
  makes of the text, so what is learnt is what encoding will apply.
- **Which.** A pair is admissible if its bytes can occur nowhere but in Han text: the left token begins with
  the lead byte of a Han character, and the right one does not end in a bare E4, which other characters begin
  with too. A pair of continuation bytes, however frequent, is not: (B8, AD) also occurs in kana. Hence text
  without Han keeps its ids, whatever it is: no new merge can apply there. In mixed text, tokens outside Han
  runs stay as they were.
- **Ties.** Of equally frequent pairs the one with the smaller (left id, right id) goes first. The ids are the
  tokenizer's own, so neither the order of the texts nor of a hash table matters.

A pair whose joined bytes already are a token (of the base or new) is not admissible: one merge, one new
token. New merges come after all old ones; ids of old tokens stay.

The published trick (map ids to code points, train `BpeTrainer`, map back) is fast but can neither restrict
pairs nor choose ties; `continue_bpe` keeps an index of where each pair stands, so a merge costs what it
changes.
"""

from __future__ import annotations

import heapq
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tokenizers import Tokenizer

from chinese_llama_lab.tokenization.fertility import iterate_texts
from chinese_llama_lab.vocabulary import byte_level, han
from chinese_llama_lab.vocabulary.errors import VocabularyError

Pair = tuple[int, int]


@dataclass(frozen=True)
class ContinueResult:
    """What `continue_bpe` made.

    Attributes:
        tokenizer: the longer tokenizer, of the type that was given (`tokenizers.Tokenizer` or transformers).
        merges: the new merges in order, as token strings.
        counts: how often each pair stood in the training text when it was merged.
        requested: number of new tokens asked for.
        message: empty, or why there are fewer.
    """

    tokenizer: Any
    merges: tuple[tuple[str, str], ...]
    counts: tuple[int, ...]
    requested: int
    message: str = ""

    @property
    def tokens(self) -> list[str]:
        """The new tokens, in id order."""
        return [left + right for left, right in self.merges]

    def __len__(self) -> int:
        return len(self.merges)

    def first(self, count: int) -> ContinueResult:
        """The result of asking for only `count` tokens: merges are learnt in order, so it is a beginning.

        Raises: VocabularyError if there are fewer than `count`.
        """
        if not 0 <= count <= len(self):
            raise VocabularyError(
                f"The first {count} of {len(self)} new tokens were asked for.",
                where="count",
                remedy=f"Ask for 0 to {len(self)}.",
            )
        state = json.loads(byte_level.as_tokenizer(self.tokenizer).to_str())
        model = state["model"]
        model["merges"] = model["merges"][: len(model["merges"]) - (len(self) - count)]
        for left, right in self.merges[count:]:
            del model["vocab"][left + right]
        shorter = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
        return ContinueResult(
            _wrapped_like(self.tokenizer, shorter), self.merges[:count], self.counts[:count], count
        )


def continue_bpe(
    tokenizer: Any,
    texts: Iterable[str],
    new_tokens: int,
    *,
    min_count: int = 2,
    progress: Callable[[int], None] | None = None,
) -> ContinueResult:
    """Learn `new_tokens` further merges from `texts`.

    Args:
        tokenizer: a byte-level BPE tokenizer (path to a `tokenizer.json`, `tokenizers.Tokenizer`, or a
            transformers fast tokenizer). It is not changed.
        texts: training text, any number of strings, read once.
        new_tokens: how many tokens to add, at least 1.
        min_count: a pair seen less often is not merged.
        progress: called with the number of merges so far, every 100.

    Returns: a ContinueResult; fewer merges than asked for, with a message, if the text yields no more.

    Raises: VocabularyError if the tokenizer is not byte-level BPE, has dropout or word affixes, or the text
        holds no Han characters.
    """
    if new_tokens < 1:
        raise VocabularyError(
            f"{new_tokens} new tokens were asked for.", where="new_tokens", remedy="Ask for 1 or more."
        )
    if min_count < 1:
        raise VocabularyError(f"min_count is {min_count}.", where="min_count", remedy="Use 1 or more.")
    inner = byte_level.as_tokenizer(tokenizer)
    _check(inner)
    runs = han_token_runs(inner, texts)
    if not runs:
        raise VocabularyError(
            "The training text holds no run of Han characters.",
            where="texts",
            remedy="Give Chinese text; check that the file is not empty and was read as UTF-8.",
        )
    vocabulary = inner.get_vocab(with_added_tokens=True)
    spelling = {index: token for token, index in vocabulary.items()}
    next_id = max(spelling) + 1
    leads = safe_leads(inner)
    pairs, counts = learn_merges(runs, spelling, next_id, new_tokens, min_count, progress, leads)
    for number, (left, right) in enumerate(pairs):
        spelling[next_id + number] = spelling[left] + spelling[right]
    merges = tuple((spelling[left], spelling[right]) for left, right in pairs)
    message = ""
    if len(merges) < new_tokens:
        message = (
            f"{new_tokens} new tokens were asked for and the text yields {len(merges)}:"
            f" no other pair inside a Han run occurs {min_count} times."
        )
    return ContinueResult(
        _extended(tokenizer, inner, merges, next_id), merges, tuple(counts), new_tokens, message
    )


def _check(tokenizer: Tokenizer) -> None:
    if not byte_level.is_byte_level(tokenizer):
        raise VocabularyError(
            "The tokenizer is BPE but not byte-level (its vocabulary lacks GPT-2's byte alphabet).",
            where="tokenizer",
            remedy="For a SentencePiece model (LLaMA, Mistral) use `merge`.",
        )
    model = tokenizer.model
    if model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        raise VocabularyError(
            "The tokenizer uses dropout or marks word pieces; continued training would not be exact.",
            where="tokenizer",
            remedy="Use a plain byte-level BPE tokenizer.",
        )


def han_token_runs(
    tokenizer: Tokenizer, texts: Iterable[str], *, batch: int = 2_000
) -> Counter[tuple[int, ...]]:
    """The token runs that lie inside Han runs, with their frequency; runs of one token are left out.

    A run never crosses the border of a pre-tokenizer unit, since no merge does.
    """
    words: Counter[tuple[int, ...]] = Counter()
    iterator = iterate_texts(texts)
    while lines := list(islice(iterator, batch)):
        for encoding in tokenizer.encode_batch(lines, add_special_tokens=False):
            ids, units = encoding.ids, encoding.word_ids
            start = 0
            for i in range(1, len(ids) + 1):
                if i == len(ids) or units[i] != units[start]:
                    if i - start > 1:
                        words[tuple(ids[start:i])] += 1
                    start = i
    table = byte_level.byte_alphabet()
    added = tokenizer.get_added_tokens_decoder()
    as_bytes = {
        index: bytes(table[c] for c in token)
        for token, index in tokenizer.get_vocab(with_added_tokens=False).items()
        if index not in added and all(c in table for c in token)
    }
    runs: Counter[tuple[int, ...]] = Counter()
    for word, count in words.items():
        for run in _inside_han(word, as_bytes):
            runs[run] += count
    return runs


def _inside_han(word: Sequence[int], as_bytes: dict[int, bytes]) -> Iterator[tuple[int, ...]]:
    """Cut a unit's tokens into the maximal stretches that cover nothing but Han characters."""
    parts = [as_bytes.get(index) for index in word]
    if any(part is None for part in parts):
        return  # an added token: it is no result of merges
    data = b"".join(part for part in parts if part is not None)
    text = data.decode("utf-8", errors="surrogateescape")
    inside: list[bool] = []
    for character in text:
        width = 1 if "\udc80" <= character <= "\udcff" else len(character.encode("utf-8"))
        inside += [han.FIRST <= character <= han.LAST] * width
    at = 0
    run: list[int] = []
    for index, part in zip(word, parts, strict=True):
        assert part is not None
        if all(inside[at : at + len(part)]):
            run.append(index)
        else:
            if len(run) > 1:
                yield tuple(run)
            run = []
        at += len(part)
    if len(run) > 1:
        yield tuple(run)


def admissible(left: str, right: str, leads: frozenset[int] = han.LEAD_BYTES) -> bool:
    """Whether the joined token, learnt inside a Han run, can occur nowhere else (see the file's top)."""
    table = byte_level.byte_alphabet()
    return table[left[0]] in leads and table[right[-1]] != han.AMBIGUOUS_LEAD


def safe_leads(tokenizer: Tokenizer) -> frozenset[int]:
    """The lead bytes that new tokens may begin with.

    A byte without a token is dropped by the tokenizer. Were one of 90..B7 dropped after an E4 (extension A,
    the hexagrams), E4 and the next byte could look like a Han character's beginning; E4 is then left out.
    SmolLM2 lacks 21 bytes, none of these.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    alphabet = byte_level.byte_letters()
    if all(alphabet[byte] in vocabulary for byte in range(0x90, 0xB8)):
        return han.LEAD_BYTES
    return han.LEAD_BYTES - {han.AMBIGUOUS_LEAD}


def learn_merges(
    runs: Counter[tuple[int, ...]],
    spelling: dict[int, str],
    next_id: int,
    new_tokens: int,
    min_count: int,
    progress: Callable[[int], None] | None = None,
    leads: frozenset[int] = han.LEAD_BYTES,
) -> tuple[list[Pair], list[int]]:
    """The merges, as pairs of ids (new ids count from `next_id`), and the count of each when it was merged.

    All runs lie one after another in one array; neighbours are linked by index, so a merge touches only the
    places where its pair stands. Positions are never deleted from the index but checked when used.
    """
    tokens = array("i")
    weight = array("i")  # frequency of the run that a position belongs to
    follows = array("i")  # index of the next token of the same run, or -1
    precedes = array("i")
    for run in sorted(runs):  # sorted: the result must not depend on the order of the texts
        count = runs[run]
        first = len(tokens)
        tokens.extend(run)
        weight.extend([count] * len(run))
        follows.extend([*range(first + 1, first + len(run)), -1])
        precedes.extend([-1, *range(first, first + len(run) - 1)])

    first_byte_ok: dict[int, bool] = {}
    last_byte_ok: dict[int, bool] = {}
    table = byte_level.byte_alphabet()
    for index in set(tokens):
        first_byte_ok[index] = table[spelling[index][0]] in leads
        last_byte_ok[index] = table[spelling[index][-1]] != han.AMBIGUOUS_LEAD
    taken = set(spelling.values())
    spelt = dict(spelling)

    total: dict[Pair, int] = {}
    places: dict[Pair, array[int]] = {}
    for i, after in enumerate(follows):
        if after >= 0 and first_byte_ok[tokens[i]] and last_byte_ok[tokens[after]]:
            pair = (tokens[i], tokens[after])
            if pair in total:
                total[pair] += weight[i]
                places[pair].append(i)
            else:
                total[pair] = weight[i]
                places[pair] = array("i", [i])
    heap = [(-count, pair) for pair, count in total.items() if count >= min_count]
    heapq.heapify(heap)

    merges: list[Pair] = []
    counts: list[int] = []
    while heap and len(merges) < new_tokens:
        negative, pair = heapq.heappop(heap)
        count = total.get(pair, 0)
        if count != -negative:
            if count >= min_count:
                heapq.heappush(heap, (-count, pair))
            continue
        text = spelt[pair[0]] + spelt[pair[1]]
        if text in taken:
            del total[pair], places[pair]
            continue
        new = next_id + len(merges)
        merges.append(pair)
        counts.append(count)
        taken.add(text)
        spelt[new] = text
        first_byte_ok[new] = True
        last_byte_ok[new] = True
        if progress is not None and len(merges) % 100 == 0:
            progress(len(merges))
        left, right = pair
        right_starts = first_byte_ok[right]
        fresh: set[Pair] = set()
        # Left to right, so that of overlapping places (a a a) the leftmost is merged.
        for i in sorted(places.pop(pair)):
            j = follows[i]
            if tokens[i] != left or j < 0 or tokens[j] != right:
                continue  # an earlier merge took one of the two
            w = weight[i]
            h, k = precedes[i], follows[j]
            if h >= 0:
                before = tokens[h]
                if first_byte_ok[before]:
                    total_key = (before, left)
                    if total_key in total:
                        total[total_key] -= w
                    key = (before, new)
                    if key in total:
                        total[key] += w
                        places[key].append(h)
                    else:
                        total[key] = w
                        places[key] = array("i", [h])
                    fresh.add(key)
            if k >= 0:
                after = tokens[k]
                if last_byte_ok[after]:
                    if right_starts:
                        total_key = (right, after)
                        if total_key in total:
                            total[total_key] -= w
                    key = (new, after)
                    if key in total:
                        total[key] += w
                        places[key].append(i)
                    else:
                        total[key] = w
                        places[key] = array("i", [i])
                    fresh.add(key)
                precedes[k] = i
            follows[i] = k
            tokens[i] = new
            tokens[j] = -1
        total.pop(pair, None)
        for key in fresh:
            count = total.get(key, 0)
            if count >= min_count:
                heapq.heappush(heap, (-count, key))
    return merges, counts


def _extended(given: Any, inner: Tokenizer, merges: Sequence[tuple[str, str]], next_id: int) -> Any:
    """A copy of the tokenizer with the new merges after the old ones and the new tokens after all old ids."""
    state = json.loads(inner.to_str())
    model = state["model"]
    old = model["merges"]
    model["merges"] = old + (
        [f"{left} {right}" for left, right in merges]
        if old and isinstance(old[0], str)
        else [list(m) for m in merges]
    )
    # Llama-3 and Qwen keep added tokens outside the model's vocabulary; on loading, tokenizers numbers such
    # tokens from the vocabulary's size, which would move them behind the new ones. Named inside it they
    # keep their ids.
    for index, token in inner.get_added_tokens_decoder().items():
        model["vocab"][token.content] = index
    for number, (left, right) in enumerate(merges):
        model["vocab"][left + right] = next_id + number
    return _wrapped_like(given, Tokenizer.from_str(json.dumps(state, ensure_ascii=False)))


def _wrapped_like(given: Any, inner: Tokenizer) -> Any:
    """`inner` itself, or inside a transformers tokenizer if `given` is one."""
    return rewrap(given, inner) if hasattr(given, "backend_tokenizer") else inner


def rewrap(given: Any, longer: Tokenizer) -> Any:
    """The transformers tokenizer `given` around another backend, with its special tokens and template."""
    from transformers import PreTrainedTokenizerFast

    names = {
        key: str(value)
        for key, value in given.special_tokens_map.items()
        if key.endswith("_token") and isinstance(value, str)
    }
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=longer,
        model_max_length=given.model_max_length,
        padding_side=given.padding_side,
        truncation_side=given.truncation_side,
        extra_special_tokens=list(getattr(given, "extra_special_tokens", []) or []),
        clean_up_tokenization_spaces=given.clean_up_tokenization_spaces,
        **names,
    )
    if getattr(given, "chat_template", None):
        wrapped.chat_template = given.chat_template
    return wrapped
