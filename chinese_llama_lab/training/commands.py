"""`pretrain`, `finetune`, `merge-adapters` and `generate` from the shell; `shards` has its own file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from chinese_llama_lab.errors import INTERRUPTED, LabError
from chinese_llama_lab.toml import parse_settings
from chinese_llama_lab.training import shard_commands


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the five commands to the command line."""
    shard_commands.add_commands(subparsers)
    training = subparsers.add_parser(
        "pretrain",
        help="continued pre-training with LoRA",
        description="Several processes: `accelerate launch --multi_gpu --num_processes 2 -m "
        "chinese_llama_lab pretrain …` (DDP), `accelerate launch --use_fsdp --fsdp_version 2 …` "
        "(sharded), or torchrun. On CPUs too: `--multi_gpu` is accelerate's word for several processes, "
        "and with `--cpu` it starts only one.",
    )
    _add_run(training, "smollm2-zh")
    training.add_argument(
        "--text", action="append", default=[], type=Path, metavar="FILE", help="a document a line"
    )
    training.add_argument(
        "--corpus", action="append", default=[], metavar="NAME", help="training part of a course text"
    )
    training.add_argument(
        "--shards", type=Path, metavar="FOLDER", help="what `shards` wrote, in place of text"
    )
    training.add_argument(
        "--replay-text", action="append", default=[], type=Path, metavar="FILE", help="English"
    )
    training.add_argument("--replay-corpus", action="append", default=[], metavar="NAME")
    training.set_defaults(handler=_pretrain)

    tuning = subparsers.add_parser("finetune", help="instruction tuning with LoRA")
    _add_run(tuning, "smollm2-zh-instruct")
    tuning.add_argument(
        "--instructions", action="append", default=[], type=Path, metavar="FILE", help="JSON or JSONL"
    )
    tuning.add_argument("--alpaca-zh", action="store_true", help="the fetched Chinese Alpaca rows")
    tuning.set_defaults(handler=_finetune)

    merging = subparsers.add_parser("merge-adapters", help="merge LoRA adapters into a base, in order")
    merging.add_argument("base", help="`smollm2`, or the folder of a model")
    merging.add_argument("adapters", nargs="+", type=Path, help="adapter folders, or folders of runs")
    merging.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="must not exist")
    merging.add_argument("--dtype", default="bfloat16", help="bfloat16 (default), float16 or float32")
    merging.add_argument("--untie", action="store_true", help="untie a pair that was trained apart")
    merging.set_defaults(handler=_merge)

    talking = subparsers.add_parser("generate", help="ask a model; the answer is streamed")
    talking.add_argument("model", help="`smollm2`, a folder, or a hub id")
    talking.add_argument(
        "prompt", nargs="*", help="one turn each; without any, turns are read from the keyboard"
    )
    talking.add_argument("--adapter", type=Path, metavar="FOLDER", help="an adapter that is not merged")
    talking.add_argument(
        "--template", default="chat", help="v1, v2, alpaca, chat (default), or none: go on with a text"
    )
    talking.add_argument("--system", help="system prompt (v2 and chat)")
    talking.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    talking.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default): always the likeliest token"
    )
    talking.add_argument("--seed", type=int, default=0)
    talking.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    talking.set_defaults(handler=_generate)


def _add_run(parser: argparse.ArgumentParser, recipe: str) -> None:
    parser.add_argument("--model", help="`smollm2`, a folder, or a hub id (default: the recipe's base)")
    parser.add_argument(
        "--recipe", default=recipe, help=f"a name, NAME:STAGE or a .toml file (default: {recipe})"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the recipe, as in TOML",
    )
    parser.add_argument("--held-out-zh", action="append", default=[], type=Path, metavar="FILE")
    parser.add_argument("--held-out-en", action="append", default=[], type=Path, metavar="FILE")
    parser.add_argument("--dtype", help="of the frozen weights (default: as the recipe's precision)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the run")
    parser.add_argument("--start-from", type=Path, metavar="FOLDER", help="an adapter or run to go on from")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")


def _recipe(options: argparse.Namespace) -> Any:
    from chinese_llama_lab.training.errors import TrainingError
    from chinese_llama_lab.training.recipe import load_recipe

    return load_recipe(options.recipe).replace(**parse_settings(options.set, TrainingError))


def _base(options: argparse.Namespace, recipe: Any) -> tuple[Any, Any]:
    """Model and tokenizer; a recipe that this machine cannot run is refused before anything is loaded."""
    from chinese_llama_lab.sources.models import load_base, own_device
    from chinese_llama_lab.training.footprint import check_machine
    from chinese_llama_lab.training.precision import weights_dtype

    check_machine(recipe)
    dtype = options.dtype or weights_dtype(recipe)
    name = options.model or recipe.base
    if recipe.quantization == "none":
        return load_base(name, dtype=dtype)
    from chinese_llama_lab.quantization.load import load_quantized

    # The Trainer moves a model to its GPU, but not a quantized one.
    device = own_device()
    return load_quantized(name, recipe.quantization, compute_dtype=dtype, device=device, fast=False)


def _held_out(options: argparse.Namespace) -> dict[str, list[str]]:
    from chinese_llama_lab.sources.textfiles import read_all

    return {"zh": list(read_all(options.held_out_zh)), "en": list(read_all(options.held_out_en))}


