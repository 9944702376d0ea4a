"""`ceval` from the shell: a model's answers to a set of questions, in a folder, and what they score."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from chinese_llama_lab.ceval.options import (
    add_model_options,
    add_prompt_options,
    add_question_options,
    model_of,
    prompt_options,
    questions_of,
    set_name,
)
from chinese_llama_lab.errors import INTERRUPTED

SUBMISSION = "submission.json"


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `ceval`, `ceval-report` and `ceval-probe` to the command line."""
    from chinese_llama_lab.ceval import probe_commands, report_commands

    parser = subparsers.add_parser(
        "ceval",
        help="answer multiple-choice questions in Chinese, and say how many were right",
        description="Rows are written as they come; a run that was stopped goes on with --resume. Several"
        " processes: `accelerate launch --multi_gpu --num_processes 2 -m chinese_llama_lab ceval …`, on CPUs"
        " too (`--multi_gpu` is accelerate's word for several processes; with `--cpu` it starts one).",
    )
    add_model_options(parser)
    add_question_options(parser)
    parser.add_argument("--prompt", default="ceval-official", help="prompt style (default: ceval-official)")
    parser.add_argument("--shots", type=int, default=5, help="demonstrations (default: 5)")
    add_prompt_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.set_defaults(handler=_ceval)
    report_commands.add_commands(subparsers)
    probe_commands.add_commands(subparsers)


def _ceval(options: argparse.Namespace) -> int:
    from chinese_llama_lab.ceval.score import score

    given = questions_of(options)
    speaks = int(os.environ.get("RANK", "0")) == 0
    if speaks:
        for sentence in given.shortfalls:
            print(f"incomplete: {sentence}")
    model, tokenizer = model_of(options)
    try:
        run = score(
            model,
            tokenizer,
            given,
            prompt=options.prompt,
            shots=options.shots,
            out=options.out,
            resume=options.resume,
            name=set_name(options),
            model_name=options.model,
            **prompt_options(options),
        )
    except KeyboardInterrupt:
        print(f"\nstopped; the same command with --resume goes on in {options.out}", file=sys.stderr)
        return INTERRUPTED
    if speaks:
        _tell(run, given, options)
    return 0


def _tell(run: Any, given: Any, options: argparse.Namespace) -> None:
    from chinese_llama_lab.ceval.errors import CevalError
    from chinese_llama_lab.ceval.report import make_report
    from chinese_llama_lab.ceval.shown import show_report, show_settings
    from chinese_llama_lab.ceval.submission import make_submission

    out = options.out
    print(f"{show_settings(run.settings)}\n")
    written = [out / "run.json", out / "rows.jsonl"]
    if any(row["answer"] is None for row in run.rows):
        lost = sum(row["predicted"] is None for row in run.rows)
        print(f"{len(run.rows):,} questions answered, {lost:,} not extracted; no right answers are published")
        try:
            submission = make_submission(run.rows, given.questions)
            submission.write(out / SUBMISSION)
            written.append(out / SUBMISSION)
            print(submission)
        except CevalError as error:
            print(f"no {SUBMISSION}: {error}\n  or: {_way_to_submission(options, given, lost)}")
    else:
        report = make_report(run.rows, run.settings)
        written += report.write(out)
        print(show_report(report))
    print(f"written: {', '.join(map(str, written))}")


def _way_to_submission(options: argparse.Namespace, given: Any, lost: int) -> str:
    """The command that writes the submission of this run after all, for a shell to take as it stands."""
    from chinese_llama_lab.ceval.submission import wrong_counts

    command = ["chinese-llama-lab", "ceval-report", str(options.out)]
    command += ["--submission", str(options.out / SUBMISSION), "--questions", options.questions]
    if options.subjects:
        command += ["--subjects", *options.subjects]
    if wrong_counts(given.select(split="test")):
        command.append("--partial")
    if lost:  # an empty answer is never right by chance
        command += ["--unextracted", ""]
    return shlex.join(command)
