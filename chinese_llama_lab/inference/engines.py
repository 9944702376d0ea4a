"""Ways to decode under one interface: `start(ids, new_tokens)` and `step(tokens)` return the next tokens.

- `generate`: transformers' own `model.generate`, as most people call it; it has no steps to call
- `forward`: a loop around the model's forward with a growing cache
- `static`: the same loop with a cache of fixed size
- `compiled`: `static` through `torch.compile`, which needs a C++ compiler on a processor and a minute
- `fast`: `decode.FastDecoder`
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from chinese_llama_lab.inference.bandwidth import SpeedError
from chinese_llama_lab.inference.decode import FastDecoder, check_ids, check_room, unwrapped

ENGINES = ("generate", "forward", "static", "compiled", "fast")


class Loop:
    """A loop around the model's forward. `kind` is forward, static or compiled."""

    def __init__(self, model: Any, kind: str = "forward") -> None:
        self.model = unwrapped(model)
        self.name = kind
        self.call = torch.compile(self.model.forward, dynamic=False) if kind == "compiled" else self.model

    @torch.inference_mode()
    def start(self, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """Read prompts [batch, tokens] and return the first new token of each [batch]."""
        from transformers import DynamicCache, StaticCache

        check_ids(ids)
        check_room(self.model, ids.shape[1], new_tokens)
        config = self.model.config
        self.cache: Any = (
            DynamicCache(config=config)
            if self.name == "forward"
            else StaticCache(config=config, max_cache_len=ids.shape[1] + new_tokens)
        )
        return self._next(self.model, ids)

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feed the last tokens [batch] and return the next ones [batch]."""
        return self._next(self.call, tokens[:, None])

    def _next(self, call: Any, ids: torch.Tensor) -> torch.Tensor:
        logits = call(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
        found: torch.Tensor = logits[:, -1].argmax(-1)
        return found


def engine(model: Any, name: str) -> Loop | FastDecoder:
    """An engine with `start` and `step`.

    Raises: SpeedError: an unknown name, or `generate`, which has no steps.
    """
    if name == "fast":
        return FastDecoder(model)
    if name in ("forward", "static", "compiled"):
        return Loop(model, name)
    raise SpeedError(
        f"there is no engine {name!r} with steps", remedy="use forward, static, compiled or fast"
    )


@contextmanager
def greedy_without_end(model: Any) -> Iterator[None]:
    """Within this block `model.generate` is greedy and stops at no EOS; its settings come back afterwards."""
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=before.pad_token_id)
    try:
        yield
    finally:
        model.generation_config = before


def generate(model: Any, ids: torch.Tensor, new_tokens: int, name: str = "forward") -> torch.Tensor:
    """Greedy tokens of an engine, prompts included: [batch, tokens + new_tokens]."""
    if name == "generate":
        inner = unwrapped(model)
        check_room(inner, ids.shape[1], new_tokens)
        with greedy_without_end(inner):
            found: torch.Tensor = inner.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens
            )
        return found
    chosen = engine(model, name)
    tokens = [chosen.start(ids, new_tokens)]
    for _ in range(new_tokens - 1):
        tokens.append(chosen.step(tokens[-1]))
    return torch.cat([ids, torch.stack(tokens, 1)], 1)
