"""transformers' Trainer, with checkpoints that are whole and no losses that are no numbers."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from transformers import Trainer, TrainingArguments

from chinese_llama_lab.paths import atomic_folder
from chinese_llama_lab.training import checkpoints
from chinese_llama_lab.training.batches import Sequences
from chinese_llama_lab.training.claim import ABOUT
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.optimizer import adamw
from chinese_llama_lab.training.precision import precision_of
from chinese_llama_lab.training.recipe import Recipe
from chinese_llama_lab.training.reports import Meter


def training_arguments(
    recipe: Recipe, weights: torch.dtype, out: Path, accumulation: int, steps: int, processes: int
) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    precision = precision_of(recipe)
    return TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=math.ceil(recipe.warmup_ratio * steps),
        lr_scheduler_type=recipe.schedule if recipe.schedule != "constant" else "constant_with_warmup",
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch",
        # Weights that are bfloat16 already compute in it; autocast is for float32 weights.
        bf16=precision == "bf16" and weights == torch.float32,
        fp16=precision == "fp16",
        activation_checkpointing=recipe.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if recipe.gradient_checkpointing else None,
        seed=recipe.seed,
        use_cpu=not gpu,
        ddp_backend="gloo" if processes > 1 and not gpu else None,
        ddp_find_unused_parameters=False,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )


def wants_sharding() -> bool:
    """Whether `accelerate launch` was asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


class LabTrainer(Trainer):
    """The Trainer with whole checkpoints, and without losses that are no numbers."""

    def prepare_run(self, recipe: Recipe, sequences: Sequences, out: Path, meter: Meter) -> None:
        self._recipe, self._sequences, self._out, self._meter = recipe, sequences, out, meter
        self._in_batch: list[int] = []
        self.step_loss = 0.0
        self.step_tokens = 0
        # The loss of `loss.py` divides by the labels of the whole batch, whatever peft's signature says.
        self.model_accepts_loss_kwargs = True

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if wants_sharding() and state.distributed_type == DistributedType.MULTI_CPU:
            # accelerate 1.15 leaves FSDP out on CPUs and says nothing; torch itself shards there all the
            # same.
            state.fsdp_plugin = FullyShardedDataParallelPlugin()
            state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        if not self._in_batch:
            self.step_loss, self.step_tokens = 0.0, 0
        numbers = inputs.pop("sequence").tolist()
        self._in_batch += numbers
        self.step_tokens += sum(self._sequences.lengths[n] for n in numbers)  # padding is no token
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._meter.look()
        if not torch.isfinite(loss):
            raise self._no_number(f"the loss is {float(loss)}")
        self.step_loss += float(loss)
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        found = super().compute_loss(model, inputs, *arguments, **options)
        self._meter.look()  # activations are at their largest now
        return found

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        value = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        # float16 finds its loss scale by trying: the scaler skips such a step itself.
        if not math.isfinite(value) and precision_of(self._recipe) != "fp16":
            raise self._no_number(f"the gradient's norm is {value}")
        return norm

    def _no_number(self, what: str) -> TrainingError:
        names = dict.fromkeys(name for n in self._in_batch for name in self._sequences.documents(n))
        shown = list(names)[:20]
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        good = checkpoints.last_good(self._out)
        return TrainingError(
            f"{what} at step {self.state.global_step + 1}; its batch held {', '.join(shown)}{more}",
            where=str(self._out),
            remedy=f"the last good checkpoint is {good.name if good else '(none yet)'}; look at these"
            " documents, lower learning_rate, or use precision = fp32",
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: `_Follow` reports."""

    def end_step(self) -> None:
        self._in_batch = []

    def create_optimizer(self, model: Any = None) -> Any:
        if getattr(self, "optimizer", None) is None:
            self.optimizer = adamw(self.model if model is None else model, self._recipe)
        return super().create_optimizer(model)

    # Checkpoints

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._part)

    @property
    def _part(self) -> Path:
        return checkpoints.part_path(self._out, self.state.global_step)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        state = self._gathered()
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        # Sharded: `train` loaded the adapter before it was sharded.

    def _gathered(self) -> dict[str, torch.Tensor] | None:
        """What is trained, put together from all processes; None where nothing is sharded."""
        if not self.is_fsdp_enabled:
            return None
        return {
            name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().cpu()
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Without `save_embedding_layers` peft would ask the hub how large the base's vocabulary is.
        model = self.accelerator.unwrap_model(self.model)
        model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        target = checkpoints.checkpoint_path(self._out, self.state.global_step)
        part = self._part
        if target.is_dir():  # the last step was saved already
            return
        if self.is_world_process_zero():
            shutil.rmtree(part, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                checkpoints.seal(
                    part / f"checkpoint-{self.state.global_step}", target, step=self.state.global_step
                )
                checkpoints.remove_old(self._out, self._recipe.keep)
        except (OSError, RuntimeError) as error:
            raise self._not_saved(error) from error
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise self._not_saved(error) from error
        finally:
            if self.is_world_process_zero():
                shutil.rmtree(part, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _not_saved(self, error: Exception) -> TrainingError:
        return self.not_written(f"the checkpoint of step {self.state.global_step}", error)

    def not_written(self, what: str, error: Exception) -> TrainingError:
        """The error for a disk that is full."""
        good = checkpoints.last_good(self._out)
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        return TrainingError(
            f"{what} could not be written: {reason}",
            where=str(self._out),
            remedy="make room on the disk, then resume=True goes on from "
            f"{good.name if good else 'the start'}",
        )

    def save_adapter(self, folder: Path, tokenizer: Any, about: dict[str, Any]) -> None:
        """The adapter alone, with its tokenizer: what `merge_adapters` and `PeftModel` read."""
        state = self._gathered()
        if self.is_world_process_zero():
            model = self.accelerator.unwrap_model(self.model)
            with atomic_folder(folder) as part:
                model.save_pretrained(part, state_dict=state, save_embedding_layers=False)
                tokenizer.save_pretrained(part)
                (part / ABOUT).write_text(
                    json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
                )
                if folder.is_dir():  # of the same run, when it was resumed at its end
                    shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
