"""What a run needs and what the machine gives: refused before it starts, explained when memory runs out."""

from __future__ import annotations

from typing import Any

import torch

from chinese_llama_lab.machine import GIB, memory_bytes
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.loss import HEAD_ROWS
from chinese_llama_lab.training.precision import precision_of
from chinese_llama_lab.training.recipe import Recipe

_WEIGHT_BYTES = {"none": 2.0, "int8": 1.0, "nf4": 4.5 / 8, "nf4-double": 4.127 / 8}


def estimate(model: Any, recipe: Recipe) -> dict[str, float]:
    """Bytes of a training step by what they are for; activations by a rule of thumb.

    Keys: `weights` (as they are), `trained` (gradients and two moments, float32), `activations`, `logits`.
    """
    config = model.config.get_text_config()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    width, inner = config.hidden_size, config.intermediate_size
    # Kept for backward, a token and a layer (`lean_layers.py`): input and output of the two norms, q, k, v
    # before and after rotation, attention's output, the MLP's gate and up.
    values = 11 * width + 2 * inner
    layers = config.num_hidden_layers
    kept = layers * width + values if recipe.gradient_checkpointing else layers * values
    tokens = recipe.micro_batch * recipe.block
    size = 4 if precision_of(recipe) == "fp32" else 2
    rows = min(HEAD_ROWS, tokens)
    return {
        "weights": float(weights),
        "trained": 12.0 * trained,
        "activations": float(tokens * kept * size),
        "logits": 3.0 * rows * config.vocab_size * 4,
    }


def check_machine(recipe: Recipe) -> None:
    """Raise TrainingError where a recipe was made for a GPU and there is none: what would have to change."""
    if torch.cuda.is_available():
        return
    changes = []
    if recipe.device == "gpu":
        changes.append('device = "any"')
    if recipe.precision == "fp16":
        changes.append('precision = "bf16" or "fp32" (fp16 trains on a GPU alone)')
    if recipe.quantization == "int8":
        changes.append('quantization = "nf4" or "none" (int8 trains on a GPU alone)')
    if not changes:
        return
    shape = dict(recipe.architecture)
    size = ""
    if shape:
        heads = shape["num_key_value_heads"] / shape["num_attention_heads"]
        attention = (2 + 2 * heads) * shape["hidden_size"] ** 2
        layer = attention + 3 * shape["hidden_size"] * shape["intermediate_size"]
        rows = (recipe.vocabulary or shape["vocab_size"]) * (1 if shape["tie_word_embeddings"] else 2)
        count = shape["num_hidden_layers"] * layer + rows * shape["hidden_size"]
        weights = count * _WEIGHT_BYTES[recipe.quantization] / GIB
        size = (
            f". Its weights alone take {weights:.1f} GiB, this machine has {memory_bytes() / GIB:.0f} GiB;"
            " a processor would need weeks"
        )
    raise TrainingError(
        f"recipe {recipe.name!r} was made for a GPU, and torch sees none here",
        where="device",
        remedy="run it on a machine with a CUDA GPU, or use smollm2-zh. To run it here all the same, change "
        + ", ".join(changes)
        + size,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and any(said in text for said in ("can't allocate memory", "not enough memory", "out of memory"))
    )


def out_of_memory(model: Any, recipe: Recipe) -> TrainingError:
    """What to lower, with the estimate."""
    parts = estimate(model, recipe)
    listed = ", ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items())
    lower = []
    if recipe.micro_batch > 1:
        lower.append(f"micro_batch (now {recipe.micro_batch}; batch stays {recipe.batch})")
    lower.append(f"block (now {recipe.block})")
    if not recipe.gradient_checkpointing:
        lower.append("or set gradient_checkpointing = true")
    if recipe.embeddings == "published":
        lower.append('or embeddings = "new-rows"')
    if precision_of(recipe) == "fp32":
        lower.append('or precision = "bf16"')
    return TrainingError(
        f"memory ran out; this step needs about {sum(parts.values()) / GIB:.2f} GiB ({listed})",
        where=f"recipe {recipe.name!r}",
        remedy="lower " + ", ".join(lower),
    )
