"""`ceval` from the shell: a model's answers to a set of questions, in a folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

KINDS = ("fp32", "bf16", "fp16", "nf4", "nf4-double", "fp4", "fp4-double", "int8")
OWN = "ceval-lab"


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "ceval",
        help="answer multiple-choice questions in Chinese, and say how many were right",
        description="Rows are written as they come; a run that was stopped goes on with --resume. Several"
        " processes: `accelerate launch --multi_gpu --num_processes 2 -m chinese_llama_lab ceval …`, on CPUs"
        " too (`--multi_gpu` is accelerate's word for several processes; with `--cpu` it starts one).",
    )
    parser.add_argument("model", help="`smollm2`, a folder, or a hub id")
    parser.add_argument(
        "--questions",
        default=OWN,
        metavar="SET",
        help=f"{OWN} (default: the course's own), or a folder or zip of C-Eval or CMMLU",
    )
    parser.add_argument("--split", default="val", choices=("val", "test"))
    parser.add_argument("--subjects", nargs="+", metavar="SUBJECT", help="keys or names (default: all)")
    parser.add_argument("--prompt", default="ceval-official", help="prompt style (default: ceval-official)")
    parser.add_argument("--shots", type=int, default=5, help="demonstrations (default: 5)")
    parser.add_argument("--method", default="logits", help="logits (default) or generation")
    parser.add_argument("--form", help="of the letters: bare, spaced or both (default: the prompt's own)")
    parser.add_argument("--cot", action="store_true", help="chain of thought; with --method generation")
    parser.add_argument("--names", default="chinese", help="of subjects: chinese (default) or key")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="by generation (default: 256)")
    parser.add_argument("--kind", default="fp32", choices=KINDS, help="dtype or quantization (default: fp32)")
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="of peft, or a run of pretrain")
    parser.add_argument("--device", help="cpu, cuda, … (default: a GPU where there is one)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--batch", type=int, help="at most so many questions at a time")
    parser.add_argument("--memory-gib", type=float, default=1.0, help="for a batch (default: 1)")
    parser.set_defaults(handler=_ceval)


def _ceval(options: argparse.Namespace) -> int:
    from chinese_llama_lab.ceval.questions import QuestionSet
    from chinese_llama_lab.ceval.score import score

    given = _questions(options)
    model, tokenizer = _model(options)
    run = score(
        model,
        tokenizer,
        QuestionSet(given.kind, tuple(given.questions)),
        prompt=options.prompt,
        shots=options.shots,
        method=options.method,
        form=options.form,
        cot=options.cot,
        names=options.names,
        max_new_tokens=options.max_new_tokens,
        out=options.out,
        resume=options.resume,
        batch=options.batch,
        memory_gib=options.memory_gib,
        name=options.questions if options.questions == OWN else Path(options.questions).name,
    )
    if int(os.environ.get("RANK", "0")) == 0:
        for sentence in given.shortfalls:
            print(f"incomplete: {sentence}")
        lost = sum(row["predicted"] is None for row in run.rows)
        right = "not known, no answers are published" if run.accuracy is None else f"{run.accuracy:.2%}"
        print(f"{len(run.rows):,} questions, by question right: {right}; not extracted: {lost:,}")
        print(f"written: {options.out}")
    return 0


def _questions(options: argparse.Namespace) -> Any:
    from dataclasses import replace

    from chinese_llama_lab.ceval.errors import SubjectError
    from chinese_llama_lab.ceval.readers import read_questions
    from chinese_llama_lab.ceval.subjects import find_subject
    from chinese_llama_lab.paths import data_dir

    folder = data_dir() / "ceval_lab" if options.questions == OWN else Path(options.questions).expanduser()
    found = read_questions(folder, splits=("dev", options.split))
    if not options.subjects:
        return found
    benchmark = found.questions[0].benchmark
    wanted = {find_subject(name, benchmark, where="--subjects").key for name in options.subjects}
    absent = sorted(wanted - set(found.subjects))
    if absent:
        raise SubjectError(
            f"there are no questions of {', '.join(absent)}",
            where=str(folder),
            remedy=f"the subjects there are {', '.join(found.subjects)}",
        )
    return replace(found, questions=tuple(q for q in found.questions if q.subject in wanted))


def _model(options: argparse.Namespace) -> tuple[Any, Any]:
    import torch

    from chinese_llama_lab.quantization.load import load_quantized

    device = options.device
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    # bitsandbytes' own kernel for processors is made for one token at a time; here hundreds are read at once.
    model, tokenizer = load_quantized(
        options.model, options.kind, device=device, fast=options.method == "generation"
    )
    if options.adapter is None:
        return model, tokenizer
    return _adapted(model, tokenizer, options.adapter)


def _adapted(model: Any, tokenizer: Any, folder: Path) -> tuple[Any, Any]:
    """The model with its adapter, and the adapter's tokenizer where it brings one."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    from chinese_llama_lab.ceval.errors import CevalError

    place = folder if (folder / "adapter_config.json").is_file() else folder / "adapter"
    if not (place / "adapter_config.json").is_file():
        raise CevalError(
            "there is no adapter", where=str(folder), remedy="give a folder with adapter_config.json"
        )
    if (place / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise CevalError(
            f"the adapter's tokenizer has {len(tokenizer)} tokens and the model {rows} rows",
            where=str(place),
            remedy="give the extended base that it was trained on",
        )
    return PeftModel.from_pretrained(model, str(place)).eval(), tokenizer
