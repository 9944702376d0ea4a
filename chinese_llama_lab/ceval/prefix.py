"""Read a prefix once, and questions behind it many at a time; the head looks at last tokens alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from chinese_llama_lab.ceval.attention import Packed, Prefix, see_before

# Below this, a prefix of its own (one more pass through the model) costs more than it saves.
WORTH_SHARING = 16


def common_start(contexts: Sequence[Sequence[int]]) -> int:
    """How many ids at the start are the same in all contexts; at least one is left to each.

    Of one context nothing is shared. Of ids, not of text: a tokenizer may join characters across the border
    between prefix and question, and then the last token before it differs from question to question.
    """
    if len(contexts) < 2:
        return 0
    # What the first and the last in alphabetical order share, all share.
    ordered = sorted(map(tuple, contexts))
    low, high = ordered[0], ordered[-1]
    limit = min(map(len, contexts)) - 1
    shared = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), limit)
    shared = min(shared, limit)
    return shared if shared >= WORTH_SHARING else 0


def read_prefix(model: Any, ids: Sequence[int], room: int) -> Prefix:
    """Keys and values of a prefix, with room for a question of `room` tokens behind it.

    The model has to be in `packed_questions`.
    """
    prefix = Prefix(len(ids), room)
    _run(model, [ids], 0, Packed([(0, len(ids))], into=prefix))
    return prefix


def read_last(model: Any, tails: Sequence[Sequence[int]], prefix: Prefix | None) -> Any:
    """Logits behind the last token of each tail: [tails, vocabulary], float32.

    Args:
        model: in `packed_questions`.
        tails: what comes behind the prefix, of at most `prefix.room` tokens each.
        prefix: from `read_prefix`, or None.
    """
    segments, behind = [], 0
    for tail in tails:
        segments.append((behind, behind + len(tail)))
        behind += len(tail)
    before, mask = 0, None
    if prefix is not None:
        before = prefix.length
        mask = see_before(before, max(map(len, tails)), prefix.keys[0])
    return _run(model, tails, before, Packed(segments, prefix, mask)).float()


def _run(model: Any, rows: Sequence[Sequence[int]], before: int, packed: Packed) -> Any:
    import torch

    device = model.device
    places = [torch.arange(before, before + len(row)) for row in rows]
    ends = torch.tensor([behind - 1 for _, behind in packed.segments], device=device)
    with torch.no_grad(), _last_layer_at(model, ends):
        return model(
            input_ids=torch.tensor([[token for row in rows for token in row]], device=device),
            position_ids=torch.cat(places)[None].to(device),
            logits_to_keep=ends,
            use_cache=False,
            packed=packed,
        ).logits[0]


@contextmanager
def _last_layer_at(model: Any, ends: Any) -> Iterator[None]:
    """Behind the last layer's attention only last tokens matter: its feed-forward part reads no others."""
    feed_forward = model.get_decoder().layers[-1].mlp

    def choose(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0][:, ends],)

    def spread(_: Any, given: tuple[Any, ...], output: Any) -> Any:
        whole = output.new_zeros(1, int(ends[-1]) + 1, output.shape[2])
        whole[:, ends] = output
        return whole

    hooks = [feed_forward.register_forward_pre_hook(choose), feed_forward.register_forward_hook(spread)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
