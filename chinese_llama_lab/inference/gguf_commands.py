"""`export-gguf` from the shell: a model folder as one file for llama.cpp."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "export-gguf",
        help="write a model for llama.cpp",
        description="Writes weights and tokenizer of a LLaMA model into one GGUF file. Adapters are merged "
        "first (`merge-adapters`). Norms stay float32; q8_0 takes 8.5 bits a weight.",
    )
    parser.add_argument("model", metavar="FOLDER", help="a merged or base model's folder, or `smollm2`")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.gguf", help="must not exist")
    parser.add_argument("--kind", default="f16", help="of the matrices: f32, f16 (default), bf16 or q8_0")
    parser.set_defaults(handler=_export)


def _export(given: argparse.Namespace) -> int:
    from chinese_llama_lab.inference.gguf import export_gguf
    from chinese_llama_lab.sources.models import BUNDLED, converted_model

    folder = converted_model(given.model) if given.model in BUNDLED else Path(given.model)
    report = export_gguf(folder, given.out, kind=given.kind)
    print(report)
    print(f'run it: llama-completion -m "{report.out}" -p "中国的首都是" -n 64 --temp 0 -no-cnv')
    print(f"or in Python, with the extra `gguf`: llama_cpp.Llama({str(report.out)!r})")
    return 0
