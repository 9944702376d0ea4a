"""Measured memory that others published, with what each source ran: what the estimate is held against.

The same rules apply to all rows. A row states its run as its source does; where the source is silent,
`assumed` says what was taken, once for all rows of a source. Nothing is tuned row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_QV = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Published:
    """One published figure.

    Attributes:
        source, what: where it stands, and of which run. value, unit: as printed there.
        model, task, options: the arguments of `estimate`.
        assumed: what the source leaves open, or does otherwise than `estimate`'s defaults.
        explanation: why the estimate is off, where it is off by more than 25 %.
    """

    source: str
    what: str
    value: float
    unit: str
    model: str
    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    assumed: str = ""
    explanation: str = ""


# torch.cuda.max_memory_allocated: what lies outside the allocator is not in it.
_ALLOCATOR: dict[str, Any] = {"cuda_context": 0.0}

_LITGPT = "LitGPT, tutorials/resource-tables.md (October 2023, A100 40 GB)"
_LITGPT_LORA: dict[str, Any] = {
    **_ALLOCATOR,
    "block": 1304,
    "rank": 8,
    "targets": _QV,
    "dropout": 0.05,
    "lora_dtype": "bfloat16",
    "optimizer_dtype": "bfloat16",
    "loss": "chunked",
}
_LITGPT_ASSUMED = (
    "bf16-true throughout; longest row 1,304 tokens; 4,194,304 trained weights at 7B are r 8 on q and v; "
    "script defaults: dropout 0.05, loss in chunks of 128 positions, no checkpointing on one GPU; "
    "allocator's peak"
)
_LITGPT_4BIT = (
    _LITGPT_ASSUMED + "; the head is quantized as well; bitsandbytes kept each quantized "
    "layer's input until its pull request 1270 (July 2024)"
)
_FOUR: dict[str, Any] = {"quantize_head": True, "keeps_inputs": True}


def _litgpt() -> Iterator[Published]:
    for size, figures in (("7b", (21.30, 14.14, 13.84)), ("13b", (38.12, 23.14, 22.55))):
        for kind, value in zip(("none", "nf4", "nf4-double"), figures, strict=True):
            more = {} if kind == "none" else {**_FOUR, "quantization": kind}
            yield Published(
                _LITGPT,
                f"Llama-2-{size.upper()}, LoRA, {kind}, micro-batch 1",
                value,
                "GB",
                f"llama-2-{size}",
                "lora",
                {**_LITGPT_LORA, **more},
                _LITGPT_ASSUMED if kind == "none" else _LITGPT_4BIT,
            )
    two = {**_LITGPT_LORA, "batch": 2}
    what = "Llama-2-7B, LoRA, none, micro-batch 2"
    yield Published(_LITGPT, what, 29.07, "GB", "llama-2-7b", "lora", two, _LITGPT_ASSUMED)
    for size, figures in (("7b", (13.52, 4.57, 4.26)), ("13b", (26.21, 8.32, 7.72))):
        for kind, value in zip(("none", "nf4", "nf4-double"), figures, strict=True):
            yield Published(
                _LITGPT,
                f"Llama-2-{size.upper()}, inference, {kind}",
                value,
                "GB",
                f"llama-2-{size}",
                "inference",
                {**_ALLOCATOR, "block": 64, "quantization": kind, "quantize_head": kind != "none"},
                "script default: 50 new tokens after a short prompt; NF4 in the head too; allocator's peak",
            )


_TUNE = "torchtune, README.md (September 2024)"
_TUNE_FLAGS = "torchtune, README.md, optimization flags (end of 2024, A100)"
_TUNE_DOCS = "torchtune, QLoRA tutorial (April 2024)"
_TUNE_RUN: dict[str, Any] = {
    **_ALLOCATOR,
    "batch": 2,
    "lora_dtype": "bfloat16",
    "optimizer_dtype": "bfloat16",
    "fused_optimizer": True,
    "gradient_accumulation": False,
}
_TUNE_LORA: dict[str, Any] = {**_TUNE_RUN, "loss": "chunked", "compile": True}
_TUNE_ASSUMED = "bf16 throughout, packed rows, compiled, loss in 8 chunks, fused AdamW; allocator's peak"
_SPIKE = (
    "The peak of making NF4, not of training. At the time torchao compared all weights of a matrix with all "
    "16 values at once: 4096 × 11008 × 16 bf16 numbers are 1.44 GB a temporary tensor, and several lived "
    "together. torchao's pull request 196 (May 2024, after the tutorial) cut that down to chunks. What the "
    "allocator has reserved it keeps, so the same peak stands under the figure of training. The 5.2 GB "
    "between 9.13 and the estimate are 3.6 such tensors; loaded after the change, an 8B is within 13 % "
    "(issue 1398)"
)


def _torchtune() -> Iterator[Published]:
    eight = {**_TUNE_LORA, "block": 2048, "loss_rows": 512}
    saved = {"gradient_checkpointing": True}
    bare = (
        "no checkpointing, which the source does not say: with it the 4090's figure would be this one's too"
    )
    rows: tuple[tuple[str, float, str, str, dict[str, Any]], ...] = (
        ("LoRA, RTX 4090", 16.2, "lora", "checkpointing", {**saved, "targets": _QV}),
        ("LoRA, A6000", 30.3, "lora", bare, {"targets": _QV}),
        ("QLoRA, RTX 4090", 7.4, "qlora", "checkpointing", saved),
    )
    for what, value, task, how, more in rows:
        targets = "q and v" if "targets" in more else "all linear layers (only those are quantized)"
        yield Published(
            _TUNE,
            f"Llama-3.1-8B, {what}, batch 2 × 2,048",
            value,
            "GiB",
            "llama-3-8b",
            task,
            {**eight, **more},
            f"{_TUNE_ASSUMED}; {how}; LoRA r 8 on {targets}",
        )
    seven = {**_TUNE_RUN, "block": 512, "gradient_checkpointing": True, "targets": _QV}
    ready = {**_ALLOCATOR, "block": 1}
    docs = "Alpaca rows of at most 512 tokens, checkpointing, whole logits; allocator's reserved memory"
    loaded = "weights alone; allocator's reserved memory"
    for what, value, task, options, assumed, why in (
        ("LoRA, model loaded", 13.98, "inference", ready, loaded, ""),
        ("LoRA, training", 15.57, "lora", seven, docs + "; r 8 on q and v", ""),
        (
            "QLoRA, model loaded",
            9.13,
            "inference",
            {**ready, "quantization": "nf4-double"},
            loaded,
            _SPIKE,
        ),
        (
            "QLoRA, training",
            9.29,
            "qlora",
            {**seven, "targets": _ALL_LINEAR},
            docs + "; r 8 on all linear layers",
            _SPIKE,
        ),
    ):
        yield Published(
            _TUNE_DOCS, f"Llama-2-7B, {what}", value, "GB", "llama-2-7b", task, options, assumed, why
        )
    issue = "torchtune, issue 1398 (August 2024)"
    for what, value, names in (("q and v quantized", 14.41, _QV), ("all quantized", 6.19, _ALL_LINEAR)):
        yield Published(
            issue,
            f"Llama-3.1-8B, model loaded, {what}",
            value,
            "GiB",
            "llama-3-8b",
            "inference",
            {**ready, "quantization": "nf4-double", "quantized": names},
            "weights alone; allocator's peak",
        )
    yield from _torchtune_flags()


def _torchtune_flags() -> Iterator[Published]:
    base: dict[str, Any] = {**_TUNE_RUN, "block": 4096}
    compiled = {**base, "compile": True}
    chunked = {**compiled, "loss": "chunked", "loss_rows": 1024}
    saved = {**chunked, "gradient_checkpointing": True}
    offloaded = {**saved, "offload_checkpoints": True}
    said = "bf16 throughout, batch 2 × 4,096 packed; fused AdamW, no accumulation; allocator's peak"
    for what, value, task, options in (
        ("full, packed", 60.0, "full", base),
        ("full, + compile", 51.0, "full", compiled),
        ("full, + chunked loss", 42.9, "full", chunked),
        ("full, + checkpointing", 24.9, "full", saved),
        ("LoRA, + offloading", 8.5, "lora", offloaded),
        ("QLoRA, + offloading", 4.6, "qlora", offloaded),
    ):
        more = "" if task == "full" else "; checkpoints offloaded; r 8 on all linear layers"
        yield Published(
            _TUNE_FLAGS,
            f"Llama-3.2-3B, {what}",
            value,
            "GiB",
            "llama-3.2-3b",
            task,
            options,
            said + more,
        )


_FACTORY = "LLaMA-Factory, wiki, Performance comparison (April 2024, A100 40 GB)"
_FACTORY_RUN: dict[str, Any] = {"gradient_checkpointing": True, "loss": "shifted"}
_FACTORY_ASSUMED = (
    "LoRA r 8 on all linear layers, in float32; checkpointing; 4-bit is NF4 with double quantization; "
    "transformers before 4.46; memory of the device, rounded to 1 GB (or GiB: the source does not say), with "
    "0.5 GB of CUDA context"
)


def _factory() -> Iterator[Published]:
    four: dict[str, Any] = {**_FACTORY_RUN, "batch": 4, "block": 1024}
    for what, value, task, attention in (
        ("16-bit", 18.0, "lora", "eager"),
        ("16-bit, FlashAttention-2", 17.0, "lora", "flash"),
        ("4-bit", 9.0, "qlora", "eager"),
    ):
        options = {**four, "attention": attention, "keeps_inputs": task == "qlora"}
        text = f"Llama-2-7B, {what}, batch 4 × 1,024"
        yield Published(_FACTORY, text, value, "GB", "llama-2-7b", task, options, _FACTORY_ASSUMED)
    for block, value in ((1024, 6), (2048, 7), (4096, 9), (8192, 12), (16384, 19), (32768, 32)):
        text = f"Llama-2-7B, 4-bit, FlashAttention-2, batch 1 × {block:,}"
        options = {**_FACTORY_RUN, "block": block, "keeps_inputs": True}
        yield Published(_FACTORY, text, float(value), "GB", "llama-2-7b", "qlora", options, _FACTORY_ASSUMED)


_PEFT = "PEFT, method_comparison/MetaMathQA (2025, L40S)"


def _peft() -> Iterator[Published]:
    run: dict[str, Any] = {**_ALLOCATOR, "batch": 4, "block": 768, "gradient_accumulation": False}
    said = "batch 4 × 768 tokens, no checkpointing, transformers 4.52; allocator's reserved memory"
    for what, value, task, options in (
        ("LoRA r 32", 22.29, "lora", {**run, "rank": 32, "targets": _QV}),
        ("LoRA r 64", 22.55, "lora", {**run, "rank": 64, "targets": _QV}),
        ("full", 38.87, "full", {**run, "optimizer_dtype": "bfloat16"}),
    ):
        more = "; bf16 throughout" if task == "full" else "; peft's default q and v, adapters in float32"
        yield Published(
            _PEFT, f"Llama-3.2-3B, {what}", value, "GB", "llama-3.2-3b", task, options, said + more
        )


def published() -> list[Published]:
    """Every figure, in the order of its source."""
    return [*_litgpt(), *_torchtune(), *_factory(), *_peft()]
