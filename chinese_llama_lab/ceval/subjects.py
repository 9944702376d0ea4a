"""The subjects of C-Eval and CMMLU: key, names, category, and how many questions each should have.

C-Eval's own evaluation code and Chinese-LLaMA-Alpaca's put the key (`advanced_mathematics`) into a Chinese
prompt; the papers describe the Chinese name (高等数学). Both are kept here, so that either can be asked for.

Source: `subject_mapping.json` of hkust-nlp/ceval; data card of ceval/ceval-exam; haonan-li/CMMLU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType

from chinese_llama_lab.ceval.errors import SubjectError
from chinese_llama_lab.toml import tomllib

BENCHMARKS = ("ceval", "cmmlu")
CATEGORIES = ("STEM", "Social Science", "Humanities", "Other")
DEV_PER_SUBJECT = 5
# The eight that the authors of C-Eval call "Hard".
HARD = (
    "advanced_mathematics",
    "discrete_mathematics",
    "probability_and_statistics",
    "college_chemistry",
    "college_physics",
    "high_school_mathematics",
    "high_school_physics",
    "high_school_chemistry",
)


@dataclass(frozen=True)
class Subject:
    """One subject of a benchmark.

    Attributes:
        key: its name in file names, such as `high_school_physics`.
        english, chinese: its names.
        category: one of `CATEGORIES`; None in CMMLU, whose categories are not used here.
        benchmark: `ceval` or `cmmlu`: some keys are in both, with other names.
        counts: split → official number of questions, where it is known.
    """

    key: str
    english: str
    chinese: str
    category: str | None
    benchmark: str
    counts: Mapping[str, int]


@lru_cache
def load_subjects(benchmark: str = "ceval") -> Mapping[str, Subject]:
    """Key → subject, in the benchmark's own order: 52 in `ceval`, 67 in `cmmlu`.

    Raises: SubjectError: another benchmark.
    """
    if benchmark not in BENCHMARKS:
        raise SubjectError(
            f"there is no table of subjects for {benchmark!r}", remedy=f"use one of {', '.join(BENCHMARKS)}"
        )
    text = files("chinese_llama_lab.ceval").joinpath("subjects.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)[benchmark]
    found = {}
    for key, row in table.items():
        if benchmark == "cmmlu":
            counts = {"dev": DEV_PER_SUBJECT}
            english, chinese, category = key.replace("_", " ").title(), row, None
        else:
            english, chinese, category, val, test = row
            counts = {"dev": DEV_PER_SUBJECT, "val": val, "test": test}
        found[key] = Subject(key, english, chinese, category, benchmark, MappingProxyType(counts))
    return MappingProxyType(found)


def find_subject(name: str, benchmark: str = "ceval", *, where: str | None = None) -> Subject:
    """The subject with this key, English name or Chinese name.

    Args:
        name: case does not matter.
        benchmark: `ceval` or `cmmlu`.
        where: the file or argument that the name comes from, for the message.

    Raises: SubjectError: unknown; the nearest is offered.
    """
    subjects = load_subjects(benchmark)
    wanted = name.strip().lower()
    names: dict[str, Subject] = {}
    for subject in subjects.values():
        names |= {subject.chinese: subject, subject.english.lower(): subject}
    names |= dict(subjects)
    if wanted in names:
        return names[wanted]
    near = get_close_matches(wanted.replace(" ", "_"), list(names), n=1) or get_close_matches(
        wanted, list(names), n=1, cutoff=0.4
    )
    nearest = names[near[0]] if near else None
    raise SubjectError(
        f"there is no subject {name!r} in {benchmark}",
        where=where,
        remedy=f"did you mean {nearest.key} ({nearest.chinese})?"
        if nearest
        else f"use one of {', '.join(list(subjects)[:4])}, … ({len(subjects)} in all)",
    )
