"""How much memory a model needs, for inference, LoRA, QLoRA and full training, from its shape alone.

What is alive is not the same from moment to moment: logits are gone before the first layer is computed again,
and gradients of a full run are complete only when activations are gone. So the moments of a step are added up
one by one, and the largest is the answer.
"""

from __future__ import annotations

from typing import Any

from chinese_llama_lab.inference.activations import kept, logits_bytes, prefill_bytes
from chinese_llama_lab.inference.memory import Memory
from chinese_llama_lab.inference.settings import DTYPES, Settings, settings
from chinese_llama_lab.inference.shapes import Shape, shape_of
from chinese_llama_lab.inference.stored import with_stored
from chinese_llama_lab.inference.weights import (
    kv_bytes_per_token,
    largest_dequantized,
    trained_bytes,
    trained_parameters,
    weight_bytes,
)


def estimate(source: Any, task: str = "inference", **options: Any) -> Memory:
    """Memory that a task needs on one GPU, by component.

    Args:
        source: a built-in name, a hub id, a folder with `config.json`, a config or its fields (`shape_of`).
            Nothing is downloaded, no weights are read.
        task: `inference`, `lora`, `qlora` or `full`.
        options: see `Settings`: `dtype`, `quantization`, `rank`, `targets`, `embeddings`, `new_tokens`,
            `vocabulary`, `block`, `batch`, `gradient_checkpointing`, `optimizer_dtype`, `kv_dtype`,
            `cuda_context` and others. Without `quantization`, that which the config says
            (`quantization_config`) counts.

    Returns: a `Memory`, in bytes; `.gb` and `.gib` give the two units.

    Raises: EstimateError: an unknown model, a config with fields missing, weights quantized in a way
        that is not counted here, or an option that cannot be.
    """
    s = settings(task, **with_stored(source, options))
    shape = shape_of(source)
    if s.vocabulary:
        shape = shape.with_vocabulary(s.vocabulary)
    name = f"{shape.name}, {task}, {s.quantization if s.quantization != 'none' else s.dtype}"
    moments = _inference(shape, s) if task == "inference" else _training(shape, s)
    totals = {moment: sum(parts.values()) for moment, parts in moments.items()}
    most = max(totals, key=lambda moment: totals[moment])
    return Memory(name, moments[most], most, totals)


def _inference(shape: Shape, s: Settings) -> dict[str, dict[str, float]]:
    parts = weight_bytes(shape, s)
    for kind, count in trained_parameters(shape, s).items():
        parts[kind] = float(count * DTYPES[s.lora_dtype])
    positions = s.tokens if s.all_logits else s.batch
    parts["KV cache"] = s.tokens * kv_bytes_per_token(shape, s.kv_dtype)
    parts["activations"] = prefill_bytes(shape, s)
    parts["logits"] = float(positions * shape.vocabulary * (DTYPES[s.dtype] + 4))
    parts["dequantized matrix"] = largest_dequantized(shape, s)
    parts["CUDA context"] = s.cuda_context
    return {"reading the prompt": parts}


def _training(shape: Shape, s: Settings) -> dict[str, dict[str, float]]:
    trained = trained_bytes(shape, s)
    gradients = trained.pop("gradients")
    always = {**weight_bytes(shape, s), **trained}
    early = gradients if s.gradient_accumulation else 0.0
    acts = kept(shape, s)
    table = largest_dequantized(shape, s)
    own = DTYPES[s.dtype if s.task == "full" else s.lora_dtype]
    step = 0.0 if s.fused_optimizer else float(own * sum(trained_parameters(shape, s).values()))
    moments: dict[str, dict[str, float]] = {
        "computing the loss": {
            "gradients": early,
            "activations": acts["kept"],
            "logits": logits_bytes(shape, s),
            "dequantized matrix": table if s.quantize_head else 0.0,
        },
        "entering the last layer backward": {
            "gradients": early,
            "activations": acts["kept"],
            "layer at work": acts["layer"],
            "dequantized matrix": table,
        },
        "leaving the first layer backward": {
            "gradients": gradients,
            "activations": acts["first"],
            "dequantized matrix": table,
        },
        "stepping the optimizer": {"gradients": gradients, "optimizer's temporary copy": step},
    }
    context = {"CUDA context": s.cuda_context}
    return {moment: {**always, **parts, **context} for moment, parts in moments.items()}
