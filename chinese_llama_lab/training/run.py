"""One training run on transformers' Trainer: what `pretrain` and `finetune` share.

The Trainer keeps the loop, the optimizer, several processes and the device. Replaced: how a checkpoint is
written and chosen (`checkpoints.py`), what happens to a loss that is no number, the loss itself
(`loss.py`), and what is reported.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from chinese_llama_lab.errors import LabError
from chinese_llama_lab.paths import atomic_file, atomic_folder
from chinese_llama_lab.training import checkpoints
from chinese_llama_lab.training.batches import Ordered, Sequences, collate, run_order
from chinese_llama_lab.training.errors import TrainingError, TrainingStopped
from chinese_llama_lab.training.footprint import check_machine, is_out_of_memory, out_of_memory
from chinese_llama_lab.training.lora import add_lora, lean_rows, what_trains
from chinese_llama_lab.training.loss import lean_loss
from chinese_llama_lab.training.metrics import bits_per_character
from chinese_llama_lab.training.recipe import Recipe
from chinese_llama_lab.training.reports import Meter, RunLog, RunReport, Watcher
from chinese_llama_lab.training.sharded import bits_through_forward
from chinese_llama_lab.training.stopping import StopSignal
from chinese_llama_lab.vocabulary.consistency import check_consistency

ABOUT = "run.json"  # what a run is: recipe, data, model; two runs never share a folder
ADAPTER = "adapter"


def train(
    model: Any,
    tokenizer: Any,
    sequences: Sequences,
    recipe: Recipe,
    out: Path,
    *,
    new_tokens: Sequence[int] = (),
    held_out: Mapping[str, Sequence[str]] | None = None,
    resume: bool = False,
    watch: Watcher | None = None,
    progress: bool = True,
) -> RunReport:
    """Train an adapter. See `pretrain` for arguments, folder and errors."""
    out = Path(out)
    check_machine(recipe)
    check_consistency(model, tokenizer, spare_rows=_spare(model, tokenizer))
    _check_length(model, recipe)
    about = _about(model, tokenizer, sequences, recipe, new_tokens)
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
    arguments = _arguments(recipe, out, accumulation, math.ceil(len(order) / recipe.batch), processes)
    # Only now: the processes of a run know each other, and must not see what another one just wrote.
    with arguments.main_process_first(local=False, desc="claiming the folder"):
        start, refused = _claim(out, about, resume, write=main)
    adapted = add_lora(model, recipe, new_tokens)
    lean_rows(adapted)
    if start and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        set_peft_model_state_dict(adapted, load_file(start / "adapter_model.safetensors"))
    log = RunLog(out, write=main, watch=watch)
    log.rewind(checkpoints.checkpoint_step(start) if start else -1)
    for reason in refused:
        warnings.warn(f"{reason}; the one before it is taken", stacklevel=3)
    meter = Meter()
    with ExitStack() as stack:
        stack.enter_context(lean_loss(adapted.get_base_model()))
        stop = stack.enter_context(StopSignal())
        bar = tqdm(total=arguments.max_steps, disable=not (progress and main), desc=recipe.name, unit="step")
        stack.callback(bar.close)
        trainer = _LabTrainer(
            model=adapted,
            args=arguments,
            train_dataset=Ordered(sequences, order),
            data_collator=partial(collate, _pad(tokenizer)),
        )
        trainer.prepare_run(recipe, sequences, out, meter)
        watcher = _Follow(trainer, recipe, tokenizer, sequences, held_out or {}, log, meter, stop, bar)
        trainer.add_callback(watcher)
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        except LabError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise out_of_memory(adapted, recipe) from error
            raise
    steps = trainer.state.global_step
    if stop.asked and steps < arguments.max_steps:
        raise TrainingStopped(
            f"stopped after step {steps} of {arguments.max_steps}; everything is saved",
            where=str(checkpoints.checkpoint_path(out, steps)),
            remedy="the same call with resume=True (on the command line: --resume) goes on from there",
        )
    trainer.save_adapter(out / ADAPTER, tokenizer, about)
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


def _check_length(model: Any, recipe: Recipe) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and recipe.block > limit:  # transformers accepts it in silence
        raise TrainingError(
            f"block is {recipe.block}, and the model reads {limit} tokens",
            where=f"recipe {recipe.name!r}",
            remedy=f"use block = {limit} or less",
        )


def _about(
    model: Any, tokenizer: Any, sequences: Sequences, recipe: Recipe, new_tokens: Sequence[int]
) -> dict[str, Any]:
    """What makes two runs the same run."""
    # How often something is written or looked at does not change what is trained.
    passing = ("log_every", "evaluate_every", "save_every", "keep", "title", "source", "device")
    return {
        "recipe": {k: v for k, v in recipe.to_dict().items() if k not in passing},
        "data": sequences.digest,
        "vocabulary": len(tokenizer),
        "rows": int(model.get_input_embeddings().weight.shape[0]),
        "new_tokens": [min(new_tokens), max(new_tokens), len(new_tokens)] if len(new_tokens) else [],
        "base": str(getattr(model.config, "_name_or_path", "")) and recipe.base,
        "model": _fingerprint(model),
    }


def _fingerprint(model: Any) -> str:
    """sha256 over a few values of every tensor: enough to tell two bases apart, and cheap at 7B."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.device.type != "meta":
            flat = tensor.detach().flatten()
            few = flat[:: max(1, flat.numel() // 16)][:16].to("cpu", torch.float32)
            digest.update(few.numpy().tobytes())
    return digest.hexdigest()


def _claim(out: Path, about: dict[str, Any], resume: bool, *, write: bool) -> tuple[Path | None, list[str]]:
    """Take the folder for this run; returns the checkpoint to go on from and why newer ones were refused."""
    path = out / ABOUT
    if path.is_file():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            there = {}
        if not resume and write:
            raise TrainingError(
                "the folder holds a run already",
                where=str(out),
                remedy="resume=True (--resume) goes on with it; for a new run give another folder",
            )
        different = [key for key in about if there.get(key) != about[key]]
        if "recipe" in different:
            old = there.get("recipe") or {}
            keys = [k for k in about["recipe"] if old.get(k) != about["recipe"][k]]
            different = [f"recipe ({', '.join(keys)})"] + [key for key in different if key != "recipe"]
        if different:
            raise TrainingError(
                f"the folder holds another run: it differs in {', '.join(different)}",
                where=str(out),
                remedy="give what it was started with, or another folder",
            )
    elif out.is_dir() and any(out.iterdir()):
        raise TrainingError(
            "the folder is not empty, and holds no run", where=str(out), remedy="give an empty or new folder"
        )
    if write:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return checkpoints.newest_whole(out)
    return checkpoints.last_good(out), []


def _arguments(recipe: Recipe, out: Path, accumulation: int, steps: int, processes: int) -> TrainingArguments:
    gpu = torch.cuda.is_available()
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
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if recipe.gradient_checkpointing else None,
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


class _LabTrainer(Trainer):
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
        wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if wanted and state.distributed_type == DistributedType.MULTI_CPU:
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
        self._in_batch += inputs.pop("sequence").tolist()
        self.step_tokens += inputs["input_ids"].numel()
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
        if not math.isfinite(value) and self._recipe.precision != "fp16":
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
        if self._recipe.lora_plus_ratio != 1.0 and getattr(self, "optimizer", None) is None:
            from peft.optimizers import create_loraplus_optimizer

            self.optimizer = create_loraplus_optimizer(
                model if model is not None else self.model,
                torch.optim.AdamW,
                lr=self.args.learning_rate,
                loraplus_lr_ratio=self._recipe.lora_plus_ratio,
                loraplus_weight_decay=self.args.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
        return super().create_optimizer(model)

    # Checkpoints

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._part)

    @property
    def _part(self) -> Path:
        return checkpoints.checkpoints_dir(self._out) / f".step-{self.state.global_step:06d}.part"

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
        good = checkpoints.last_good(self._out)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        return TrainingError(
            f"the checkpoint of step {self.state.global_step} could not be written: {reason}",
            where=str(self._out),
            remedy="make room on the disk, then resume=True goes on from "
            f"{good.name if good else 'the start'}",
        )

    def save_adapter(self, folder: Path, tokenizer: Any, about: dict[str, Any]) -> None:
        """The adapter alone, with its tokenizer: what `merge_adapters` and `PeftModel` read."""
        state = self._gathered()
        if self.is_world_process_zero():
            model = self.accelerator.unwrap_model(self.model)
            if folder.is_dir():
                shutil.rmtree(folder)
            with atomic_folder(folder) as part:
                model.save_pretrained(part, state_dict=state, save_embedding_layers=False)
                tokenizer.save_pretrained(part)
                (part / ABOUT).write_text(
                    json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
                )
        self.accelerator.wait_for_everyone()


class _Follow(TrainerCallback):
    """After every step: log, evaluate, save, stop."""

    def __init__(
        self,
        trainer: _LabTrainer,
        recipe: Recipe,
        tokenizer: Any,
        sequences: Sequences,
        held_out: Mapping[str, Sequence[str]],
        log: RunLog,
        meter: Meter,
        stop: StopSignal,
        bar: Any,
    ) -> None:
        self._trainer, self._recipe, self._tokenizer = trainer, recipe, tokenizer
        self._sequences, self._held_out = sequences, held_out
        self._log, self._meter, self._stop, self._bar = log, meter, stop, bar
        self.trained = what_trains(trainer.model)
        self.tokens = 0
        self._losses: list[float] = []
        self._mark = (0.0, 0)  # seconds and tokens at the last log
        self._norm = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(state.global_step)
        last = [row for row in self._log.rows if "tokens" in row]
        self.tokens = last[-1]["tokens"] if last else 0
        self._mark = (self._meter.seconds, self.tokens)
        if state.global_step == 0:
            self._evaluate(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        recipe, step = self._recipe, state.global_step
        loss, tokens = self._over_processes(self._trainer.step_loss, self._trainer.step_tokens)
        self._trainer.end_step()
        self._losses.append(loss)
        self.tokens += tokens
        self._bar.update(1)
        self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        last = step == args.max_steps
        saving = last or bool(recipe.save_every and step % recipe.save_every == 0)
        stopping = self._anyone_asked()
        # A row at every checkpoint too: what is resumed then logs exactly what was not.
        if step % recipe.log_every == 0 or saving or stopping:
            self._row(step)
        if last or (recipe.evaluate_every and step % recipe.evaluate_every == 0):
            self._evaluate(step)
        control.should_save = saving or stopping
        control.should_training_stop = control.should_training_stop or stopping

    def _over_processes(self, loss: float, tokens: int) -> tuple[float, int]:
        """Mean loss (the Trainer multiplied each by their number) and sum of tokens over all processes."""
        accelerator = self._trainer.accelerator
        if accelerator.num_processes == 1:
            return loss, tokens
        both = torch.tensor([[loss, float(tokens)]], device=accelerator.device, dtype=torch.float64)
        gathered = accelerator.gather(both)
        return float(gathered[:, 0].mean()), int(gathered[:, 1].sum())

    def _anyone_asked(self) -> bool:
        accelerator = self._trainer.accelerator
        if accelerator.num_processes == 1:
            return self._stop.asked
        asked = torch.tensor([int(self._stop.asked)], device=accelerator.device)
        self._stop.asked = bool(accelerator.gather(asked).max())
        return self._stop.asked

    def _row(self, step: int) -> None:
        seconds, before = self._meter.seconds, self._mark
        rate = (self.tokens - before[1]) / max(seconds - before[0], 1e-9)
        self._log.add(
            {
                "step": step,
                "loss": sum(self._losses) / len(self._losses),
                "learning_rate": self._trainer._get_learning_rate(),
                "tokens": self.tokens,
                "tokens_per_second": round(rate, 1),
                "characters_per_second": round(rate * self._sequences.characters_per_token, 1),
                "peak_memory_gib": round(self._meter.look(), 3),
            }
        )
        self._losses.clear()
        self._mark = (seconds, self.tokens)

    def _evaluate(self, step: int) -> None:
        """Bits per character of the held-out texts; every process computes the same."""
        texts = {name: held for name, held in self._held_out.items() if held}
        if not texts:
            return
        started = time.perf_counter()
        model = self._trainer.model
        causal = self._trainer.accelerator.unwrap_model(model).get_base_model()
        limit = getattr(causal.config, "max_position_embeddings", None) or 512
        window = min(512, limit)
        row: dict[str, Any] = {"step": step}
        for name, held in texts.items():
            if self._trainer.is_fsdp_enabled:
                scored = bits_through_forward(model, self._tokenizer, held, window=window)
            else:
                scored = bits_per_character(causal, self._tokenizer, held, window=window)
            row[f"{name}_bits"] = round(scored.bits_per_character, 5)
        self._log.add(row)
        self._meter.pause(time.perf_counter() - started)
