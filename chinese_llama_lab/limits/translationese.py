"""Translationese: marks that a translation from English leaves in Chinese text, counted.

Six marks, each a rate with a numerator and a denominator that are counted by rules below, without a parser.
A rule is wrong now and then; it is wrong in the same way for all texts that are compared. What the marks
mean is from the study of translated Chinese (Xiao, Corpora 5 (2010); 余光中, 从西而不化到西而化之 (1979));
both are cited from memory. The rules and the lists are this project's.

A high rate is no proof of translation. Kinds of text differ too: a news report has long sentences, a novel
has pronouns. So translated text is compared with several kinds that were written in Chinese, and first of all
with text of its own kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chinese_llama_lab.limits.errors import TranslationeseError

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_SENTENCE_ENDS = re.compile(r"[。！？!?；;\n]+")
_CLAUSE_ENDS = re.compile(r"[，、。！？!?；;：:…—\n]+")
# 被 as a noun or in a word that is no passive: 被子, 棉被; 被告 names a party. 为 … 所 … is left out: without
# a parser most of what is found so is none (为…研究所).
_PASSIVE = re.compile(r"(?<![棉毛被植覆])被(?![子褥单套窝告面])|受到|遭到|得到了")
# 其他, 他人, 吉他 and the like are no pronouns for a person that was named before.
_PRONOUN = re.compile(r"(?<![其吉排])[他她它](?![人乡国])们?")
_OF = re.compile(r"(?<![目标有似])的(?![确士])")
_ARTICLE = re.compile(r"一(?:个|种|位|项|名|类)")
# Characters that transcriptions of foreign names are made of and other words seldom put side by side.
_SOUNDS = (
    "阿埃艾爱奥巴贝本比彼波伯布查茨达戴丹道德蒂迪杜多恩尔厄法菲弗福盖格戈古哈海汉赫华霍基吉加杰金卡凯坎康柯科克"
    "肯库奎拉莱兰朗劳勒雷里利林列琳隆卢鲁路伦罗洛马玛迈曼梅门蒙米莫默姆穆纳内尼娜奈诺帕佩皮珀普齐奇乔切琼萨塞"
    "桑瑟森沙莎绍什史斯丝思松苏索塔泰坦汤特提廷托图瓦万威韦维温文沃乌西希席谢辛休雅亚扬耶伊英尤约扎詹珍朱兹佐翰密"
)
# A dot between two names' parts says so whatever the characters are.
_NAME = re.compile(rf"[{_SOUNDS}]*(?:[\u4e00-\u9fff]·[\u4e00-\u9fff][{_SOUNDS}]*)+|[{_SOUNDS}]{{4,10}}")


@dataclass(frozen=True)
class Mark:
    """One rate.

    Attributes:
        name: short. of: what it is a rate of, with its unit.
        find: text -> what is counted in it, in order.
        count: text -> (numerator, denominator).
    """

    name: str
    of: str
    find: Callable[[str], list[str]]
    count: Callable[[str], tuple[float, float]]


def _per_thousand(name: str, of: str, pattern: re.Pattern[str]) -> Mark:
    def matches(text: str) -> list[str]:
        return [found.group() for found in pattern.finditer(text)]

    def count(text: str) -> tuple[float, float]:
        return 1000.0 * len(matches(text)), float(len(_HAN.findall(text)))

    return Mark(name, f"{of}, per 1,000 characters", matches, count)


def _parts(text: str, ends: re.Pattern[str]) -> list[str]:
    return [part for part in ends.split(text) if _HAN.search(part)]


def _of_chains(text: str) -> list[str]:
    return [part for part in _parts(text, _CLAUSE_ENDS) if len(_OF.findall(part)) >= 2]


def _sentences(text: str) -> list[str]:
    return _parts(text, _SENTENCE_ENDS)


MARKS: tuple[Mark, ...] = (
    _per_thousand("passives", "被 and its like", _PASSIVE),
    _per_thousand("pronouns", "他 她 它 and their plurals", _PRONOUN),
    _per_thousand("articles", "一个 一种 and their like", _ARTICLE),
    Mark(
        "的-chains",
        "clauses with two 的 or more, percent",
        _of_chains,
        lambda text: (100.0 * len(_of_chains(text)), float(len(_parts(text, _CLAUSE_ENDS)))),
    ),
    Mark(
        "sentence length",
        "Han characters a sentence",
        _sentences,
        lambda text: (float(len(_HAN.findall(text))), float(len(_sentences(text)))),
    ),
    _per_thousand("foreign names", "names transcribed by sound", _NAME),
)


def find(name: str, text: str) -> list[str]:
    """What a mark counts in a text, in order: sentences for `sentence length`, clauses for `的-chains`.

    Raises: TranslationeseError: no such mark.
    """
    for mark in MARKS:
        if mark.name == name:
            return mark.find(text)
    names = ", ".join(mark.name for mark in MARKS)
    raise TranslationeseError(f"there is no mark {name!r}", where="name", remedy=f"use one of: {names}")


def measure(
    kinds: Mapping[str, Iterable[str]], *, resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> list[dict[str, Any]]:
    """Rates of all marks in several kinds of text.

    Args:
        kinds: name -> documents (an instruction, an answer, a paragraph).
        resamples, seed, confidence: of the bootstrap over documents.

    Returns: one row a kind and mark: `kind`, `mark`, `of`, `documents`, `characters` (Han), `rate` (sum of
        numerators over sum of denominators), `low`, `high` (percentile interval).

    Raises: TranslationeseError: a kind with fewer than two documents that hold Han characters, one text in
        place of a list, or impossible options.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise TranslationeseError(
            f"{resamples} resamples, confidence {confidence}",
            where="options",
            remedy="use 2000 and 0.95, say",
        )
    rows = []
    for kind, given in kinds.items():
        documents = _documents(kind, given)
        characters = sum(len(_HAN.findall(text)) for text in documents)
        picks = np.random.default_rng(seed).multinomial(
            len(documents), np.full(len(documents), 1 / len(documents)), size=resamples
        )
        for mark in MARKS:
            counts = np.asarray([mark.count(text) for text in documents])
            low, high = _interval(counts, picks, confidence)
            total = counts.sum(axis=0)
            rows.append(
                {
                    "kind": kind,
                    "mark": mark.name,
                    "of": mark.of,
                    "documents": len(documents),
                    "characters": characters,
                    "rate": float(total[0] / total[1]),
                    "low": low,
                    "high": high,
                }
            )
    return rows


