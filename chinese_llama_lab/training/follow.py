"""After every optimizer step: log, evaluate, save, stop."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from chinese_llama_lab.training.batches import Sequences
from chinese_llama_lab.training.lora import what_trains
from chinese_llama_lab.training.metrics import bits_per_character
from chinese_llama_lab.training.recipe import Recipe
from chinese_llama_lab.training.reports import Meter, RunLog
from chinese_llama_lab.training.sharded import bits_through_forward
from chinese_llama_lab.training.stopping import StopSignal
from chinese_llama_lab.training.trainer import LabTrainer


class Follow(TrainerCallback):
    """After every step: log, evaluate, save, stop."""

    def __init__(
        self,
        trainer: LabTrainer,
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
        self._rate = recipe.learning_rate

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(state.global_step)
        # From the order rather than from the log, which a reader may have moved away.
        before = self._trainer.train_dataset.order[: state.global_step * self._recipe.batch]
        self.tokens = sum(self._sequences.lengths[n] for n in before)
        self._mark = (self._meter.seconds, self.tokens)
        if state.global_step == 0:
            self._evaluate(0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._rate = self._trainer._get_learning_rate()  # after the step it is the next one's

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
                "learning_rate": self._rate,
                "tokens": self.tokens,
                "tokens_per_second": round(rate, 1),
                "characters_per_second": round(rate * self._sequences.characters_per_token, 1),
                "peak_memory_gib": round(self._meter.look(), 3),
            }
        )
        self._losses.clear()
        self._mark = (seconds, self.tokens)

    def _evaluate(self, step: int) -> None:
        """Bits per character of the held-out texts; every process computes the same.

        They stand behind BOS where the recipe puts it before documents, else behind the end of a line: a
        model that never read BOS before text should not be asked to.
        """
        texts = {name: held for name, held in self._held_out.items() if held}
        if not texts:
            return
        started = time.perf_counter()
        model = self._trainer.model
        causal = self._trainer.accelerator.unwrap_model(model).get_base_model()
        limit = getattr(causal.config, "max_position_embeddings", None) or 512
        window = min(512, limit)
        start = None if self._recipe.bos else "\n"
        row: dict[str, Any] = {"step": step}
        for name, held in texts.items():
            if self._trainer.is_fsdp_enabled:
                scored = bits_through_forward(model, self._tokenizer, held, window=window, start=start)
            else:
                scored = bits_per_character(causal, self._tokenizer, held, window=window, start=start)
            row[f"{name}_bits"] = round(scored.bits_per_character, 5)
        self._log.add(row)
        self._meter.pause(time.perf_counter() - started)
