"""Merge LoRA adapters into a base: W ← W + α/r · BA, any chain of them, a few rows of one matrix at a time.

Neither the model nor a shard is ever in memory as a whole: a safetensors file is a header that says where
each tensor lies, so that the merged one can be written in order while the base is read in slices. All
arithmetic is in float32 and rounded once, at the end of the chain.

What an adapter may hold: low-rank pairs (α/r, or α/√r with rsLoRA; DoRA's magnitudes; ranks and alphas by
pattern), rows of new tokens (`trainable_token_indices`), and whole matrices (`modules_to_save`), which may
have more rows than the base: LLaMA 32,000 → Chinese-LLaMA 49,953 → Chinese-Alpaca 49,954. Anything else is
refused rather than left out, since a merge that leaves something out still looks like a model.

Where the parts are: `merging/base.py` the base's tensors, `settings.py` and `adapter.py` one adapter,
`checks.py` and `tying.py` whether they belong together, `samples.py` whether it is the base that the adapter
was trained on, `arithmetic.py` what is computed, `shards.py` and `identity.py` what is written.

Source: Hu et al., arXiv 2106.09685; rsLoRA 2312.03732; DoRA 2402.09353;
`scripts/merge_llama_with_chinese_lora.py` of ymcui/Chinese-LLaMA-Alpaca, whose faults (α/r fixed, `.bin`
alone, success without writing) are not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chinese_llama_lab.merging.adapter import Adapter
from chinese_llama_lab.merging.arithmetic import Chain
from chinese_llama_lab.merging.base import EMBEDDING, Base
from chinese_llama_lab.merging.files import AdapterError
from chinese_llama_lab.merging.identity import MADE_OF, choose_tokenizer, made_of, write_identity
from chinese_llama_lab.merging.samples import check_samples, weight_samples
from chinese_llama_lab.merging.shards import DTYPES, write_shards
from chinese_llama_lab.merging.tying import settle
from chinese_llama_lab.paths import atomic_folder
from chinese_llama_lab.sources.index import sha256_of

__all__ = ["DTYPES", "MADE_OF", "AdapterError", "MergeReport", "merge_adapters", "weight_samples"]


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        out: the merged model's folder. dtype: of its weights.
        changed: for each adapter, the number of tensors it took part in. unchanged: names of the adapters
            after which every value is what it was before.
        rows: of the embedding. tied: whether embedding and head are one matrix.
        made_of: file -> sha256 of everything that went in; also in `made_of.json`.
    """

    out: Path
    dtype: str
    changed: tuple[int, ...]
    unchanged: tuple[str, ...]
    rows: int
    tied: bool
    made_of: Mapping[str, Any] = field(repr=False)


def merge_adapters(
    base: Path, adapters: Sequence[Path], out: Path, *, dtype: str = "bfloat16", untie: bool = False
) -> MergeReport:
    """Write the model that base and adapters, applied in this order, amount to.

    Args:
        base: folder with `config.json` and safetensors weights, not quantized.
        adapters: folders as peft saves them (or of a run of `pretrain`, which holds one in `adapter/`). Each
            was trained on what those before it amount to.
        out: folder to write; must not exist. It has the base's shards, its config and generation config, and
            the tokenizer of the last adapter that brings one, else the base's.
        dtype: of the result: float32, bfloat16 or float16.
        untie: where the base ties embedding and head and an adapter trained them apart, untie them.

    Returns: MergeReport. Peak memory is that of some rows of one matrix; the files are read through the
        system's cache.

    Raises: AdapterError: vocabulary or shape mismatch, missing or unknown keys, NaN or infinity, a quantized
        base, pickles, an adapter that says it was trained on another base, one adapter twice, a tied pair
        that was trained apart, a value that the dtype cannot hold, a full disk. `out` is then not there.
    """
    if isinstance(adapters, str | Path):
        raise AdapterError("adapters is one path", remedy="give a list, in the order they were trained in")
    base, out = Path(base), Path(out)
    given = [Path(path) for path in adapters]
    if dtype not in DTYPES:
        raise AdapterError(f"there is no dtype {dtype!r}", remedy=f"use one of {', '.join(DTYPES)}")
    if not given:
        raise AdapterError("there is no adapter to merge", remedy="give at least one adapter folder")
    if out.exists():
        raise AdapterError("the folder exists already", where=str(out), remedy="give a new folder")
    with ExitStack() as stack:
        weights = Base(base, stack)
        chain = Chain(weights, [Adapter(path, stack) for path in given])
        _check_apart(out, weights, chain.adapters)
        shapes, untied = settle(weights, chain.adapters, untie=untie)
        for number in range(len(given)):
            check_samples(chain, number, shapes, untied=untied)
        rows = shapes[EMBEDDING][0] if EMBEDDING in shapes else None
        tokenizer = choose_tokenizer(base, chain.adapters, rows)
        try:
            with atomic_folder(out) as part:
                write_shards(part, weights.plan(untied=untied), shapes, chain, dtype)
                write_identity(part, weights, shapes, dtype, untied=untied, tokenizer=tokenizer)
                hashes = made_of(weights, chain.adapters, tokenizer[0], dtype)
                (part / MADE_OF).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise AdapterError(
                f"the merged model could not be written: {error.strerror or error}",
                where=str(out),
                remedy="make room on the disk, or give another folder",
            ) from error
    return MergeReport(
        out=out,
        dtype=dtype,
        changed=tuple(len(names) for names in chain.changed),
        unchanged=tuple(a.name for a, moved in zip(chain.adapters, chain.moved, strict=True) if not moved),
        rows=rows or 0,
        tied=weights.tied and not untied,
        made_of=hashes,
    )


def _check_apart(out: Path, base: Base, adapters: Sequence[Adapter]) -> None:
    """Inputs are not written into, and no adapter was trained on a base that holds it already."""
    for folder in (base.folder, *(adapter.folder for adapter in adapters)):
        if out.resolve().is_relative_to(folder.resolve()):
            raise AdapterError(
                f"the folder to write lies inside {folder}, which is merged",
                where=str(out),
                remedy="give a folder beside it",
            )
    seen: dict[str, Adapter] = {}
    for adapter in adapters:
        first = seen.setdefault(sha256_of(adapter.path), adapter)
        if first is not adapter:
            adapter.refuse(
                f"its weights are those of {first.name}, which is in the chain already",
                "give every adapter once, in the order they were trained in",
            )
