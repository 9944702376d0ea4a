"""`speed` from the shell: tokens and characters per second of a model, beside what the memory allows."""

from __future__ import annotations

import argparse
from pathlib import Path

from chinese_llama_lab.quantization.kinds import LOADABLE


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "speed",
        help="tokens and characters per second of a model",
        description="Prefill and decoding apart: the median over the repeats, the slowest and the fastest; "
        "the limit is what the measured memory bandwidth allows. Rates are of all sequences together.",
    )
    parser.add_argument("model", help="smollm2, a folder or a hub id")
    parser.add_argument("--kind", default="bf16", choices=LOADABLE, help="of the weights (default: bf16)")
    parser.add_argument("--device", default="cpu", help="such as cpu (default) or cuda")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, action="append", help="sequences at once; may be repeated")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--engine",
        action="append",
        choices=("generate", "forward", "static", "compiled", "fast"),
        help="how to decode (default: generate, and fast for LLaMA models); may be repeated",
    )
    parser.add_argument("--text", type=Path, help="UTF-8 file to count characters per token on")
    parser.add_argument("--parts", action="store_true", help="where the time of a step goes")
    parser.set_defaults(handler=_speed)


def _speed(given: argparse.Namespace) -> int:
    import torch

    from chinese_llama_lab.inference.bandwidth import SpeedError, memory_bandwidth, step_bytes
    from chinese_llama_lab.inference.speed import Speed, SpeedRow, encoded, measure_speed, reference_text
    from chinese_llama_lab.inference.step_time import step_time
    from chinese_llama_lab.quantization.load import load_quantized
    from chinese_llama_lab.results import table

    text = None
    if given.text is not None:
        try:
            text = given.text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpeedError(
                f"the text cannot be read: {error}", where=str(given.text), remedy="give a UTF-8 file"
            ) from error
    model, tokenizer = load_quantized(given.model, given.kind, device=given.device)
    read = step_bytes(model, context=given.prompt_tokens)
    bandwidth = memory_bandwidth(max(2**20, read.total), device=given.device)
    print(f"memory: {bandwidth}\nbytes a step: {read.total / 1e9:.3f} GB at {given.prompt_tokens} tokens\n")
    llama = getattr(model.config, "model_type", "") == "llama"
    engines = given.engine or (["generate", "fast"] if llama else ["generate"])
    measured: list[SpeedRow] = []
    for name in engines:
        found = measure_speed(
            model,
            tokenizer,
            prompt_tokens=given.prompt_tokens,
            new_tokens=given.new_tokens,
            batches=given.batch or (1,),
            repeats=given.repeats,
            engine_name=name,
            text=text,
            bandwidth=bandwidth,
            name=given.kind,
        )
        measured += found.measured
    print(Speed(tuple(measured)))
    if given.parts:
        ids = encoded(tokenizer, reference_text() if text is None else text)
        block = torch.tensor([(ids * given.prompt_tokens)[: given.prompt_tokens]], device=model.device)
        names = [{"generate": "forward"}.get(name, name) for name in engines if name != "compiled"]
        parts = [
            step_time(model, block, bytes_per_second=bandwidth.bytes_per_second, name=name)
            for name in dict.fromkeys(names)
        ]
        print(f"\n{table('parts', [part.row() for part in parts])}")
    return 0
