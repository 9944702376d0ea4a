"""What the `ceval` commands ask for in common: a model, questions, and how they are put."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from chinese_llama_lab.ceval.errors import CevalError, QuestionError, SubjectError
from chinese_llama_lab.ceval.readers import HUB_DATA_SET, read_hub, read_questions

OWN = "ceval-lab"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--kind`, `--adapter`, `--device`."""
    from chinese_llama_lab.quantization.kinds import LOADABLE

    parser.add_argument("--model", required=True, help="`smollm2`, a folder, or a hub id")
    parser.add_argument(
        "--kind", default="fp32", choices=LOADABLE, help="dtype or quantization (default: fp32)"
    )
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="of peft, or a run of pretrain")
    parser.add_argument("--device", help="cpu, cuda, … (default: a GPU where there is one)")


def add_question_options(parser: argparse.ArgumentParser, *, split: bool = True) -> None:
    """`--questions`, `--split` where it is asked for, `--subjects`."""
    parser.add_argument(
        "--questions",
        default=OWN,
        metavar="SET",
        help=f"{OWN} (default: the course's own), {HUB_DATA_SET} (from the hub), a folder or a zip (C-Eval,"
        " CMMLU)",
    )
    if split:
        parser.add_argument("--split", default="val", choices=("val", "test"))
    parser.add_argument("--subjects", nargs="+", metavar="SUBJECT", help="keys or names (default: all)")


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """`--method`, `--form`, `--cot`, `--names`, `--max-new-tokens`, `--batch`, `--memory-gib`."""
    parser.add_argument("--method", default="logits", help="logits (default) or generation")
    parser.add_argument(
        "--form",
        help="of the letters: bare, spaced, both, or published: what the published code of the prompt looked"
        " at (default: the prompt's own)",
    )
    parser.add_argument("--cot", action="store_true", help="chain of thought; with --method generation")
    parser.add_argument("--names", default="chinese", help="of subjects: chinese (default) or key")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="by generation (default: 256)")
    parser.add_argument("--batch", type=int, help="at most so many questions at a time")
    parser.add_argument("--memory-gib", type=float, default=1.0, help="for a batch (default: 1)")


def prompt_options(options: argparse.Namespace) -> dict[str, Any]:
    """The values of `add_prompt_options`, as `score` takes them."""
    names = ("method", "form", "cot", "names", "max_new_tokens", "batch", "memory_gib")
    return {name: getattr(options, name) for name in names}


def set_name(options: argparse.Namespace) -> str:
    """What the questions are called in `run.json`: no path of this machine."""
    return options.questions if options.questions in (OWN, HUB_DATA_SET) else Path(options.questions).name


def questions_of(options: argparse.Namespace) -> Any:
    """The `QuestionSet` of the options, demonstrations included.

    Raises: QuestionError, SubjectError: see `read_questions`; no questions of the split, or of a subject that
        was named.
    """
    from chinese_llama_lab.ceval.subjects import find_subject
    from chinese_llama_lab.paths import data_dir

    splits = ("dev", options.split)
    folder = data_dir() / "ceval_lab" if options.questions == OWN else Path(options.questions).expanduser()
    from_hub = options.questions == HUB_DATA_SET and not folder.exists()
    where = HUB_DATA_SET if from_hub else str(folder)
    found = read_hub(splits=splits) if from_hub else read_questions(folder, splits=splits)
    if not found.count(options.split):
        raise QuestionError(
            f"there are no {options.split} questions",
            where=where,
            remedy="C-Eval has val and test, CMMLU test alone, the course's own set val alone: see --split",
        )
    if not options.subjects:
        return found
    benchmark = found.questions[0].benchmark
    wanted = {find_subject(name, benchmark, where="--subjects").key for name in options.subjects}
    absent = sorted(wanted - set(found.subjects))
    if absent:
        raise SubjectError(
            f"there are no questions of {', '.join(absent)}",
            where=where,
            remedy=f"the subjects there are {', '.join(found.subjects)}",
        )
    return replace(found, questions=tuple(q for q in found.questions if q.subject in wanted))


def device_of(given: str | None) -> str:
    """Where this process puts its model.

    Args:
        given: `--device`. Of several processes, as `accelerate launch` starts them, each takes its own GPU
            for `cuda`: left as it is, that word means the first one to all of them.
    """
    from chinese_llama_lab.sources.models import own_device

    if given is None:
        return own_device()
    own = os.environ.get("LOCAL_RANK")
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # Not `own_device`: without a GPU `cuda` stays an error, and no run on the CPU.
    return f"cuda:{own}" if given == "cuda" and shared and own is not None else given


def model_of(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model and its tokenizer, with the adapter where one is named.

    Raises: LabError: see `load_quantized`. CevalError: no adapter, or one of a longer vocabulary.
    """
    from chinese_llama_lab.quantization.load import load_quantized

    device = device_of(options.device)
    # bitsandbytes' own kernel for processors is made for one token at a time; here hundreds are read at once.
    fast = getattr(options, "method", None) == "generation"
    model, tokenizer = load_quantized(options.model, options.kind, device=device, fast=fast)
    if options.adapter is None:
        return model, tokenizer
    return _adapted(model, tokenizer, options.adapter)


def _adapted(model: Any, tokenizer: Any, folder: Path) -> tuple[Any, Any]:
    """The model with its adapter, and the adapter's tokenizer where it brings one."""
    from peft import PeftModel
    from transformers import AutoTokenizer

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
