"""What a recipe will take on given devices: hours, price, memory, operations, before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.inference.estimate import estimate
from chinese_llama_lab.inference.memory import Memory
from chinese_llama_lab.inference.shapes import shape_of
from chinese_llama_lab.training.cost import flops_per_token, training_cost, training_time, utilization
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.recipe import MODULES, Recipe


@dataclass(frozen=True)
class TrainingPlan:
    """What a run will take.

    Attributes:
        model: its name. recipe: the recipe's. tokens: that the run reads. devices: how many.
        hours: of the run. cost: in the caller's currency, or None where no price is known.
        memory: of one device. flops: operations of the whole run, recomputation included.
        used: share of the devices' peak (HFU), or None where the peak is not known.
    """

    model: str
    recipe: str
    tokens: int
    devices: int
    hours: float
    cost: float | None
    memory: Memory
    flops: float
    used: float | None = None

    @property
    def device_hours(self) -> float:
        """Hours of all devices together."""
        return self.hours * self.devices

    def __repr__(self) -> str:
        days = f" ({self.hours / 24:,.1f} days)" if self.hours >= 48 else ""
        rows = [
            ("model, recipe", f"{self.model}, {self.recipe}"),
            ("tokens", f"{self.tokens:,}"),
            ("devices", f"{self.devices}"),
            ("time", f"{self.hours:,.1f} hours{days}; {self.device_hours:,.1f} device hours"),
            ("cost", "no price was given" if self.cost is None else f"{self.cost:,.2f}"),
            ("memory", f"{self.memory.gib:.1f} GiB a device, most while {self.memory.moment}"),
            ("operations", f"{self.flops:.3g}"),
        ]
        if self.used is not None:
            rows.append(("of the peak", f"{self.used:.1%}"))
        return "\n".join(f"{name:14}{value}" for name, value in rows)


def plan_training(
    model: Any,
    recipe: Recipe,
    *,
    tokens: int | None = None,
    tokens_per_second: float,
    devices: int = 1,
    price_per_hour: float | None = None,
    efficiency: float = 1.0,
    peak_flops: float | None = None,
) -> TrainingPlan:
    """Time, cost and memory of a recipe.

    Args:
        model: as `shape_of` takes it, such as "llama-7b".
        recipe: a `Recipe`; its vocabulary, LoRA, block, micro_batch and so on go into memory and operations.
        tokens: that the run reads, by default steps × batch × block of the recipe.
        tokens_per_second: of one device. devices, efficiency: as in `training_time`.
        price_per_hour: of one device. peak_flops: of one device, for its utilization.

    Returns: TrainingPlan. Memory is that of plain data parallelism: every device holds the model.

    Raises: TrainingError: a value that is not positive; a recipe without steps, and no tokens.
        EstimateError: an unknown model, or a recipe that the estimate does not know.
    """
    if tokens is None:
        if not recipe.steps:
            raise TrainingError(
                f"recipe {recipe.name!r} has no number of steps",
                where="tokens",
                remedy="give tokens, or a recipe with steps",
            )
        tokens = recipe.steps * recipe.batch * recipe.block
    hours = training_time(tokens, tokens_per_second, devices, efficiency)
    shape = shape_of(model)
    if recipe.vocabulary:
        shape = shape.with_vocabulary(recipe.vocabulary)
    flops = flops_per_token(
        shape,
        lora=recipe.rank,
        targets=recipe.targets,
        embeddings=recipe.embeddings if "lm_head" in recipe.embedding_modules else "frozen",
        checkpointing=recipe.gradient_checkpointing,
        block=recipe.block,
    )
    rate = tokens_per_second * devices * efficiency
    return TrainingPlan(
        model=shape.name,
        recipe=f"{recipe.name}:{recipe.stage}" if recipe.stage else recipe.name,
        tokens=tokens,
        devices=devices,
        hours=hours,
        cost=None if price_per_hour is None else training_cost(hours, price_per_hour, devices),
        memory=_memory(model, recipe, devices),
        flops=flops * tokens,
        used=None if peak_flops is None else utilization(rate, flops, peak_flops, devices),
    )


def _memory(model: Any, recipe: Recipe, devices: int) -> Memory:
    if not recipe.rank:
        raise TrainingError(
            f"recipe {recipe.name!r} trains rows of the embedding alone, and its memory is not estimated",
            where="rank",
            remedy="plan its LoRA stage, or call training_time and training_cost",
        )
    new = max(0, recipe.vocabulary - shape_of(model).vocabulary)
    embeddings = "frozen" if recipe.embeddings == "new-rows" and not new else recipe.embeddings
    return estimate(
        model,
        "qlora" if recipe.quantization.startswith("nf4") else "lora",
        # float16 and "auto" hold 16-bit weights; only fp32 holds 32.
        dtype={"fp32": "float32", "fp16": "float16"}.get(recipe.precision, "bfloat16"),
        quantization=recipe.quantization,
        vocabulary=recipe.vocabulary,
        rank=recipe.rank,
        targets=recipe.targets,
        dropout=recipe.dropout,
        embeddings=embeddings,
        new_tokens=new if embeddings == "new-rows" else 0,
        block=recipe.block,
        batch=recipe.micro_batch,
        gradient_checkpointing=recipe.gradient_checkpointing,
        loss="lean",
        # As this package trains it: see `lean_layers.py`, and packing for the mask.
        layers="lean" if set(recipe.targets) == set(MODULES) and not recipe.dropout else "plain",
        masked=recipe.task == "pretrain" and recipe.separate_documents,
        gradient_accumulation=recipe.accumulation(devices) > 1,
    )
