"""`quantize` from the shell: a model in 4 or 8 bits as a folder, and what that saves and costs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "quantize",
        help="write a model with its linear layers in 4 or 8 bits",
        description="Through bitsandbytes. Embedding, norms and head stay in the compute dtype. Of the"
        " folder, `generate` and `estimate` see by themselves what it is; `speed`, `ceval` and `ceval-probe`"
        " load it with its kind as --kind; `pretrain` and `finetune` with its kind as the recipe's"
        " quantization. `export-gguf`, `merge-adapters` and `quantize` refuse it, and `extend` cannot"
        " take it: give them the model that it was made from.",
    )
    parser.add_argument("model", help="`smollm2`, a folder, or a hub id")
    parser.add_argument("--kind", default="nf4", help="nf4 (default), nf4-double, fp4, fp4-double, int8")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="must not exist")
    parser.add_argument(
        "--compute-dtype", help="bfloat16, float16 or float32 (default: what is fast on this machine)"
    )
    parser.add_argument("--quantize-head", action="store_true", default=None, help="the head too")
    parser.add_argument(
        "--skip", action="append", metavar="NAME", help="a linear layer to leave out, such as down_proj"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--compare", action="store_true", help="what it does to weights, by kind of layer")
    parser.set_defaults(handler=_quantize)


def _quantize(options: argparse.Namespace) -> int:
    from chinese_llama_lab.quantization.described import described
    from chinese_llama_lab.quantization.errors import QuantizationError
    from chinese_llama_lab.quantization.load import load_quantized, quantization_config, save_quantized
    from chinese_llama_lab.quantization.saved import saved_settings

    quantization_config(options.kind, options.compute_dtype)  # before anything is loaded
    if saved_settings(options.model):
        raise QuantizationError(
            "the model is quantized already", where=options.model, remedy="give the model it was made from"
        )
    if options.out.exists():
        raise QuantizationError(
            "there is something of that name", where=str(options.out), remedy="give another folder"
        )
    base = load_quantized(
        options.model,
        options.kind,
        compute_dtype=options.compute_dtype,
        device=options.device,
        quantize_head=options.quantize_head,
        skip=options.skip,
    )
    source = _source(options.model)
    before, after = described(_unquantized(source)), described(base.model)
    print(f"before, as stored:\n{before}\n\nafter:\n{after}\n")
    print(
        f"{before.bytes / 1e6:,.1f} MB before, {after.bytes / 1e6:,.1f} MB after (MB: 10^6 bytes);"
        f" {after.bits_per_weight:.3f} bits a weight in the quantized layers, scales included"
    )
    if options.compare:
        _compare(source, options.kind, after.quantized)
    print(f"written: {save_quantized(base, options.out)}")
    return 0


def _source(name: str) -> str:
    from chinese_llama_lab.sources.models import BUNDLED, converted_model

    if name in BUNDLED:
        return str(converted_model(name))
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


def _unquantized(source: str) -> Any:
    """The model without its weights, in the dtype that they are stored in."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=stored)


def _compare(source: str, kind: str, quantized: list[str]) -> None:
    from chinese_llama_lab.quantization.layer_errors import errors_by_layer_kind
    from chinese_llama_lab.sources.models import load_base

    taken = {name.split(".")[-2] for name in quantized}
    given: Any = source if Path(source).is_dir() else load_base(source).model
    print(f"\n{'layer':12}{'tensors':>8}{'error':>9}{'worst':>9}  (RMS of the error / RMS of the weights)")
    for row in errors_by_layer_kind(given, [kind]):
        if row["layer"] in taken:
            print(f"{row['layer']:12}{row['tensors']:>8}{row['rms']:>9.4f}{row['worst_rms']:>9.4f}")
    print()
