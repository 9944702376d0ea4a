"""Scoring C-Eval: this package beside lm-evaluation-harness, in the same run.

    python benchmarks/ceval.py --lm-eval-python FOLDER/bin/python [--dtype float32] [--save]

Both answer the same questions with the same model, dtype and prompt (`lm-eval`: the harness's own for C-Eval,
first dev questions as shots, ` A` to ` D` scored), each in a process of its own that loads the model first;
the clock runs from questions to letters, building prompts and tokenizing included, once one question has been
answered (what libraries load only then is nobody's speed). The harness reads each subject as a local task,
from the same rows; its batch size is the best of some on the first questions. Compared are the prompts by
their hashes, letters question by question, and logits as distances from the best letter's (the harness
reports logarithms of probabilities). Where letters differ, both margins are printed, and whether rounding
explains it: no lead is larger than twice the largest difference on questions with one letter. Figures of
interest are ratios: other work on the machine slows both.

lm-evaluation-harness is no dependency. It goes into an environment of its own:

    python -m venv build/lm-eval
    build/lm-eval/bin/python -m pip install -c constraints.txt "lm-eval[hf]" torch transformers datasets

Without `--lm-eval-python` this Python's own `lm_eval` is used, if there is one.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LETTERS = "ABCD"
BATCHES = (1, 2, 4, 8)
HEADER = "以下是中国关于{}的单项选择题，请选出其中的正确答案。\n\n"


def harness(folder: Path, batch: int, limit: int | None) -> dict[str, Any]:
    """The questions of `task.json` through lm-evaluation-harness; imports nothing of this package."""
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    given = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    model, tokenizer = _load(given)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)

    def evaluated(left: int) -> dict[str, Any]:
        tasks = []
        for subject in given["subjects"]:
            asked = subject["val"][:left]
            left -= len(asked)
            if not asked:
                break
            tasks.append(task(subject, asked))
        found: dict[str, Any] = simple_evaluate(model=lm, tasks=tasks, log_samples=True, bootstrap_iters=0)
        return found

    def task(subject: dict[str, Any], asked: list[dict[str, str]]) -> Any:
        # From a list, not through pandas, for which an option `None` would be no text.
        parts = {
            "dev": datasets.Dataset.from_list(subject["dev"]),
            "val": datasets.Dataset.from_list(asked),
        }
        return ConfigurableTask(
            config={
                "task": subject["key"],
                "custom_dataset": lambda parts=parts, **_: parts,
                "validation_split": "val",
                "fewshot_split": "dev",
                "fewshot_config": {"sampler": "first_n"},
                "num_fewshot": given["shots"],
                "output_type": "multiple_choice",
                "description": HEADER.format(subject["chinese"]),
                "doc_to_text": "{{question.strip()}}\nA. {{A}}\nB. {{B}}\nC. {{C}}\nD. {{D}}\n答案：",
                "doc_to_choice": list(LETTERS),
                "doc_to_target": "{{['A', 'B', 'C', 'D'].index(answer)}}",
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            }
        )

    evaluated(1)
    started = time.perf_counter()
    found = evaluated(limit or sum(len(subject["val"]) for subject in given["subjects"]))
    seconds = time.perf_counter() - started
    rows = []
    for key, samples in found["samples"].items():
        for sample in sorted(samples, key=lambda one: one["doc_id"]):
            scores = [float(answer[0]) for answer in sample["filtered_resps"]]
            context = sample["arguments"]
            context = context["gen_args_0"]["arg_0"] if isinstance(context, dict) else context[0][0]
            rows.append(
                {
                    "key": [key, sample["doc"]["id"]],
                    "predicted": LETTERS[scores.index(max(scores))],
                    "scores": scores,
                    "right": bool(sample["acc"]),
                    "prompt_sha256": hashlib.sha256(context.encode()).hexdigest(),
                }
            )
    return {"seconds": seconds, "rows": rows}


def package(folder: Path, batch: int, limit: int | None) -> dict[str, Any]:
    """The same through `ceval.score`; batches are its own affair."""
    from chinese_llama_lab.ceval.questions import Question
    from chinese_llama_lab.ceval.score import score

    given = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    model, tokenizer = _load(given)

    def answered(limit: int | None) -> Any:
        questions = [
            Question(
                subject["key"],
                split,
                row["id"],
                row["question"],
                (row["A"], row["B"], row["C"], row["D"]),
                row["answer"],
                benchmark=given["benchmark"],
            )
            for subject in given["subjects"]
            for split in ("dev", "val")
            for row in subject[split]
        ]
        if limit:
            asked = [question for question in questions if question.split != "dev"][:limit]
            questions = [question for question in questions if question.split == "dev"] + asked
        return score(
            model,
            tokenizer,
            questions,
            prompt="lm-eval",
            shots=given["shots"],
            out=folder / f"run-{time.time_ns()}",
            progress=False,
        )

    answered(1)
    started = time.perf_counter()
    run = answered(limit)
    seconds = time.perf_counter() - started
    rows = [
        {
            "key": [row["subject"], row["id"]],
            "predicted": row["predicted"],
            "scores": list(row["logits"].values()),
            "right": row["predicted"] == row["answer"],
            "prompt_sha256": row["prompt_sha256"],
        }
        for row in run.rows
    ]
    return {"seconds": seconds, "rows": rows}


def _load(given: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, device = given["model"], given["device"]
    model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, given["dtype"]))
    return model.to(device).eval(), AutoTokenizer.from_pretrained(place)


def child(python: str, way: str, folder: Path, batch: int = 1, limit: int | None = None) -> dict[str, Any]:
    """Run one side in a process of its own."""
    out = folder / "answer.json"
    out.unlink(missing_ok=True)
    command = [python, __file__, "--child", way, str(folder), str(batch), str(limit or 0)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LOGLEVEL": "ERROR", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False)
    if done.returncode or not out.is_file():
        raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    found["questions_per_second"] = len(found["rows"]) / found["seconds"]
    return found


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Agreement of letters, prompts and differences of logits; every other letter is printed."""
    other = {tuple(row["key"]): row for row in theirs}
    if set(other) != {tuple(row["key"]) for row in ours}:
        raise SystemExit("the two sides answered different questions")
    prompts = 0
    largest, others = 0.0, []
    for row in ours:
        peer = other[tuple(row["key"])]
        prompts += row["prompt_sha256"] == peer["prompt_sha256"]
        a, b = ([value - max(side["scores"]) for value in side["scores"]] for side in (row, peer))
        if row["predicted"] != peer["predicted"]:
            others.append((row, peer))
        else:
            largest = max(largest, max(abs(x - y) for x, y in zip(a, b, strict=True)))
    unexplained = 0
    for row, peer in others:
        ours_by, theirs_by = _margin(row), _margin(peer)
        rounding = max(ours_by, theirs_by) <= 2 * largest
        unexplained += not rounding
        print(
            f"other letter: {'/'.join(row['key'])}: {row['predicted']} (leads by {ours_by:.4f}) and"
            f" {peer['predicted']} (by {theirs_by:.4f}): {'rounding' if rounding else 'NOT EXPLAINED'}"
        )
    return {
        "same_letter": 1 - len(others) / len(ours),
        "other_letter_unexplained": unexplained,
        "same_prompt": prompts / len(ours),
        "largest_logit_difference": largest,
        "accuracy": sum(row["right"] for row in ours) / len(ours),
        "accuracy_lm_eval": sum(row["right"] for row in theirs) / len(ours),
    }


