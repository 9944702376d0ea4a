"""One training run on transformers' Trainer: what `pretrain` and `finetune` share.

The Trainer keeps the loop, the optimizer, several processes and the device. Replaced: how a checkpoint is
written and chosen (`checkpoints.py`), what happens to a loss that is no number, the loss itself
(`loss.py`), and what is reported.
"""

from __future__ import annotations

import errno
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm.auto import tqdm
from transformers import PrinterCallback

from chinese_llama_lab.errors import LabError
from chinese_llama_lab.quantization.packing import use_fast_kernel
from chinese_llama_lab.tokenization.fertility import iterate_texts
from chinese_llama_lab.training import checkpoints
from chinese_llama_lab.training.batches import Ordered, Sequences, collate, run_order
from chinese_llama_lab.training.claim import claim_folder, describe_run
from chinese_llama_lab.training.continuing import Start
from chinese_llama_lab.training.errors import TrainingError, TrainingStopped
from chinese_llama_lab.training.follow import Follow
from chinese_llama_lab.training.footprint import check_machine, is_out_of_memory, out_of_memory
from chinese_llama_lab.training.lean_layers import lean_layers
from chinese_llama_lab.training.lora import add_lora, check_adaptable, lean_rows
from chinese_llama_lab.training.loss import lean_loss
from chinese_llama_lab.training.recipe import Recipe
from chinese_llama_lab.training.replay import BeforeAdapting
from chinese_llama_lab.training.reports import Meter, RunLog, RunReport, Watcher
from chinese_llama_lab.training.stopping import StopSignal
from chinese_llama_lab.training.trainer import LabTrainer, training_arguments, wants_sharding
from chinese_llama_lab.vocabulary.consistency import check_consistency

