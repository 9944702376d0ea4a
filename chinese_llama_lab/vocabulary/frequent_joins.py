"""Chinese strings worth a piece of their own: what `merge` fills up with when it is given no text.

A repaired merge may not add pieces of digits or Latin letters, which the published one did, so text full of
numbers gets longer. Further Chinese pieces make up for it. Which ones? Pairs of pieces that stand side by
side most often. The list beside this file was learnt by `learn_frequent_joins` from the training parts of
the course's corpora, with a Chinese model trained on them; it holds words and phrases, no text. Its novel
shows: names of 三国演义 are near the top. Give `merge` a text of your own for joins of your own kind.

    python -m chinese_llama_lab.vocabulary.frequent_joins > chinese_llama_lab/vocabulary/frequent_joins.txt
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from chinese_llama_lab.tokenization.fertility import iterate_texts
from chinese_llama_lab.vocabulary import han, sp_model

LISTED = 6000
CORPORA = ("peoples-daily", "reviews", "modern", "three-kingdoms", "hsk-zh")


@cache
def frequent_joins() -> tuple[str, ...]:
    """The shipped list, most frequent first."""
    path = files(__package__) / "frequent_joins.txt"
    return tuple(path.read_text(encoding="utf-8").split())


def count_joins(model: Any, texts: Iterable[str]) -> Counter[str]:
    """How often two neighbouring pieces of Chinese characters alone stand side by side in the texts."""
    processor = sp_model.processor(model)
    counts: Counter[str] = Counter()
    for text in iterate_texts(texts):
        for left, right in itertools.pairwise(processor.encode(text, out_type=str)):
            if han.is_han(left + right):
                counts[left + right] += 1
    return counts


def most_frequent(counts: Counter[str], count: int) -> list[str]:
    """The `count` most frequent; the smaller of equals, so that the order of the texts does not matter."""
    return sorted((w for w, n in counts.items() if n > 1), key=lambda w: (-counts[w], w))[: max(count, 0)]


def learn_frequent_joins() -> list[str]:
    """Learn the list again from the course's corpora (they are fetched if need be); about a minute."""
    from chinese_llama_lab.sources.corpora import load_corpus
    from chinese_llama_lab.tokenization.registry import converted_gguf
    from chinese_llama_lab.vocabulary.merge import merge
    from chinese_llama_lab.vocabulary.sp_train import train_sentencepiece

    texts = {name: [document.text for document in load_corpus(name).split("train")] for name in CORPORA}
    training = [text for name in CORPORA[:3] for text in texts[name]]
    merged = merge(converted_gguf("llama"), train_sentencepiece(training, 20_000).model, fill=0)
    counts: Counter[str] = Counter()
    for documents in texts.values():
        counts += count_joins(merged.model, documents)
    return most_frequent(counts, LISTED)


if __name__ == "__main__":
    print("\n".join(learn_frequent_joins()))