def separating(rows: Sequence[Mapping[str, Any]], translated: str) -> list[dict[str, Any]]:
    """Of each mark, how the translated kind stands to every other: the ratio, and whether intervals overlap.

    Returns: rows `mark`, `kind`, `ratio` (translated / kind; infinite where the kind has none), `apart`.

    Raises: TranslationeseError: there is no such kind in the rows.
    """
    own = {row["mark"]: row for row in rows if row["kind"] == translated}
    if not own:
        raise TranslationeseError(
            f"there is no kind {translated!r} in the rows",
            where="translated",
            remedy="name one of `measure`'s",
        )
    found = []
    for row in rows:
        if row["kind"] == translated:
            continue
        mine = own[row["mark"]]
        found.append(
            {
                "mark": row["mark"],
                "kind": row["kind"],
                "ratio": mine["rate"] / row["rate"] if row["rate"] else float("inf"),
                "apart": mine["low"] > row["high"] or mine["high"] < row["low"],
            }
        )
    return found


def _documents(kind: str, given: Iterable[str]) -> list[str]:
    if isinstance(given, (str, bytes)):
        raise TranslationeseError(
            f"the texts of {kind!r} are one text", where="kinds", remedy="give a list of documents"
        )
    documents = [text for text in given if _HAN.search(text)]
    if len(documents) < 2:
        raise TranslationeseError(
            f"{kind!r} has {len(documents)} document(s) with Chinese",
            where="kinds",
            remedy="give at least two: the interval is over documents",
        )
    return documents


def _interval(counts: Any, picks: Any, confidence: float) -> tuple[float, float]:
    sums = picks @ counts
    rates = sums[:, 0] / np.maximum(sums[:, 1], 1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(rates, [tail, 1 - tail])
    return float(low), float(high)
