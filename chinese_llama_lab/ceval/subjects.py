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
# CMMLU has at least 105 questions a subject, five of them for dev (arXiv 2306.09212, section 3); how many in
# each is not said there.
CMMLU_TEST_LEAST = 100
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
        counts: split → official number of questions; of CMMLU's test the least that a subject has.
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
            counts = {"dev": DEV_PER_SUBJECT, "test": CMMLU_TEST_LEAST}
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
    near = _nearest(wanted, names)
    raise SubjectError(
        f"there is no subject {name!r} in {benchmark}",
        where=where,
        remedy=f"did you mean {' or '.join(f'{one.key} ({one.chinese})' for one in near)}?"
        if near
        else f"use one of {', '.join(list(subjects)[:4])}, … ({len(subjects)} in all)",
    )


def _nearest(wanted: str, names: Mapping[str, Subject]) -> list[Subject]:
    """Up to three: names of nearly this spelling; else that share a word or hold it; else a little alike."""
    spelt = wanted.replace(" ", "_")
    words = set(spelt.split("_"))
    found = (
        get_close_matches(spelt, list(names), n=1, cutoff=0.8)
        or [name for name in names if words & set(name.split("_"))]
        or [name for name in names if len(spelt) > 1 and (spelt in name or (len(name) > 1 and name in spelt))]
        or get_close_matches(spelt, list(names), n=1, cutoff=0.5)
    )
    return list({names[name].key: names[name] for name in found}.values())[:3]
