"""What an estimate is for: the options of a run, checked."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import Any

from chinese_llama_lab.inference.errors import EstimateError
from chinese_llama_lab.inference.shapes import MODULES
from chinese_llama_lab.quantization.kinds import FOUR_BIT, PLAIN

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "float8": 1}
QUANTIZATIONS = ("none", "int8", *FOUR_BIT)
CONTEXT = 0.5e9  # the CUDA context, kernels and cuBLAS workspace: 0.3 to 0.6 GB by GPU and driver
_CHOICES: dict[str, tuple[str, ...]] = {
    "task": ("inference", "lora", "qlora", "full"),
    "dtype": ("float32", "bfloat16", "float16"),
    "lora_dtype": ("float32", "bfloat16", "float16"),
    "optimizer_dtype": ("float32", "bfloat16", "int8"),
    "kv_dtype": ("float32", "bfloat16", "float16", "float8"),
    "quantization": QUANTIZATIONS,
    "embeddings": ("frozen", "new-rows", "published"),
    "attention": ("flash", "eager", "lean"),
    "loss": ("full", "shifted", "chunked", "lean"),
    "layers": ("plain", "lean"),
}


@dataclass(frozen=True)
class Settings:
    """Options of `estimate`; the names are those of a recipe where there is one.

    Attributes:
        task: `inference`, `lora`, `qlora` (LoRA over 4 bits), or `full` training.
        dtype: of the weights that are not quantized, and of the arithmetic. Dtypes have their short names
            too: `fp32`, `bf16`, `fp16`.
        quantization: of the linear layers' weights; `fp4` takes the bytes of `nf4`, from another code book.
        quantized: which of them. quantize_head: the head too.
        vocabulary: rows after the extension; 0 leaves the model's.
        rank, targets, dropout, lora_dtype: of LoRA; peft keeps adapters in float32.
        embeddings: `frozen`; `new-rows` trains `new_tokens` rows of embedding and head beside the frozen ones
            (peft's own forward would write a copy of the matrix as well); `published` trains whole copies of
            both (`modules_to_save`), as the original recipe does.
        block: tokens a sequence (for inference: prompt and answer). batch: sequences at once.
        gradient_checkpointing: keep each layer's input alone and compute the layer again.
        offload_checkpoints: those inputs in the machine's memory. compile: fused element-wise operations.
        attention: `flash` keeps no scores; `eager` keeps block × block of them a head; `lean` is that of this
            package's trainer on a CPU in bfloat16 (`chinese_llama_lab.training.lean_attention`), which keeps
            neither their log-sums nor a mask, and keys and values once.
        loss: `full`: logits, and float32 copies; `shifted`: with the copy that transformers before 4.46 made
            to shift them; `chunked`: float32 copies of `loss_rows` positions alone, logits whole; `lean`:
            logits of `loss_rows` positions alone (`chinese_llama_lab.training.loss`).
        layers: `plain`: transformers' with peft's LoRA; `lean`: those of this package's trainer
            (`chinese_llama_lab.training.lean_layers`), where LoRA sits on all linear layers, without dropout.
        masked: packed documents are kept apart by a mask, of which each layer keeps a copy in its own dtype.
        optimizer_dtype: of Adam's two moments. master_weights: a float32 copy beside 16-bit weights (full).
        fused_optimizer: without the temporary copy of torch's default AdamW.
        gradient_accumulation: gradients live on while the next batch is computed.
        keeps_inputs: quantized layers keep their inputs, as bitsandbytes did up to July 2024.
        adapter: for inference: LoRA (and whole copies, if `embeddings = "published"`) is not merged.
        kv_dtype: of the cache; "" for the dtype of the arithmetic. all_logits: logits of every prompt
            position, not of the last alone.
        cuda_context: bytes outside torch's allocator; 0 for a figure that the allocator gives.
    """

    task: str = "inference"
    dtype: str = "bfloat16"
    quantization: str = "none"
    quantized: tuple[str, ...] = MODULES
    quantize_head: bool = False
    vocabulary: int = 0
    rank: int = 8
    targets: tuple[str, ...] = MODULES
    dropout: float = 0.0
    lora_dtype: str = "float32"
    embeddings: str = "frozen"
    new_tokens: int = 0
    block: int = 512
    batch: int = 1
    gradient_checkpointing: bool = False
    offload_checkpoints: bool = False
    compile: bool = False
    attention: str = "flash"
    loss: str = "full"
    loss_rows: int = 128
    layers: str = "plain"
    masked: bool = False
    optimizer_dtype: str = "float32"
    master_weights: bool = False
    fused_optimizer: bool = False
    gradient_accumulation: bool = True
    keeps_inputs: bool = False
    adapter: bool = False
    kv_dtype: str = ""
    all_logits: bool = False
    cuda_context: float = CONTEXT

    def __post_init__(self) -> None:
        if not self.kv_dtype:
            object.__setattr__(self, "kv_dtype", self.dtype)
        for field in ("dtype", "lora_dtype", "optimizer_dtype", "kv_dtype"):
            value = getattr(self, field)
            if isinstance(value, str):
                object.__setattr__(self, field, PLAIN.get(value, value))
        for field, known in _CHOICES.items():
            if getattr(self, field) not in known:
                raise _wrong(field, getattr(self, field), f"one of {', '.join(known)}")
        for field, least in (
            ("vocabulary", 0),
            ("rank", 1),
            ("new_tokens", 0),
            ("block", 1),
            ("batch", 1),
            ("loss_rows", 1),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise _wrong(field, value, f"a whole number of at least {least}")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise _wrong("dropout", self.dropout, "a share from 0 to below 1")
        if not _is_number(self.cuda_context) or not 0 <= self.cuda_context < float("inf"):
            raise _wrong("cuda_context", self.cuda_context, "bytes, 0 or more")
        for field in ("targets", "quantized"):
            unknown = [name for name in getattr(self, field) if name not in MODULES]
            if unknown:
                raise _wrong(field, unknown[0], f"names out of {', '.join(MODULES)}")
        if self.task == "full" and self.quantization != "none":
            raise _wrong("quantization", self.quantization, "none: quantized weights have no gradient")
        if self.embeddings == "new-rows" and not self.new_tokens and self.adapted:
            raise _wrong("new_tokens", 0, "the number of new rows, or embeddings='frozen'")
        if self.layers == "lean" and self.adapted and (set(self.targets) != set(MODULES) or self.dropout):
            raise _wrong("layers", "lean", "plain: lean layers are for LoRA on all linear layers, no dropout")

    @property
    def four_bit(self) -> bool:
        """Whether linear layers are quantized in blocks of 4-bit numbers."""
        return self.quantization in FOUR_BIT

    @property
    def adapted(self) -> bool:
        """Whether LoRA is trained."""
        return self.task in ("lora", "qlora")

    @property
    def tokens(self) -> int:
        """batch × block."""
        return self.batch * self.block


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _wrong(field: str, value: Any, wanted: str) -> EstimateError:
    return EstimateError(f"{field} = {value!r}", where=field, remedy=f"use {wanted}")


def settings(task: str, **options: Any) -> Settings:
    """Checked options; `qlora` without `quantization` means NF4 with double quantization, as v2 trained.

    Raises: EstimateError: an option that does not exist, or a value that it cannot have.
    """
    known = [field.name for field in fields(Settings)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise EstimateError(
                f"there is no option {name!r}", where="options", remedy=f"{hint}known: {', '.join(known)}"
            )
    if task == "qlora":
        options.setdefault("quantization", "nf4-double")
        if str(options["quantization"]) not in FOUR_BIT:
            raise _wrong("quantization", options["quantization"], f"{', '.join(FOUR_BIT)}; or task='lora'")
    for name in ("targets", "quantized"):
        if name in options:
            value = options[name]
            options[name] = (value,) if isinstance(value, str) else tuple(value)
    return Settings(task=task, **options)
