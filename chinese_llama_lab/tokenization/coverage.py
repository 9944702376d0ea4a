"""Which of the 8,105 standard characters (通用规范汉字表, 2013) are one token."""

from __future__ import annotations

import json
from functools import cache
from weakref import WeakKeyDictionary

from chinese_llama_lab.errors import SourceError
from chinese_llama_lab.sources.fetch import source_file
from chinese_llama_lab.tokenization.base import Tokenizer

# Level → its key in the file, and how many characters the standard lists in it.
LEVELS = {
    "level 1": ("《通用规范汉字表》一级汉字", 3500),
    "level 2": ("《通用规范汉字表》二级汉字", 3000),
    "level 3": ("《通用规范汉字表》三级汉字", 1605),
}


_measured: WeakKeyDictionary[Tokenizer, dict[str, float]] = WeakKeyDictionary()


@cache
def standard_characters() -> dict[str, tuple[str, ...]]:
    """The characters of each level: 3,500 common, 3,000 less common, 1,605 for names, places and science.

    Raises:
        SourceError: the list does not hold as many characters as the standard.
    """
    path = source_file("characters")
    table = json.loads(path.read_text(encoding="utf-8"))
    levels = {level: tuple(table[key]["texts"]) for level, (key, _) in LEVELS.items()}
    for level, (_, expected) in LEVELS.items():
        if len(set(levels[level])) != expected:
            raise SourceError(
                f"{level} holds {len(set(levels[level]))} characters, and the standard has {expected}",
                where=str(path),
                remedy="run `chinese-llama-lab fetch characters` again",
            )
    return levels


def character_coverage(tokenizer: Tokenizer) -> dict[str, float]:
    """Share of each level's characters that one token spells, without a space before it."""
    if tokenizer not in _measured:
        _measured[tokenizer] = _measure(tokenizer)
    return dict(_measured[tokenizer])


def _measure(tokenizer: Tokenizer) -> dict[str, float]:
    return {
        level: sum(tokenizer.find_token(character.encode("utf-8")) is not None for character in characters)
        / len(characters)
        for level, characters in standard_characters().items()
    }
