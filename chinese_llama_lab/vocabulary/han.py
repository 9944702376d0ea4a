"""What counts as a Han character here, in characters and in UTF-8 bytes.

The block U+4E00..U+9FFF and nothing else: narrower than Unicode's script property, on purpose.
Every wider definition of "text without Han characters" is then kept too: `々`, `〇`, kana, hexagrams
and the extension blocks keep the ids they had, whichever definition a reader has in mind.

In UTF-8 the block is E4 B8 80 .. E9 BF BF. Bytes E5..E9 start nothing else; E4 alone is ambiguous
(E4 B7 80 is the hexagram U+4DC0), E4 followed by B8 or more is not.
"""

from __future__ import annotations

import re

FIRST, LAST = "\u4e00", "\u9fff"
LEAD_BYTES = frozenset(range(0xE4, 0xEA))
AMBIGUOUS_LEAD = 0xE4
RUN = re.compile(f"[{FIRST}-{LAST}]+")


def is_han(text: str) -> bool:
    """Whether `text` has at least one character and all of them are Han."""
    return RUN.fullmatch(text) is not None


def has_han(text: str) -> bool:
    """Whether `text` contains a Han character."""
    return RUN.search(text) is not None
