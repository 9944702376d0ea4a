"""Writing safetensors in order: 8 bytes that say how long the header is, the header, the tensors.

The header gives every tensor's place, so that a file can be written before its tensors are known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chinese_llama_lab.merging.arithmetic import Chain
from chinese_llama_lab.merging.base import FLOATS
from chinese_llama_lab.merging.files import AdapterError

DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}
_BYTES = {"I64": 8, "BOOL": 1}  # buffers: they stay as they are


def write_shards(
    folder: Path,
    plan: Mapping[str, Sequence[str]],
    shapes: Mapping[str, Sequence[int]],
    chain: Chain,
    dtype: str,
) -> None:
    """Write the tensors of the result.

    Args:
        folder: where to. plan: file -> its tensors, in order. shapes: tensor -> shape of the result.
        dtype: of floating-point tensors.

    Raises: AdapterError: NaN, infinity, or a value that the dtype cannot hold.
    """
    total = sum(_write(folder / filename, names, shapes, chain, dtype) for filename, names in plan.items())
    if list(plan) == ["model.safetensors"]:
        return
    table = {
        "metadata": {"total_size": total},
        "weight_map": {name: filename for filename, names in plan.items() for name in names},
    }
    text = json.dumps(table, indent=1, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _write(
    path: Path, names: Sequence[str], shapes: Mapping[str, Sequence[int]], chain: Chain, dtype: str
) -> int:
    """Returns the bytes of its tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        kind = chain.base.kinds[name]
        kind, size = DTYPES[dtype] if kind in FLOATS else (kind, _BYTES[kind])
        end = offset + math.prod(shapes[name]) * size
        header[name] = {"dtype": kind, "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for begin, rows in chain.blocks(name, shapes[name]):
                stream.write(_bytes(name, begin, rows, chain, dtype))
    return offset


def _bytes(name: str, begin: int, rows: Any, chain: Chain, dtype: str) -> Any:
    import torch

    if rows.is_floating_point():
        rounded = rows.to(getattr(torch, dtype))
        if not torch.isfinite(rounded).all():
            fits = not torch.isfinite(rows).all()
            raise AdapterError(
                f"{name} {'holds NaN or infinity' if fits else f'does not fit {dtype}'} (rows from {begin})",
                where=str(chain.base.folder),
                remedy="merge into bfloat16 or float32, or check the base",
            )
        rows = rounded
    return rows.contiguous().reshape(-1).view(torch.uint8).numpy().data