ADAPTER = "adapter"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def train(
    model: Any,
    tokenizer: Any,
    sequences: Sequences,
    recipe: Recipe,
    out: Path,
    *,
    new_tokens: Sequence[int] = (),
    held_out: Mapping[str, Sequence[str]] | None = None,
    start_from: Path | None = None,
    resume: bool = False,
    watch: Watcher | None = None,
    progress: bool = True,
) -> RunReport:
    """Train an adapter. See `pretrain` for arguments, folder and errors."""
    out = Path(out)
    check_machine(recipe)
    # bitsandbytes' fast kernel has no backward: the gradient would be lost in silence.
    use_fast_kernel(model, False)
    check_consistency(model, tokenizer, spare_rows=_spare(model, tokenizer))
    _check_length(model, recipe)
    check_adaptable(model, recipe, new_tokens)
    if wants_sharding() and recipe.replay_target == "base":
        # A process whose batch holds nothing replayed would not gather the layers that the others wait for.
        raise TrainingError(
            "replay_target is base, and the model is sharded (FSDP)",
            where=f"recipe {recipe.name!r}",
            remedy="use replay_target = text, or several processes without FSDP",
        )
    texts = _held_out(held_out)
    about = describe_run(model, tokenizer, sequences, recipe, new_tokens) | {"starts_from": None}
    first = None if start_from is None else Start(start_from)
    if first is not None:
        about = first.describe(about)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    main = int(os.environ.get("RANK", "0")) == 0
    accumulation = recipe.accumulation(processes)
    order = run_order(
        sequences,
        epochs=recipe.epochs,
        steps=recipe.steps,
        batch=recipe.batch,
        micro=recipe.micro_batch,
        seed=recipe.seed,
    )
    updates = math.ceil(len(order) / recipe.batch)
    arguments = training_arguments(recipe, model.dtype, out, accumulation, updates, processes)
    # Only now: the processes of a run know each other, and must not see what another one just wrote.
    with arguments.main_process_first(local=False, desc="claiming the folder"):
        start, refused = claim_folder(out, about, resume, write=main)
    adapted = add_lora(model, recipe, new_tokens)
    if first is not None:
        first.load_into(adapted)
    lean_rows(adapted)
    if start and wants_sharding():
        set_peft_model_state_dict(adapted, load_file(start / "adapter_model.safetensors"))
    log = RunLog(out, write=main, watch=watch)
    log.rewind(checkpoints.checkpoint_step(start) if start else -1)
    for reason in refused:
        warnings.warn(f"{reason}; the one before it is taken", stacklevel=3)
    meter = Meter()
    with ExitStack() as stack:
        teacher = BeforeAdapting(adapted, new_tokens) if recipe.replay_target == "base" else None
        stack.enter_context(lean_loss(adapted.get_base_model(), teacher))
        stack.enter_context(lean_layers(adapted))
        stop = stack.enter_context(StopSignal())
        bar = tqdm(total=arguments.max_steps, disable=not (progress and main), desc=recipe.name, unit="step")
        stack.callback(bar.close)
        try:
            trainer = LabTrainer(  # here the weights move to the GPU
                model=adapted,
                args=arguments,
                train_dataset=Ordered(sequences, order),
                data_collator=partial(collate, _pad(tokenizer)),
            )
            trainer.prepare_run(recipe, sequences, out, meter)
            watcher = Follow(trainer, recipe, tokenizer, sequences, texts, log, meter, stop, bar)
            trainer.add_callback(watcher)
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        except LabError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise out_of_memory(adapted, recipe) from error
            if getattr(error, "errno", None) in DISK_FULL:
                raise trainer.not_written(f"what step {trainer.state.global_step} logged", error) from error
            raise
    steps = trainer.state.global_step
    if stop.asked and steps < arguments.max_steps:
        raise TrainingStopped(
            f"stopped after step {steps} of {arguments.max_steps}; everything is saved",
            where=str(checkpoints.checkpoint_path(out, steps)),
            remedy="the same call with resume=True (on the command line: --resume) goes on from there",
        )
    try:
        trainer.save_adapter(out / ADAPTER, tokenizer, about)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise trainer.not_written("the adapter", error) from error
    return RunReport(
        model=trainer.accelerator.unwrap_model(trainer.model),
        adapter=out / ADAPTER,
        out=out,
        rows=log.rows,
        trained=watcher.trained,
        steps=steps,
        tokens=watcher.tokens,
        characters=round(watcher.tokens * sequences.characters_per_token),
        seconds=meter.seconds,
        peak_memory_gib=meter.look(),
        data=sequences.summary,
        refused=refused,
        resumed_from=checkpoints.checkpoint_step(start) if start else None,
    )


def _spare(model: Any, tokenizer: Any) -> int | None:
    """Rows beyond the tokenizer that hub models bring along; fewer rows than tokens is an error."""
    noted = getattr(model.config.get_text_config(), "spare_vocab_rows", None)
    rows = int(model.get_input_embeddings().weight.shape[0])
    return None if noted else max(0, rows - len(tokenizer)) if rows % 64 == 0 else None


def _pad(tokenizer: Any) -> int:
    # What padding holds is never seen (`collate`), so that EOS serves where there is no pad token.
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def _held_out(given: Mapping[str, Iterable[str]] | None) -> dict[str, list[str]]:
    """Lists, since they are scored several times; refused before a folder is taken."""
    if given is not None and not isinstance(given, Mapping):
        raise TrainingError(
            f"held_out is {type(given).__name__}", where="held_out", remedy='give {"zh": […], "en": […]}'
        )
    found: dict[str, list[str]] = {}
    for name, texts in (given or {}).items():
        if isinstance(texts, (str, bytes)):
            raise TrainingError(
                f"the texts of {name!r} are one text", where="held_out", remedy="give a list of texts"
            )
        found[name] = list(iterate_texts(texts))
        if found[name] and not any(found[name]):
            raise TrainingError(
                f"the texts of {name!r} are empty", where="held_out", remedy="give texts, or leave it out"
            )
    return found


def _check_length(model: Any, recipe: Recipe) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and recipe.block > limit:  # transformers accepts it in silence
        raise TrainingError(
            f"block is {recipe.block}, and the model reads {limit} tokens",
            where=f"recipe {recipe.name!r}",
            remedy=f"use block = {limit} or less",
        )
