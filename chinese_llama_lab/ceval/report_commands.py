"""`ceval-report` from the shell: what a finished run scored, two runs beside each other, a submission."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from chinese_llama_lab.ceval.options import add_question_options, questions_of

if TYPE_CHECKING:
    from chinese_llama_lab.ceval.runs import Run


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "ceval-report",
        help="what a run of ceval scored; two runs compared; the file for C-Eval's site",
        description="One folder: the report, as report.csv and report.json too. Two folders: is the first"
        " better than the second, or is it chance (paired, exact). With --submission: the answers to the"
        " test set in the form that C-Eval's site takes.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="one or two that ceval wrote")
    parser.add_argument("--submission", type=Path, metavar="FILE", help="write submission.json here")
    parser.add_argument("--unextracted", metavar="LETTER", help="for answers not extracted; '' leaves empty")
    parser.add_argument("--partial", action="store_true", help="a submission of fewer than all questions")
    add_question_options(parser, split=False)
    parser.set_defaults(handler=_report, split="test")


def _report(options: argparse.Namespace) -> int:
    from chinese_llama_lab.ceval.errors import CevalError
    from chinese_llama_lab.ceval.report import make_report
    from chinese_llama_lab.ceval.runs import read_run
    from chinese_llama_lab.ceval.shown import show_report, show_settings
    from chinese_llama_lab.ceval.submission import make_submission

    runs = [read_run(folder) for folder in options.runs]
    if options.submission is not None:
        if len(runs) > 1:
            raise CevalError(
                "a submission is of one run", where=str(options.runs[1]), remedy="give one folder"
            )
        asked = questions_of(options).questions
        submission = make_submission(
            runs[0].rows, asked, unextracted=options.unextracted, official=not options.partial
        )
        submission.write(options.submission)
        print(f"{submission}\nwritten: {options.submission}")
        return 0
    if len(runs) == 1:
        report = make_report(runs[0].rows, runs[0].settings)
        written = report.write(options.runs[0])
        print(f"{show_settings(runs[0].settings)}\n\n{show_report(report)}")
        print(f"written: {', '.join(map(str, written))}")
        return 0
    if len(runs) > 2:
        raise CevalError(
            f"{len(runs)} runs cannot be compared at once", where=str(options.runs[2]), remedy="give two"
        )
    _compare(*runs)
    return 0


def _compare(first: Run, second: Run) -> None:
    from chinese_llama_lab.ceval.compare import compare_runs
    from chinese_llama_lab.results import table

    found = compare_runs(first.rows, second.rows, settings=(first.settings, second.settings))
    different = [
        {"setting": name, "first": _short(one), "second": _short(other)}
        for name, (one, other) in found.settings.items()
    ]
    if different:
        print(f"{table('different', different)}\n")
    print(found)
    print(
        f"both right {found.both:,}, only the first {found.only_first:,}, only the second"
        f" {found.only_second:,}, neither {found.neither:,}; the same letter on {found.same_letter:,}"
    )
    print(
        f"subjects: first better in {found.subjects_first}, second in {found.subjects_second}, equal in"
        f" {found.subjects_tied}; p = {found.p_subjects:.3g}"
    )
    print("p: exact, two-sided; of the questions McNemar's test, of the subjects the sign test")


def _short(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
