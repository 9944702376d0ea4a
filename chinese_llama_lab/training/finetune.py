"""Instruction tuning: rendered rows, the answer a label and the prompt not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chinese_llama_lab.training.batches import InstructionSequences
from chinese_llama_lab.training.instructions import Instruction, encode_instructions
from chinese_llama_lab.training.lora import new_token_ids
from chinese_llama_lab.training.pretrain import check_task
from chinese_llama_lab.training.recipe import Recipe
from chinese_llama_lab.training.reports import RunReport, Watcher


def finetune(
    model: Any,
    tokenizer: Any,
    instructions: Iterable[Instruction | Mapping[str, Any]],
    recipe: Recipe,
    out: Path,
    *,
    held_out: Mapping[str, Sequence[str]] | None = None,
    new_tokens: Sequence[int] | None = None,
    start_from: Path | None = None,
    resume: bool = False,
    watch: Watcher | None = None,
    progress: bool = True,
) -> RunReport:
    """Train an adapter on instruction rows.

    Args:
        instructions: rows of `read_instructions`, or mappings with `instruction`, `output` and maybe `input`.
        recipe: with `task = "finetune"`: `template`, `too_long`, `mask_prompt` and `batching` matter here.
        model, tokenizer, out, held_out, new_tokens, start_from, resume, watch, progress: as in `pretrain`.

    Returns: RunReport; `data` says how many rows were shortened or refused, and how long they are.

    Raises: what `pretrain` raises; TrainingError: a malformed row, no row left, no chat template.
    """
    from chinese_llama_lab.training.run import train

    check_task(recipe, "finetune")
    encoded = encode_instructions(
        instructions,
        recipe.template,
        tokenizer,
        max_length=recipe.block,
        too_long=recipe.too_long,
        mask_prompt=recipe.mask_prompt,
    )
    return train(
        model,
        tokenizer,
        InstructionSequences(encoded, batching=recipe.batching, block=recipe.block),
        recipe,
        Path(out),
        new_tokens=new_token_ids(recipe, tokenizer) if new_tokens is None else new_tokens,
        held_out=held_out,
        start_from=start_from,
        resume=resume,
        watch=watch,
        progress=progress,
    )
