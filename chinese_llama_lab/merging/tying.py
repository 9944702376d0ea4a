"""Tied pairs along a chain: a pair stays one matrix as long as every adapter treats it as one.

Source: peft 0.21. Rows of new tokens are shared by a tied pair of themselves; a whole copy
(`modules_to_save`) of the embedding leaves the head as it was, unless `ensure_weight_tying` is set.
"""

from __future__ import annotations

from collections.abc import Sequence

from chinese_llama_lab.merging.adapter import Adapter
from chinese_llama_lab.merging.base import EMBEDDING, HEAD, Base
from chinese_llama_lab.merging.checks import Shapes, check_adapter, check_rows_of_run


def settle(base: Base, chain: Sequence[Adapter], *, untie: bool) -> tuple[Shapes, bool]:
    """Check the chain, adapter by adapter.

    Args:
        base: where it begins. chain: adapters in order; what they do to the head is added or removed.
        untie: whether a tied pair that was trained apart may become two matrices.

    Returns: tensor -> shape of the result, and whether a tied pair was untied.

    Raises: AdapterError: see `check_adapter`; or a tied pair that was trained apart.
    """
    shapes, tied = dict(base.shapes), base.tied
    together: list[Adapter] = []
    for adapter in chain:
        after = check_adapter(adapter, shapes, tied=tied)
        if tied and _as_one(adapter):
            together.append(adapter)
            if EMBEDDING in after:
                after[HEAD] = after[EMBEDDING]
        elif tied:
            if not untie:
                adapter.refuse(
                    "it trained embedding and head apart, which are one matrix in the base",
                    "train it with ensure_weight_tying, or merge with untie=True (--untie)",
                )
            tied = False
        elif adapter.settings.ties and _one_sided(adapter):
            adapter.refuse(
                "it was trained on a model that ties embedding and head, and here they are two",
                "give the base it was trained on",
            )
        if EMBEDDING in after and HEAD in after and after[EMBEDDING][0] != after[HEAD][0]:
            adapter.refuse(
                f"with it the embedding has {after[EMBEDDING][0]} rows and the head {after[HEAD][0]}",
                "save the adapter with both in modules_to_save",
            )
        check_rows_of_run(adapter, after)
        shapes = after
    untied = base.tied and not tied
    for adapter in together:
        for table in (adapter.whole, adapter.rows, adapter.indices):
            _share(table, untied=untied)
    return shapes, untied


def _share(table: dict, *, untied: bool) -> None:
    if untied and EMBEDDING in table:
        table[HEAD] = table[EMBEDDING]
    elif not untied:
        table.pop(HEAD, None)


def _one_sided(adapter: Adapter) -> bool:
    return any((EMBEDDING in table) != (HEAD in table) for table in (adapter.whole, adapter.rows))


def _as_one(adapter: Adapter) -> bool:
    """Whether the adapter does to a tied head what it does to the embedding."""
    if HEAD in adapter.pairs or EMBEDDING in adapter.pairs:
        return False
    if EMBEDDING in adapter.whole or HEAD in adapter.whole:
        one, other = adapter.whole.get(EMBEDDING), adapter.whole.get(HEAD)
        if one is None or (other is None and not adapter.settings.ties):
            return False
        if other is not None and not adapter.same(one, other):
            return False
    if HEAD in adapter.rows:
        return (
            EMBEDDING in adapter.rows
            and adapter.indices[EMBEDDING] == adapter.indices[HEAD]
            and adapter.same(adapter.rows[EMBEDDING], adapter.rows[HEAD])
        )
    return True
