"""Is this the base that the adapter was trained on? A few values of every weight, compared as numbers.

A hash would say yes or no, and "no" already where the same base was loaded in another dtype. Values can be
compared up to rounding. What a quantized base rounds away (its linear layers) is not sampled, so that an
adapter of a QLoRA run fits its unquantized base; embedding, norms and head are. Along a chain an adapter is
compared with what those before it amount to, which also tells the right order from a wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from chinese_llama_lab.merging.adapter import Adapter
from chinese_llama_lab.merging.arithmetic import Chain
from chinese_llama_lab.merging.base import EMBEDDING, HEAD

SAMPLES = "samples"  # in run.json
_ROWS, _COLUMNS = 2, 4
# A bfloat16 has 8 bits of precision; a base may be rounded twice, when it is saved and when it is loaded.
_RELATIVE, _ABSOLUTE = 2.0**-7, 1e-6


def places(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Which values are looked at: (row, position in the row), spread over the tensor."""
    height, width = shape[0], math.prod(shape[1:])
    rows, columns = (_ROWS, _COLUMNS) if len(shape) > 1 else (_ROWS * _COLUMNS, 1)
    return [
        ((2 * i + 1) * height // (2 * rows), (2 * j + 1) * width // (2 * columns))
        for i in range(rows)
        for j in range(columns)
    ]


def weight_samples(model: Any) -> dict[str, str]:
    """What a run keeps of its base.

    Args:
        model: a transformers model, before the adapter is put around it.

    Returns: parameter -> eight values of it, with four digits. Left out: parameters without values (on the
        meta device) and quantized ones. Of a tied pair only the embedding is there.
    """
    found = {}
    for name, p in model.named_parameters():
        packed = getattr(p, "quant_state", None) is not None or type(p).__name__ in (
            "Params4bit",
            "Int8Params",
        )
        if packed or not p.is_floating_point() or p.device.type == "meta" or not p.numel() or not p.dim():
            continue
        flat = p.detach().reshape(p.shape[0], -1)
        values = [float(flat[row, column]) for row, column in places(p.shape)]
        found[name] = " ".join(f"{value:.4g}" for value in values)
    return found


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Names of weights whose samples differ by more than rounding, or that only one of the two has."""
    found = []
    for name in sorted({*one, *other}):
        pairs = zip(one.get(name, "nan").split(), other.get(name, "nan").split(), strict=False)
        if not all(_alike(float(a), float(b)) for a, b in pairs):
            found.append(name)
    return found


def _alike(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


def check_samples(chain: Chain, number: int, shapes: dict[str, list[int]], *, untied: bool) -> None:
    """Compare the samples in an adapter's run.json with the chain before it; without samples, nothing.

    Raises: AdapterError: the adapter was trained on another base.
    """
    adapter = chain.adapters[number]
    said = adapter.about.get(SAMPLES)
    if said is None:
        return
    different, first, count = 0, "", 0
    for name, kept in said.items():
        source = EMBEDDING if name == HEAD and chain.base.tied and not untied else name
        if source not in shapes:
            _refuse(adapter, f"it was trained on a base with a {name}, and this one has none")
        if source in adapter.whole:
            continue  # its own copy replaces whatever is there
        for (row, column), value in zip(places(shapes[source]), _numbers(adapter, name, kept), strict=True):
            if row in adapter.indices.get(source, ()):
                continue
            here = float(chain.rows(source, row, row + 1, before=number).flatten()[column])
            count += 1
            if not _alike(here, value):
                different, first = different + 1, first or f"{name} ({here:.4g} here, {value:.4g} there)"
    if different:
        _refuse(
            adapter,
            f"it was trained on another base: {different:,} of {count:,} sampled weights differ, as {first}",
        )


def _numbers(adapter: Adapter, name: str, kept: Any) -> list[float]:
    try:
        numbers = [float(value) for value in kept.split()]
    except (AttributeError, ValueError):
        numbers = []
    if len(numbers) != _ROWS * _COLUMNS:
        adapter.refuse(f"its run.json says {kept!r} of {name}", "copy the folder of the run again")
    return numbers


def _refuse(adapter: Adapter, what: str) -> None:
    named = f" ({adapter.about['base']})" if adapter.about.get("base") else ""
    adapter.refuse(
        what,
        f"give the base it was trained on{named}, and before it the adapters that were merged into that one,"
        " in order; or that merged model itself",
    )
