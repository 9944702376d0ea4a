"""`export_gguf`: a LLaMA model folder as one GGUF file for llama.cpp, with its weights and its tokenizer.

A tensor at a time is read, converted and written; the file moves into place when it is whole. Where the parts
are: `gguf_config.py` the model's numbers, `gguf_tensors.py` names, row order and kinds, `gguf_tokenizer.py`
the vocabulary.

Source: `docs/gguf.md` of ggml, `conversion/llama.py` of llama.cpp; the writer is the `gguf` package's.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from chinese_llama_lab.inference.gguf_config import GgufError, Shape, read_shape, refuse_other_models
from chinese_llama_lab.inference.gguf_tensors import (
    FILE_TYPES,
    KINDS,
    encoded,
    gguf_name,
    kind_of,
)
from chinese_llama_lab.inference.gguf_tokenizer import Vocabulary, read_tokenizer
from chinese_llama_lab.merging.base import EMBEDDING, HEAD, Base
from chinese_llama_lab.merging.files import AdapterError, read_json
from chinese_llama_lab.paths import atomic_file

__all__ = ["KINDS", "GgufError", "GgufReport", "export_gguf"]


@dataclass(frozen=True)
class GgufReport:
    """What an export wrote.

    Attributes:
        out: the file. kind: as asked for. bytes: its size.
        tensors: kind -> number of tensors written in it.
        not_quantized: matrices that stayed float16 because their rows are no multiple of 32.
        tokens: in the vocabulary, which has the embedding's rows.
        tokenizer: `SentencePiece`, or byte-level BPE and llama.cpp's name of the way in which it cuts text.
        tied: whether the embedding serves as head (there is no output tensor then).
        notes: what the reader should know.
    """

    out: Path
    kind: str
    bytes: int
    tensors: dict[str, int]
    not_quantized: tuple[str, ...]
    tokens: int
    tokenizer: str
    tied: bool
    notes: tuple[str, ...]

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.tensors.items())
        lines = [
            f"{self.out}: {self.bytes / 1e6:.1f} MB ({self.bytes / 2**20:.1f} MiB)",
            f"tensors: {kinds}{'; the embedding is the head' if self.tied else ''}",
            f"vocabulary: {self.tokens} tokens, {self.tokenizer}",
        ]
        if self.not_quantized:
            stayed = f"{len(self.not_quantized)} matrices, such as {self.not_quantized[0]}"
            lines.append(f"left in float16, their rows being no multiple of 32: {stayed}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def export_gguf(folder: str | Path, out: str | Path, *, kind: str = "f16") -> GgufReport:
    """Write a merged or base LLaMA model for llama.cpp.

    Args:
        folder: `config.json`, safetensors in float32, bfloat16 or float16, and a tokenizer (SentencePiece BPE
            or byte-level BPE) as `tokenizer.json` or `tokenizer.model`.
        out: the file to write, `….gguf`; must not exist.
        kind: of the matrices: f32, f16, bf16, or q8_0 (8.5 bits a weight). Norms are always float32.

    Returns: GgufReport. Peak memory: the largest tensor in its new kind (the embedding), beside what
        transformers and the tokenizer need.

    Rows without a token (padding) are named `[PAD…]` and marked unused. A tied pair is written once.

    Raises: GgufError: another architecture, a quantized model, an adapter that is not merged, no tokenizer,
        more tokens than rows, a tokenizer that llama.cpp would not follow, NaN, a value that does not fit, an
        unknown kind, or an `out` that exists.
    """
    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    _refuse_arguments(folder, out, kind)
    try:
        with ExitStack() as stack:
            config = read_json(folder / "config.json", missing=_missing(folder))
            refuse_other_models(config, folder)
            shape = read_shape(folder)
            base = Base(folder, stack)
            names = _names(base)
            vocabulary = read_tokenizer(folder, base.shapes[EMBEDDING][0], config)
            kinds = {name: kind_of(base.shapes[name], kind) for name in names}
            with atomic_file(out) as temporary:
                _write(temporary, base, kinds, shape, vocabulary, kind)
    except AdapterError as error:  # of files that merging opens too
        raise GgufError(error.what, where=error.where, remedy=error.remedy) from error
    except OSError as error:
        raise GgufError(
            f"the file could not be written: {error.strerror or error}",
            where=str(out),
            remedy="free some space, or choose another place; nothing was left behind",
        ) from error
    stayed = [name for name, given in kinds.items() if kind == "q8_0" and given == "f16"]
    return GgufReport(
        out=out,
        kind=kind,
        bytes=out.stat().st_size,
        tensors=dict(Counter(kinds.values())),
        not_quantized=tuple(stayed),
        tokens=len(vocabulary.tokens),
        tokenizer="SentencePiece" if vocabulary.model == "llama" else f"byte-level BPE ({vocabulary.pre})",
        tied=base.tied,
        notes=tuple(vocabulary.notes),
    )


def _refuse_arguments(folder: Path, out: Path, kind: str) -> None:
    if kind not in KINDS:
        raise GgufError(f"there is no kind {kind!r}", remedy=f"use one of {', '.join(KINDS)}")
    if out.suffix != ".gguf":
        raise GgufError(
            f"{out.name} does not end in .gguf", where=str(out), remedy="readers go by the name: add .gguf"
        )
    if out.exists():
        raise GgufError("the file exists", where=str(out), remedy="choose another name, or remove it first")
    if not folder.is_dir():
        raise GgufError("there is no such folder", where=str(folder), remedy="give a merged or base model's")
    if (folder / "adapter_config.json").is_file():
        raise GgufError(
            "the folder holds an adapter, and only whole models are exported",
            where=str(folder),
            remedy="merge it into its base first: `chinese-llama-lab merge-adapters`",
        )


def _missing(folder: Path) -> str:
    if (folder / "adapter" / "adapter_config.json").is_file():
        return "this is the folder of a training run, which holds an adapter: merge it into its base first"
    return "the folder has no config.json"


def _names(base: Base) -> list[str]:
    """The tensors to write, in order; the head of a tied pair is not among them."""
    found = [
        name
        for name in base.shapes
        if not name.endswith("rotary_emb.inv_freq") and not (base.tied and name == HEAD)
    ]
    unknown = [name for name in found if gguf_name(name) is None]
    if unknown or EMBEDDING not in found:
        raise GgufError(
            f"llama.cpp has no name for {len(unknown)} of its tensors, such as {unknown[0]}"
            if unknown
            else f"it has no tensor {EMBEDDING}",
            where=str(base.folder),
            remedy="save it with transformers' `save_pretrained`, as LlamaForCausalLM",
        )
    return found


def _write(
    path: Path, base: Base, kinds: dict[str, str], shape: Shape, vocabulary: Vocabulary, kind: str
) -> None:
    import numpy as np
    from gguf import (
        GGML_QUANT_VERSION,
        GGMLQuantizationType,
        GGUFWriter,
        LlamaFileType,
        quant_shape_to_byte_shape,
    )

    writer = GGUFWriter(path, "llama")
    try:
        writer.add_type("model")
        writer.add_name(base.folder.resolve().name)
        writer.add_file_type(LlamaFileType[FILE_TYPES[kind]])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        shape.write(writer)
        writer.add_vocab_size(len(vocabulary.tokens))
        vocabulary.write(writer)
        if shape.frequency_factors is not None:
            factors = shape.frequency_factors.numpy()
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        for name, given in kinds.items():
            number = GGMLQuantizationType[KINDS[given]]
            size = tuple(base.shapes[name])
            if given in ("f32", "f16"):
                numbers = np.dtype(np.float32 if given == "f32" else np.float16)
            else:
                numbers, size = np.dtype(np.uint8), quant_shape_to_byte_shape(size, number)
            writer.add_tensor_info(
                gguf_name(name), size, numbers, int(np.prod(size)) * numbers.itemsize, raw_dtype=number
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if shape.frequency_factors is not None:
            writer.write_tensor_data(factors)
        for name, given in kinds.items():
            writer.write_tensor_data(encoded(base, name, given, shape))
    finally:
        writer.close()