def _texts(files: list[Path], names: list[str]) -> list[Any]:
    from chinese_llama_lab.sources.corpora import load_corpus
    from chinese_llama_lab.sources.textfiles import read_all

    # A course text keeps its full-width punctuation: on cleaned text a model learns `,` for `，`.
    parts = (load_corpus(name).chinese_punctuation().split("train") for name in names)
    return [*read_all(files), *(document for part in parts for document in part)]


def _say(report: Any, recipe: Any) -> int:
    from chinese_llama_lab import results

    if int(os.environ.get("RANK", "0")) == 0:
        name = f"{recipe.task}_{report.out.resolve().name}"
        trained = {"trained": repr(report.trained), "data": report.data}
        results.save(name, report.table(), seed=recipe.seed, model=recipe.base, recipe=recipe.name, **trained)
        print(report)
        print(f"written: {report.adapter}")
        print(f"its log as a table: {results.results_dir() / name}.csv")
    return 0


def _stopped(error: Any) -> int:
    if int(os.environ.get("RANK", "0")) == 0:
        print(str(error), file=sys.stderr)
    return INTERRUPTED


def _pretrain(options: argparse.Namespace) -> int:
    from chinese_llama_lab.training.errors import TrainingStopped
    from chinese_llama_lab.training.pretrain import pretrain

    texts = [*options.text, *options.corpus, *options.replay_text, *options.replay_corpus]
    if options.shards is not None and texts:
        raise LabError(
            f"--shards was given, and {texts[0]} beside it",
            remedy="leave out --text, --corpus and replay: `shards` packs them, replay included",
        )
    if options.shards is None and not options.text and not options.corpus:
        raise LabError(
            "there is no text to learn from", remedy="give --text FILE, --corpus NAME or --shards FOLDER"
        )
    recipe = _recipe(options)
    model, tokenizer = _base(options, recipe)
    if options.shards is None:
        corpus: Any = _texts(options.text, options.corpus)
    else:
        from chinese_llama_lab.training.shard_reading import load_shards

        corpus = load_shards(options.shards, tokenizer)
    try:
        report = pretrain(
            model,
            tokenizer,
            corpus,
            recipe,
            options.out,
            replay=_texts(options.replay_text, options.replay_corpus),
            held_out=_held_out(options),
            start_from=options.start_from,
            resume=options.resume,
        )
    except TrainingStopped as error:
        return _stopped(error)
    return _say(report, recipe)


def _finetune(options: argparse.Namespace) -> int:
    from chinese_llama_lab.sources.corpora import instruction_rows
    from chinese_llama_lab.training.errors import TrainingStopped
    from chinese_llama_lab.training.finetune import finetune
    from chinese_llama_lab.training.instructions import read_instructions

    if not options.instructions and not options.alpaca_zh:
        raise LabError("there are no instructions", remedy="give --instructions FILE or --alpaca-zh")
    recipe = _recipe(options)
    rows: list[Any] = [row for path in options.instructions for row in read_instructions(path)]
    if options.alpaca_zh:
        rows += instruction_rows()
    model, tokenizer = _base(options, recipe)
    try:
        report = finetune(
            model,
            tokenizer,
            rows,
            recipe,
            options.out,
            held_out=_held_out(options),
            start_from=options.start_from,
            resume=options.resume,
        )
    except TrainingStopped as error:
        return _stopped(error)
    return _say(report, recipe)


def _merge(options: argparse.Namespace) -> int:
    from chinese_llama_lab.adapters import merge_adapters
    from chinese_llama_lab.sources.models import BUNDLED, converted_model

    base = converted_model(options.base) if options.base in BUNDLED else Path(options.base)
    report = merge_adapters(base, options.adapters, options.out, dtype=options.dtype, untie=options.untie)
    for name, changed in zip(options.adapters, report.changed, strict=True):
        print(f"{name}: {changed} tensors changed")
    for name in report.unchanged:
        print(f"{name} changes nothing: its update is zero everywhere")
    print(
        f"{report.rows:,} rows, {'tied' if report.tied else 'untied'}, {report.dtype}; written: {report.out}"
    )
    return 0


def _generate(options: argparse.Namespace) -> int:
    from chinese_llama_lab.sources.models import load_base
    from chinese_llama_lab.training.generate import stream_answer
    from chinese_llama_lab.training.templates import check_template

    model: Any
    model, tokenizer = load_base(options.model, dtype=options.dtype)
    if options.adapter is not None:
        from peft import PeftModel

        inner = options.adapter / "adapter"
        model = PeftModel.from_pretrained(model, inner if inner.is_dir() else options.adapter)
    template = None if options.template == "none" else options.template
    if template is not None:
        check_template(template, tokenizer)
    history: list[tuple[str, str]] = []
    for asked in options.prompt or _keyboard():
        said = ""
        for piece in stream_answer(
            model,
            tokenizer,
            asked,
            template=template,
            history=history if template is not None else (),
            system=options.system,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
        ):
            said += piece
            print(piece, end="", flush=True)
        print()
        history.append((asked, said))
    return 0


def _keyboard() -> Any:
    """Turns, until an empty line or the end of the input."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line:
            return
        yield line
