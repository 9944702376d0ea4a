"""What a training run does, as a validated table: the published recipes and the course's own.

A recipe is a TOML file whose keys are the fields of `Recipe`. A recipe of several stages keeps what they
share at the top and what differs in `[stages.NAME]`; each stage is a recipe of its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from chinese_llama_lab.toml import tomllib
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.instructions import TOO_LONG
from chinese_llama_lab.training.templates import TEMPLATES

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MATRICES = ("embed_tokens", "lm_head")
_ARCHITECTURE: dict[str, type] = {
    "vocab_size": int,
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "num_key_value_heads": int,
    "tie_word_embeddings": bool,
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "task": ("pretrain", "finetune"),
    "embeddings": ("frozen", "new-rows", "published"),
    "schedule": ("cosine", "linear", "constant"),
    "precision": ("fp32", "bf16", "fp16", "auto"),
    "quantization": ("none", "int8", "nf4", "nf4-double"),
    "device": ("any", "gpu"),
    "template": TEMPLATES,
    "too_long": tuple(TOO_LONG),
    "batching": ("length", "packing"),
    "replay_target": ("text", "base"),
}
# (least, most, whether the least itself is allowed)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "vocabulary": (0, math.inf, True),
    "rank": (0, 4096, True),
    "alpha": (0, math.inf, False),
    "dropout": (0, 0.99, True),
    "lora_plus_ratio": (1, math.inf, True),
    "new_rows_ratio": (0, math.inf, False),
    "adam_beta2": (0, 0.99999, False),
    "learning_rate": (0, 1, False),
    "weight_decay": (0, 1, True),
    "warmup_ratio": (0, 1, True),
    "max_grad_norm": (0, math.inf, False),
    "block": (2, math.inf, True),
    "micro_batch": (1, math.inf, True),
    "batch": (1, math.inf, True),
    "epochs": (1, math.inf, True),
    "steps": (0, math.inf, True),
    "replay_share": (0, 0.99, True),
    "seed": (0, 2**32 - 1, True),
    "log_every": (1, math.inf, True),
    "evaluate_every": (0, math.inf, True),
    "save_every": (0, math.inf, True),
    "keep": (1, math.inf, True),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that a run needs to know, beside the model, the tokenizer and the data.

    Attributes:
        name, stage, title, source: what it is, and where it was published.
        task: `pretrain` or `finetune`.
        base: the model it was published for. architecture: its shape, for counting without its weights.
        vocabulary: rows of the extended embedding; 0 leaves the base's.
        rank, alpha, dropout, targets: of LoRA; rank 0 trains no LoRA. rslora, dora: as the papers say.
        lora_plus_ratio: learning rate of B over that of A (LoRA+); 1 is plain LoRA.
        new_rows_ratio: learning rate of new tokens' rows over that of A.
        embeddings: `frozen`; `new-rows` trains the rows of new tokens alone; `published` trains whole copies
            of `embedding_modules`, as the original does.
        learning_rate, weight_decay, warmup_ratio, schedule, max_grad_norm, adam_beta2: of AdamW.
        block: tokens a sequence. micro_batch: sequences a process computes at once. batch: sequences an
            optimizer step, over all processes.
        epochs: passes over the data; steps: optimizer steps, 0 for as many as the epochs give.
        precision: of the arithmetic; `auto` is bf16 where the machine is fast at it, else fp32.
        quantization: of the frozen weights. gradient_checkpointing: compute activations twice rather than
            keep them. device: `gpu` if it was made for one.
        separate_documents, bos, replay_share: of packing (`packing.py`).
        replay_target: what replayed documents are trained towards: their `text`, or at each token all that
            the `base`, the model without its adapter, says of the next (`replay.py`).
        template, too_long, mask_prompt, batching: of instruction rows (`instructions.py`).
        seed: of data order, LoRA's start and dropout.
        log_every, evaluate_every, save_every: optimizer steps; 0 only at the end. keep: checkpoints.
    """

    name: str
    task: str
    title: str = ""
    source: str = ""
    stage: str = ""
    base: str = ""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: int = 0
    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.05
    targets: tuple[str, ...] = MODULES
    rslora: bool = False
    dora: bool = False
    lora_plus_ratio: float = 1.0
    new_rows_ratio: float = 1.0
    embeddings: str = "new-rows"
    embedding_modules: tuple[str, ...] = MATRICES
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    warmup_ratio: float = 0.05
    schedule: str = "cosine"
    max_grad_norm: float = 1.0
    adam_beta2: float = 0.999
    block: int = 512
    micro_batch: int = 1
    batch: int = 8
    epochs: int = 1
    steps: int = 0
    precision: str = "fp32"
    quantization: str = "none"
    gradient_checkpointing: bool = False
    device: str = "any"
    separate_documents: bool = True
    bos: bool = False
    replay_share: float = 0.0
    replay_target: str = "text"
    template: str = "v2"
    too_long: str = "cut"
    mask_prompt: bool = True
    batching: str = "length"
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        where = f"recipe {self.name!r}" + (f", stage {self.stage!r}" if self.stage else "")
        for entry in dataclasses.fields(self):
            value = _typed(entry, getattr(self, entry.name), where)
            object.__setattr__(self, entry.name, value)
            _in_range(entry.name, value, where)
        self._together(where)

    def _together(self, where: str) -> None:
        """What single keys cannot say."""

        def refuse(what: str, remedy: str) -> None:
            raise TrainingError(what, where=where, remedy=remedy)

        if self.batch % self.micro_batch:
            refuse(
                f"batch is {self.batch} and micro_batch {self.micro_batch}",
                "make batch a multiple of micro_batch",
            )
        if self.rank == 0 and self.embeddings == "frozen":
            refuse("rank is 0 and embeddings are frozen: nothing is trained", "set rank, or embeddings")
        if self.rank == 0 and (self.rslora or self.dora or self.lora_plus_ratio != 1):
            refuse("rank is 0, and rslora, dora or lora_plus_ratio are set", "set rank, or leave them out")
        if self.rank and not self.targets:
            refuse("targets is empty", f"name modules, such as {', '.join(MODULES)}; or rank = 0")
        if self.embeddings != "frozen" and not self.embedding_modules:
            refuse(
                "embedding_modules is empty", f"name some of {', '.join(MATRICES)}, or embeddings = frozen"
            )
        if self.replay_target == "base" and not self.separate_documents:
            refuse(
                "replay_target is base, and documents are not kept apart: the base would have to read what"
                " lies between them too",
                "use separate_documents = true, or replay_target = text",
            )
        if self.dora and self.quantization == "int8":
            refuse("dora with int8 is not supported", "use quantization = nf4 or none, or dora = false")

    def replace(self, **changes: Any) -> Recipe:
        """A copy with other values, validated like a file. Raises: TrainingError, as for a file."""
        _known(changes, f"recipe {self.name!r}")
        return dataclasses.replace(self, **changes)

    def accumulation(self, processes: int = 1) -> int:
        """Micro-batches that one process adds up for one optimizer step.

        Raises: TrainingError: the batch cannot be divided so.
        """
        at_once = self.micro_batch * processes
        if self.batch % at_once:
            raise TrainingError(
                f"batch is {self.batch}, and {processes} processes of {self.micro_batch} take {at_once}",
                where=f"recipe {self.name!r}",
                remedy=f"make batch a multiple of {at_once}",
            )
        return self.batch // at_once

    def to_dict(self) -> dict[str, Any]:
        """All keys, as plain values that JSON and TOML can hold."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()} | {
            "architecture": dict(self.architecture)
        }


def _typed(entry: Any, value: Any, where: str) -> Any:
    kind = str(entry.type)

    def refuse(expected: str) -> None:
        raise TrainingError(
            f"{entry.name} is {value!r}, which is {type(value).__name__}",
            where=where,
            remedy=f"give {expected}",
        )

    if kind == "bool":
        if not isinstance(value, bool):
            refuse("true or false")
    elif kind == "int":
        if isinstance(value, bool) or not isinstance(value, int):
            refuse("a whole number")
    elif kind == "float":
        number = math.nan
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            with suppress(OverflowError):  # a whole number of hundreds of digits
                number = float(value)
        if not math.isfinite(number):
            refuse("a finite number")
        return number
    elif kind == "str":
        if not isinstance(value, str):
            refuse("text in quotes")
    elif kind.startswith("tuple"):
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            refuse("a list of texts")
        allowed = {"embedding_modules": MATRICES}.get(entry.name)
        for item in value:
            if allowed and item not in allowed:
                raise TrainingError(
                    f"{entry.name} names {item!r}", where=where, remedy=f"allowed: {', '.join(allowed)}"
                )
        return tuple(value)
    else:
        return _architecture(value, where)
    return value


def _architecture(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TrainingError(f"architecture is {value!r}", where=where, remedy="give a table [architecture]")
    if not value:
        return value
    for key, found in value.items():
        kind = _ARCHITECTURE.get(key)
        if kind is None:
            raise _unknown(key, list(_ARCHITECTURE), f"{where}, [architecture]")
        if type(found) is not kind or (isinstance(found, int) and found < 1 and kind is int):
            raise TrainingError(
                f"architecture.{key} is {found!r}",
                where=where,
                remedy=f"give {'true or false' if kind is bool else 'a whole number above 0'}",
            )
    missing = [key for key in _ARCHITECTURE if key not in value]
    if missing:
        raise TrainingError(
            f"[architecture] lacks {', '.join(missing)}", where=where, remedy="give all of it, or none"
        )
    return value


def _in_range(name: str, value: Any, where: str) -> None:
    if name in _CHOICES and value not in _CHOICES[name]:
        near = difflib.get_close_matches(value, _CHOICES[name], n=1)
        raise TrainingError(
            f"{name} is {value!r}",
            where=where,
            remedy=f"allowed: {', '.join(_CHOICES[name])}" + (f" (did you mean {near[0]}?)" if near else ""),
        )
    if name in _RANGES:
        least, most, included = _RANGES[name]
        if not (least <= value <= most) or (value == least and not included):
            low = f"{least:g} or more" if included else f"more than {least:g}"
            high = "" if most == math.inf else f", at most {most:g}"
            raise TrainingError(f"{name} is {value!r}", where=where, remedy=f"allowed: {low}{high}")


def _known(values: Mapping[str, Any], where: str) -> None:
    keys = [entry.name for entry in dataclasses.fields(Recipe)]
    for key in values:
        if key not in keys:
            raise _unknown(key, keys, where)


def _unknown(key: str, keys: list[str], where: str) -> TrainingError:
    near = difflib.get_close_matches(key, keys, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return TrainingError(f"there is no key {key!r}", where=where, remedy=f"{hint}allowed: {', '.join(keys)}")


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = files("chinese_llama_lab.recipes")
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def recipe_stages(name: str | Path) -> list[str]:
    """The stages of a recipe, in order; none where it is a single run."""
    return list(_table(name)[1].get("stages", {}))


def load_recipe(name: str | Path, stage: str | None = None) -> Recipe:
    """A recipe by name (`smollm2-zh`, `chinese-llama-7b:lora`), or from a TOML file of one's own.

    Args:
        name: of a shipped recipe, with `:STAGE` where it has stages; or the path of a `.toml` file.
        stage: the stage, instead of `:STAGE`.

    Raises: TrainingError: unknown recipe or stage, no stage named where there are several, TOML that does not
        parse, an unknown key, a value of another type, an impossible value: each with what is allowed.
    """
    if isinstance(name, str) and stage is None and ":" in name and not Path(name).exists():
        name, _, stage = name.rpartition(":")
    title, table = _table(name)
    stages = table.pop("stages", {})
    where = f"recipe {title!r}"
    if not isinstance(stages, dict) or not all(isinstance(value, dict) for value in stages.values()):
        raise TrainingError("stages are not tables", where=where, remedy="write [stages.NAME]")
    if stages and stage not in stages:
        what = f"there is no stage {stage!r}" if stage else "the recipe has stages, and none was named"
        raise TrainingError(
            what, where=where, remedy="name one: " + ", ".join(f"{title}:{key}" for key in stages)
        )
    if stage and not stages:
        raise TrainingError(f"there is no stage {stage!r}", where=where, remedy="the recipe is a single run")
    if stage:
        table = {**table, **stages[stage], "stage": stage}
    _known(table, where)
    if "name" in table:
        raise TrainingError(
            "a recipe does not name itself", where=where, remedy="its file's name is its name"
        )
    if "task" not in table:
        raise TrainingError("task is missing", where=where, remedy=f"allowed: {', '.join(_CHOICES['task'])}")
    return Recipe(name=title, **table)


def _table(name: str | Path) -> tuple[str, dict[str, Any]]:
    """(name, parsed TOML)."""
    if isinstance(name, Path) or str(name).endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise TrainingError(
                f"{path} does not exist", remedy=f"give a TOML file, or one of {', '.join(recipe_names())}"
            )
        title, data = path.stem, path.read_bytes()
    elif name in recipe_names():
        title, data = name, files("chinese_llama_lab.recipes").joinpath(f"{name}.toml").read_bytes()
    else:
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        raise TrainingError(
            f"there is no recipe {name!r}",
            remedy=(f"did you mean {near[0]}? " if near else "")
            + f"there are {', '.join(recipe_names())}; or give the path of a .toml file",
        )
    try:
        return title, tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(
            f"the recipe is not TOML: {error}", where=str(name), remedy="correct it"
        ) from None
