"""`estimate` from the shell: what a model needs, what fits where, and how good the estimate is."""

from __future__ import annotations

import argparse
from typing import Any

from chinese_llama_lab.toml import parse_settings

# Options of `Settings` that have a flag of their own; all others go through --set.
_FLAGS: tuple[tuple[str, type, str], ...] = (
    ("quantization", str, "none, int8, nf4, nf4-double, fp4 or fp4-double (default: what the config says)"),
    ("dtype", str, "of what is not quantized: bf16 (default), fp16 or fp32"),
    ("vocabulary", int, "rows after an extension"),
    ("rank", int, "of LoRA (default: 8)"),
    ("embeddings", str, "frozen (default), new-rows or published"),
    ("new_tokens", int, "rows that `new-rows` trains"),
    ("block", int, "tokens a sequence (default: 512)"),
    ("batch", int, "sequences at once (default: 1)"),
)


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "estimate",
        help="memory that a model needs, by component",
        description="Counts from the config alone: nothing is downloaded. GB are 10^9 bytes, GiB 2^30; a GPU "
        'sold as "24 GB" has 24 GiB.',
    )
    parser.add_argument("model", nargs="?", help="a built-in name, a hub id, a folder or a config.json")
    parser.add_argument("--task", help="inference (default), lora, qlora or full; --fits: all, or this one")
    for name, kind, text in _FLAGS:
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, help=text)
    parser.add_argument("--gradient-checkpointing", action="store_true", default=None)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any other option, as in TOML"
    )
    parser.add_argument("--gpu", action="append", default=[], metavar="GB", help="does it fit, and how long?")
    parser.add_argument("--fits", action="store_true", help="usual setups on 6 to 80 GB (or each --gpu)")
    parser.add_argument("--knobs", action="store_true", help="which single change saves most")
    parser.add_argument("--residuals", action="store_true", help="the estimate against published figures")
    parser.add_argument("--article", action="store_true", help="the article's figures, each with a verdict")
    parser.add_argument("--models", action="store_true", help="the built-in shapes")
    parser.set_defaults(handler=_estimate)


def _options(given: argparse.Namespace) -> dict[str, Any]:
    from chinese_llama_lab.inference.errors import EstimateError

    names = [name for name, _, _ in _FLAGS] + ["gradient_checkpointing"]
    options = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    return options | parse_settings(given.set, EstimateError)


def _estimate(given: argparse.Namespace) -> int:
    from chinese_llama_lab.inference.errors import EstimateError
    from chinese_llama_lab.inference.estimate import estimate
    from chinese_llama_lab.inference.fits import ASKED, fits, gpu_bytes, knobs, longest_block, verdict
    from chinese_llama_lab.inference.residuals import residuals
    from chinese_llama_lab.inference.shapes import SHAPES
    from chinese_llama_lab.inference.verdicts import vram_verdicts

    options = _options(given)
    if given.residuals:
        table = residuals()
        print(table)
        for row in table.far:
            print(f"\n{row.figure.what}: {row.figure.explanation}.")
    if given.article:
        print("\n".join(map(str, vram_verdicts())))
    if given.models:
        for shape in SHAPES.values():
            print(f"{shape.name:20}{shape.parameters:>16,} parameters, {shape.vocabulary:,} pieces")
    if given.model is None:
        if given.residuals or given.article or given.models:
            return 0
        raise EstimateError(
            "no model was named",
            where="model",
            remedy="`estimate llama-2-7b`, or `estimate --models` for all",
        )
    for gpu in given.gpu:
        gpu_bytes(gpu)  # before anything is printed
    if given.fits:
        if given.knobs:
            raise EstimateError(
                "--knobs changes one estimate, and --fits prints a table of several",
                where="--fits --knobs",
                remedy="ask for one at a time; --knobs goes with --task and its options",
            )
        print(fits(given.model, given.gpu or ASKED, task=given.task, **options))
        return 0
    task = given.task or "inference"
    memory = estimate(given.model, task, **options)
    print(memory)
    for gpu in given.gpu:
        longest = longest_block(given.model, gpu, task, **options)
        said = {"fits": "fits", "tight": "fits, but only just", "no": "does not fit"}[verdict(memory, gpu)]
        print(f"{gpu_bytes(gpu) / 2**30:g} GiB: {said}; sequences up to {longest:,} tokens")
    if given.knobs:
        for knob in knobs(given.model, task, **options):
            print(knob)
    return 0
