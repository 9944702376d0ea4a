"""Find the letter in what a model wrote, by rules in order. What they do not find is not guessed.

Each rule is tried on the whole reply before the next. A rule that finds two different letters ends the search
without an answer; only a *conclusion* may correct itself, and then its last word counts. Words that deny
(`答案不是A`) and lists (`A和B`) are no answers.

Chinese-LLaMA-Alpaca's code falls back to the first capital A–D anywhere in the reply and then to a random
letter: a quarter of what cannot be read counts as right there. Here it counts as not extracted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from chinese_llama_lab.ceval.questions import LETTERS

# Every repetition is bounded: a model that writes one sign for ever must not make the search quadratic.
_GAP = r"\s{0,4}"
_OPEN, _CLOSE = r"[\s\"'“”‘’「『【\[(（*_$]{0,8}", r"[\"'“”‘’」』】\])）*_$]{0,8}"
# One letter alone: not part of a word, a number or a list such as `A、C`, `A和B`, `A or B`.
_LIST = rf"{_GAP}(?:[、,，/&+和与或及]|and\b|or\b){_GAP}"
_ONE = r"[A-D](?![A-Za-z0-9])"
# Nor one that is called wrong: `所以选项A错误`.
_WRONG = r"(?:选?项)?(?:的说法|的表述)?(?:是|为)?(?:错|有误|排除|不(?:正确|对|符|成立|能选|合))"
_LETTER = rf"{_OPEN}(?P<letter>{_ONE}){_CLOSE}(?!{_LIST}{_OPEN}(?:选?项)?{_GAP}{_ONE})(?!{_GAP}{_WRONG})"
_IS = (
    rf"(?:{_GAP}(?:应该|应当|应|就|便|只能|可能)?{_GAP}(?:是|为|选择|选){_GAP}|{_GAP})"
    rf"[:：]?{_GAP}(?:选?项)?{_GAP}"
)
_ANSWER = r"(?:正确答案|正确选项|正确的?(?:选项|一项|说法|是)|答案|选项)"
_THUS = r"(?:所以|因此|因而|故而|故|综上(?:所述)?|可见|由此可知|总之|最终|最后)"
# `请选择：A. …B. …` begins a list to choose from. Looked at where a colon stands before the letter.
_NO_MENU = rf"(?!{_OPEN}A{_CLOSE}{_GAP}[.．、:：)）][\s\S]{{0,200}}?(?<![A-Za-z])B{_GAP}[.．、:：)）])"
# A verb of choosing that is not denied.
_WANTED = r"(?<![不非别未没勿])(?<!没有)(?<!不[能应该会可要宜得])(?<!不应该)(?<!不可[以能])"
# Between a letter and what follows where a word could begin: `我认为是C语言` names no letter.
_ENDS = rf"(?={_OPEN}[A-D]{_CLOSE}{_GAP}(?:选?项)?{_GAP}(?:[。．.，,；;！!]|正确|符合题意|$))"
_FITS = r"(?:选?项)?(?:的说法|的表述)?(?:最?符合(?:题意|题干|题目))"
# How an English sentence may begin that calls a letter right. Not with `if` or `I don't think`; and a letter
# before the comma makes a list, `A, B is correct`.
_SAID = (
    r"(?i:(?:^|(?<!\b[A-D])[,，]|[.!?。！？;；:：]|\b(?:correct|incorrect|right|wrong)\s{1,4}(?:and|or|but)\b)"
    rf"{_OPEN}(?:(?:and|but|so|thus|hence|therefore|only|because|since|i think|i believe|that|option|choice)"
    r"[,，]?\s{1,4}){0,4})"
)
_FULL = str.maketrans("ＡＢＣＤ", "ABCD")


@dataclass(frozen=True)
class Extraction:
    """What was found in a reply.

    Attributes:
        letter: the answer, or None.
        rule: the rule that found it; where there is none, `empty`, `contradictory` or `nothing found`.
    """

    letter: str | None
    rule: str


# name → pattern, whether the last of several counts. The order is the order of trust.
RULES: tuple[tuple[str, re.Pattern[str], bool], ...] = (
    ("boxed", re.compile(r"\\boxed\{\s{0,4}(?:\\text\{)?\s{0,4}(?P<letter>[A-D])\s{0,4}\}"), True),
    (
        "concluded",
        re.compile(
            rf"{_THUS}(?:[^。！？\n不非]{{0,16}}?(?:{_ANSWER}{_IS}|{_WANTED}应?该?选择?(?:选?项)?{_GAP})"
            rf"|[^。！？\n不非请]{{0,16}}?{_WANTED}应?该?选择?(?:选?项)?{_GAP}[:：]{_GAP}{_NO_MENU}){_LETTER}"
        ),
        True,
    ),
    (
        "thus",
        re.compile(
            rf"{_THUS}[，,]?{_GAP}(?:选|为|是)?{_GAP}{_LETTER}{_GAP}(?:[。．.，,]|$|{_FITS}(?!吗))", re.M
        ),
        True,
    ),
    ("stated", re.compile(rf"(?<!不是)(?:正确答案|答案|正确选项)】?{_IS}{_LETTER}"), False),
    ("right one", re.compile(rf"正确的?(?:选项|一项|说法|是|的是)[^。\n不A-D]{{0,6}}?{_IS}{_LETTER}"), False),
    (
        "answer",
        re.compile(
            # `Choose the correct option: A. …` asks; so this one has to begin its sentence.
            rf"(?:(?i:\banswer{_GAP}(?:is|:|：)*){_GAP}|(?i:(?:^|[.!?。！？,，;；]){_OPEN}(?:(?:so|thus|hence|"
            rf"therefore)[,，]?{_GAP})?(?:the{_GAP})?correct{_GAP}(?:option|choice){_GAP}(?:is|:|：)){_GAP}"
            rf"{_NO_MENU})(?i:option{_GAP})?{_LETTER}",
            re.M,
        ),
        False,
    ),
    (
        "chosen",
        re.compile(
            # A colon is for one who chooses: `请选择：` and `下列选项：` ask.
            rf"(?:{_WANTED}(?:(?:应选|应该选|选择|选|我选)(?:选?项)?"
            rf"|(?:应选|应该选|本题选|我选择?)(?:选?项)?{_GAP}[:：]{_GAP}{_NO_MENU})"
            rf"|我(?:认为|觉得)(?:应该|应当|应)?是{_GAP}(?:选?项)?{_ENDS}){_LETTER}",
            re.M,
        ),
        False,
    ),
    (
        "called right",
        re.compile(
            r"(?<![A-Za-z0-9、和与或及])(?P<letter>[A-D])\s{0,4}(?:选?项)?(?:的说法|的表述)?\s{0,4}"
            r"(?:是|为)?(?:正确|对(?![应于称比照立方象着待])|最?符合题意)(?:的|答案|选项)?(?![A-Za-z吗])"
        ),
        False,
    ),
    (
        "called correct",
        re.compile(
            rf"{_SAID}{_OPEN}(?P<letter>[A-D]){_CLOSE}\s{{1,4}}is\s{{1,4}}(?=(?:the\s{{1,4}})?(?:only\s{{1,4}})?"
            r"(?:correct|right)\b(?!\s{0,4}(?:[?？]|(?:only\s{1,4})?(?:if|when)\b)))",
            re.M,
        ),
        False,
    ),
)
_WHOLE = re.compile(
    rf"{_OPEN}(?:选择?|答)?[:：]?(?:选?项)?{_OPEN}(?P<letter>[A-Da-d]){_GAP}(?:选?项)?{_CLOSE}[。．.、,，!！\s]{{0,8}}"
)
_FIRST = re.compile(
    rf"{_OPEN}(?P<letter>{_ONE}){_CLOSE}{_GAP}(?:[.．、:：。，,)）](?!{_GAP}{_ONE})|\n|$)",
)
_OPTION_LINE = re.compile(rf"^{_OPEN}([A-D]){_GAP}[.．、:：)）]", re.M)
# A base model goes on with a question of its own: a blank line, text, four options, `答案`.
_NEXT = re.compile(
    r"\n[ \t]{0,4}\n(?:.{1,2000}\n){1,20}?A[.．、].*\nB[.．、].*\nC[.．、].*\nD[.．、].*\n答案"
)
_TURN = re.compile(r"### Instruction|### Human|\[INST\]|<\|im_start\|>|<\|start_header_id\|>|</s>")


def extract_answer(reply: str, options: Sequence[str] = ()) -> Extraction:
    """The letter that a reply gives as its answer.

    Args:
        reply: what the model wrote behind the prompt.
        options: the four options, so that an answer in words can be told; may be left out.

    Rules, in order: the whole reply is a letter; `RULES`; the reply begins with one letter and lists no
    others; the reply, or what it names as the answer, is word for word one of the options.
    """
    text = _cut(reply).translate(_FULL).strip()
    if not text:
        return Extraction(None, "empty")
    if match := _WHOLE.fullmatch(text):
        return Extraction(match["letter"].upper(), "whole reply")
    for name, pattern, last in RULES:
        found = [match["letter"] for match in pattern.finditer(text)]
        if found and (last or len(set(found)) == 1):
            return Extraction(found[-1], name)
        if found:
            return Extraction(None, "contradictory")
    listed = {match[1] for match in _OPTION_LINE.finditer(text)}
    if (match := _FIRST.match(text)) and listed <= {match["letter"]}:
        return Extraction(match["letter"], "first letter")
    return _in_words(text, options)


def _in_words(text: str, options: Sequence[str]) -> Extraction:
    named = re.search(
        r"答案(?:应该|应当|应)?(?:是|为|：|:)\s{0,4}(?P<words>[^\n]+?)\s{0,4}[。．.]?\s{0,4}(?:\n|$)", text
    )
    spoken = {_plain(text), *([_plain(named["words"])] if named else [])}
    hits = {
        letter for letter, option in zip(LETTERS, options, strict=False) if _plain(option) in spoken - {""}
    }
    if len(hits) == 1:
        return Extraction(hits.pop(), "option in words")
    return Extraction(None, "contradictory" if hits else "nothing found")


def _plain(text: str) -> str:
    return text.strip().strip("。．.，, \"'“”").strip()


def _cut(reply: str) -> str:
    """The reply up to where the model begins another question or another turn."""
    for pattern in (_TURN, _NEXT):
        if match := pattern.search(reply):
            reply = reply[: match.start()]
    return reply