def _margin(row: dict[str, Any]) -> float:
    first, second = sorted(row["scores"], reverse=True)[:2]
    return float(first - second)


def write_task(folder: Path, options: argparse.Namespace) -> int:
    """The questions as both sides read them; returns how many."""
    from chinese_llama_lab.ceval.readers import read_questions
    from chinese_llama_lab.paths import data_dir
    from chinese_llama_lab.sources.models import BUNDLED, converted_model

    found = read_questions(options.questions or data_dir() / "ceval_lab", splits=("dev", "val"))
    subjects = []
    for key in found.subjects[: options.subjects]:
        parts = {
            split: [
                {"id": q.id, "question": q.text, **q.option, "answer": q.answer}
                for q in found.select(split=split, subject=key)
            ]
            for split in ("dev", "val")
        }
        about = found.select(subject=key)[0].about()
        subjects.append({"key": key, "chinese": about.chinese, **parts})
    given = {
        "model": str(converted_model(options.model) if options.model in BUNDLED else options.model),
        "dtype": options.dtype,
        "device": options.device,
        "shots": options.shots,
        "benchmark": found.questions[0].benchmark,
        "subjects": subjects,
    }
    (folder / "task.json").write_text(json.dumps(given, ensure_ascii=False), encoding="utf-8")
    return sum(len(subject["val"]) for subject in subjects)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lm-eval-python", default=sys.executable, help="a Python that has lm-eval")
    parser.add_argument("--model", default="smollm2", help="smollm2 (default), or a folder")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--questions", type=Path, help="folder or zip (default: the course's own)")
    parser.add_argument("--subjects", type=int, help="only the first so many")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=list(BATCHES), help="of lm-eval, to choose from"
    )
    parser.add_argument("--tune", type=int, default=24, help="questions to choose the batch size on")
    parser.add_argument(
        "--repeats", type=int, default=1, help="both sides in turn; the fastest of each counts"
    )
    parser.add_argument("--save", action="store_true", help="write results/bench_ceval.csv")
    options = parser.parse_args(arguments)
    python = options.lm_eval_python
    here = importlib.util.find_spec("lm_eval") is not None if python == sys.executable else None
    if here is False or (
        here is None and subprocess.run([python, "-c", "import lm_eval"], check=False).returncode
    ):
        raise SystemExit(f"{python} has no lm_eval. How to install it:\n{__doc__.split('own:')[1]}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = write_task(folder, options)
        tuned = {}
        for batch in options.batches:
            found = child(python, "lm-eval", folder, batch, min(options.tune, count))
            tuned[batch] = found["questions_per_second"]
            print(f"lm-eval, batch {batch}: {tuned[batch]:.3f} questions a second", flush=True)
        best = max(tuned, key=lambda batch: tuned[batch])
        ours, theirs = [], []
        for _ in range(options.repeats):
            theirs.append(child(python, "lm-eval", folder, best))
            ours.append(child(sys.executable, "package", folder))
            for side, runs in (("lm-eval", theirs), ("package", ours)):
                print(f"{side}: {runs[-1]['questions_per_second']:.3f} questions a second", flush=True)
        fast, slow = (max(runs, key=lambda run: run["questions_per_second"]) for runs in (ours, theirs))
        row = {
            "model": options.model,
            "dtype": options.dtype,
            "device": options.device,
            "questions": count,
            "shots": options.shots,
            "package_per_second": round(fast["questions_per_second"], 4),
            "lm_eval_per_second": round(slow["questions_per_second"], 4),
            "lm_eval_batch": best,
            "times_faster": round(fast["questions_per_second"] / slow["questions_per_second"], 2),
            "package_peak_mib": round(fast["peak_mib"]),
            "lm_eval_peak_mib": round(slow["peak_mib"]),
            "lm_eval_version": slow["version"],
            **{key: float(f"{value:.6g}") for key, value in compare(fast["rows"], slow["rows"]).items()},
        }
    print(json.dumps(row, indent=1))
    if options.save:
        from chinese_llama_lab import results
        from chinese_llama_lab.paths import committed_results_dir

        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        kept = [dict(old) for old in _kept(options)]
        results.save("bench_ceval", [*kept, row], model=options.model)
    return 0


def _kept(options: argparse.Namespace) -> list[dict[str, str]]:
    """Rows of other dtypes or devices that were measured before."""
    from chinese_llama_lab import results
    from chinese_llama_lab.errors import ResultError

    try:
        table = results.load("bench_ceval")
    except (ResultError, OSError):
        return []
    mine = (options.model, options.dtype, options.device)
    return [row for row in table.rows if (row["model"], row["dtype"], row["device"]) != mine]


def _child(way: str, folder: str, batch: str, limit: str) -> int:
    from importlib.metadata import version

    side = harness if way == "lm-eval" else package
    found = side(Path(folder), int(batch), int(limit) or None)
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["version"] = version("lm-eval") if way == "lm-eval" else ""
    (Path(folder) / "answer.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(_child(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main())
