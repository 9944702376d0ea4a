"""Everything an adapter holds against the shapes that the chain has reached before it.

Half an adapter is only a warning in peft, and so is one for another base. Here both are refused: what the
config names must be there, and what is there must be named.
"""

from __future__ import annotations

from collections.abc import Mapping

from chinese_llama_lab.merging.adapter import Adapter
from chinese_llama_lab.merging.base import EMBEDDING, HEAD

Shapes = dict[str, list[int]]


def check_adapter(adapter: Adapter, shapes: Shapes, *, tied: bool) -> Shapes:
    """Check one adapter, and settle which rows it trains.

    Args:
        adapter: its `indices` are filled in.
        shapes: tensor -> shape before this adapter. tied: whether embedding and head are one matrix there.

    Returns: the shapes after it: embedding and head may have grown.

    Raises: AdapterError: made for another base, incomplete, or holding what its config does not name.
    """
    for name in [*adapter.pairs, *adapter.whole, *adapter.rows]:
        if name not in shapes:
            adapter.refuse(f"the base has no {name}", _other(adapter))
    _check_pairs(adapter, shapes)
    _check_updates_complete(adapter, shapes)
    after = dict(shapes)
    for name, key in adapter.whole.items():
        shape = adapter.shape(key)
        grows = name in (EMBEDDING, HEAD) and shape[1:] == shapes[name][1:] and shape[0] > shapes[name][0]
        if shape != shapes[name] and not grows:
            adapter.refuse(f"{name} has shape {shape}, and the base {shapes[name]}", _other(adapter))
        after[name] = shape
    _check_saved_complete(adapter, shapes)
    _settle_rows(adapter, after, tied=tied)
    return after


def check_rows_of_run(adapter: Adapter, shapes: Mapping[str, list[int]]) -> None:
    """A run of this package says how many rows its base had."""
    had = adapter.about.get("rows")
    if had is not None and EMBEDDING in shapes and had != shapes[EMBEDDING][0]:
        adapter.refuse(
            f"it was trained on a base with {had} rows, and this one has {shapes[EMBEDDING][0]}",
            "give the base it was trained on (after `extend_embeddings`)",
        )


def _other(adapter: Adapter) -> str:
    named = f" (its config names {adapter.settings.base})" if adapter.settings.base else ""
    return f"this adapter was made for another base; give that one{named}"


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _check_pairs(adapter: Adapter, shapes: Shapes) -> None:
    for name, pair in adapter.pairs.items():
        if len(shapes[name]) != 2:
            adapter.refuse(f"{name} is no matrix", _other(adapter))
        height, width = shapes[name]
        a, b = adapter.shape(pair.a), adapter.shape(pair.b)
        if len(a) != 2 or len(b) != 2 or (b[0], a[1]) != (height, width) or a[0] != b[1]:
            adapter.refuse(
                f"{name} has shape {height} × {width} in the base, and its update {b} × {a}", _other(adapter)
            )
        rank = adapter.settings.rank_of(_module(name))
        if a[0] != rank:
            adapter.refuse(
                f"the update of {name} has rank {a[0]}, and by its config {rank}",
                "config and weights are of two adapters; save the adapter again",
            )
        if pair.magnitude and adapter.shape(pair.magnitude) not in ([height], [height, 1], [1, height]):
            adapter.refuse(
                f"the magnitudes of {name} have shape {adapter.shape(pair.magnitude)}", _other(adapter)
            )


def _check_updates_complete(adapter: Adapter, shapes: Shapes) -> None:
    wanted = [
        name
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and adapter.settings.targets(_module(name))
    ]
    missing = [name for name in wanted if name not in adapter.pairs]
    if missing:
        adapter.refuse(
            f"{len(missing)} of {len(wanted)} updates are missing, such as that of {missing[0]}",
            f"save the adapter again, all of it; or {_other(adapter)}",
        )
    odd = sorted(adapter.pairs.keys() - set(wanted))
    if odd:  # peft would leave them out
        adapter.refuse(
            f"it has {len(odd)} updates that its config does not name, such as that of {odd[0]}",
            "mend target_modules in its config, or save the adapter again",
        )


def _check_saved_complete(adapter: Adapter, shapes: Shapes) -> None:
    wanted = [name for name in shapes if adapter.settings.saves(_module(name))]
    missing = [name for name in wanted if name not in adapter.whole]
    if missing:
        adapter.refuse(
            f"modules_to_save is {', '.join(adapter.settings.modules_to_save)}, and {missing[0]} is missing"
            f" ({len(missing)} of {len(wanted)})",
            "save the adapter again, all of it",
        )


def _settle_rows(adapter: Adapter, shapes: Shapes, *, tied: bool) -> None:
    table = adapter.settings.token_rows
    for module, indices in table.items():
        names = [n for n, s in shapes.items() if len(s) == 2 and _module(n).endswith(module)]
        if not names:
            adapter.refuse(f"the base has no {module}, whose new rows it trains", _other(adapter))
        for name in names:
            # peft keeps the rows of a tied pair once.
            shared = tied and name == HEAD and EMBEDDING in adapter.rows and indices in table.values()
            if name in adapter.rows:
                adapter.indices[name] = indices
            elif not shared:
                adapter.refuse(f"the new rows of {module} are missing", "save the adapter again, all of it")
    if tied and HEAD in adapter.rows and EMBEDDING in adapter.indices:
        adapter.indices.setdefault(HEAD, adapter.indices[EMBEDDING])
    for name, key in adapter.rows.items():
        shape, indices = adapter.shape(key), adapter.indices.get(name, [])
        if len(shape) != 2 or len(indices) != shape[0]:
            adapter.refuse(
                f"{name} has new rows of shape {shape}, and its config names {len(indices)} tokens",
                "save the adapter again",
            )
        if shape[1] != shapes[name][1]:
            adapter.refuse(
                f"the new rows of {name} are {shape[1]} wide, and the base {shapes[name][1]}", _other(adapter)
            )
        if indices and max(indices) >= shapes[name][0]:
            adapter.refuse(
                f"it trains token {max(indices)}, and the base has {shapes[name][0]} rows",
                "this adapter was made for the base after `extend_embeddings`; give that one",
            )
