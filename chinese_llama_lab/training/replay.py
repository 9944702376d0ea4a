"""Replayed text towards the model as it was: its whole distribution of the next token, not one token.

Cross-entropy on replayed English teaches that English text. What is to be kept is the model, and that says
much more at each position: the probability of every piece. So a replayed document can be trained towards the
same model without its adapter, as in learning without forgetting (arXiv 1606.09282), which costs a forward
pass of the replayed tokens alone and no second model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def soft_positions(replayed: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Where the next token belongs to the same replayed document.

    Args:
        replayed: bool (sequences, tokens), whether a token belongs to a replayed document.
        positions: int64, the same shape; they start again at each document.

    Returns: bool (sequences, tokens - 1).
    """
    return replayed[:, :-1] & (positions[:, 1:] == positions[:, :-1] + 1)


class BeforeAdapting:
    """A peft model as it was before its adapter, as a teacher of replayed text.

    Args:
        adapted: a PeftModel. new_tokens: ids that the base does not know; it gives them no probability.
    """

    def __init__(self, adapted: Any, new_tokens: Sequence[int] = ()) -> None:
        self._causal = adapted.get_base_model()
        self._new = torch.tensor(list(new_tokens), dtype=torch.long)
        # `disable_adapter()` looks at every module's state and at every gradient's flag, 0.1 s a call.
        self._switches = [module for module in adapted.modules() if hasattr(module, "_disable_adapters")]

    @contextmanager
    def _switched(self) -> Iterator[None]:
        before = [module._disable_adapters for module in self._switches]
        for module in self._switches:
            module._disable_adapters = True
        try:
            with torch.no_grad():
                yield
        finally:
            for module, value in zip(self._switches, before, strict=True):
                module._disable_adapters = value

    def hidden(
        self, ids: torch.Tensor, positions: torch.Tensor, replayed: torch.Tensor, soft: torch.Tensor
    ) -> torch.Tensor:
        """The last hidden states, (n, width), at the n positions that `soft` marks.

        Args:
            ids, positions: int64 (sequences, tokens). replayed: bool, the same shape. soft: as
                `soft_positions` gives it.
        """
        wanted = torch.zeros_like(replayed)
        wanted[:, :-1] = soft
        # Documents do not see each other, so that those replayed can be read without what lies between them.
        with self._switched():
            output = self._causal.get_decoder()(
                input_ids=ids[replayed][None], position_ids=positions[replayed][None], use_cache=False
            )
        found: torch.Tensor = output.last_hidden_state[0][wanted[replayed]]
        return found

    def chances(self, hidden: torch.Tensor) -> torch.Tensor:
        """Probabilities of the next token, float32 (n, pieces), for hidden states of this teacher."""
        with self._switched():
            logits = self._causal.get_output_embeddings()(hidden).float()
        if len(self._new):
            logits.index_fill_(-1, self._new.to(logits.device), float("-inf"))
        return logits.softmax(-1)
