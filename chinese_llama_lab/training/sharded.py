"""Bits per character of a model whose parameters are spread over processes (FSDP2).

`metrics.bits_per_character` runs the body and the head apart; a sharded model gathers its parameters only
when its outermost forward is called. So the loss of `loss.py` is asked for here, with labels on what is to be
scored. Every process must call this with the same texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from chinese_llama_lab.tokenization.start import ids_before
from chinese_llama_lab.training.instructions import IGNORED
from chinese_llama_lab.training.metrics import BitsPerCharacter, windows


def bits_through_forward(
    model: Any, tokenizer: Any, texts: Iterable[str], *, window: int, start: str | None = None
) -> BitsPerCharacter:
    """The same number as `bits_per_character(…, window=window, start=start)`, under `lean_loss`."""
    before = ids_before(tokenizer, start, window // 2)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    nats, tokens, characters = 0.0, 0, 0
    try:
        with torch.no_grad():
            for text in texts:
                ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
                characters += len(text)
                tokens += len(ids)
                ids = [*before, *ids]
                for begin, scored, end in windows(len(ids), window, window // 2, len(before)):
                    block = torch.tensor([ids[begin:end]], device=device)
                    labels = block.clone()
                    labels[:, : scored - begin] = IGNORED
                    nats += float(model(input_ids=block, labels=labels, num_items_in_batch=1).loss)
    finally:
        model.train(was_training)
    return BitsPerCharacter(nats, tokens, characters)
