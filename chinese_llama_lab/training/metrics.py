"""Bits per character: how well a model predicts text, comparable across tokenizers.

Perplexity per token is not: a tokenizer with longer tokens has fewer, harder predictions. The sum over
tokens of -log2 p is what the whole text costs, whatever it was cut into; divided by its characters it can
be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from chinese_llama_lab.errors import TextError
from chinese_llama_lab.tokenization.base import utf8_lengths
from chinese_llama_lab.tokenization.fertility import iterate_texts
from chinese_llama_lab.tokenization.start import ids_before


@dataclass(frozen=True)
class BitsPerCharacter:
    """The sum of token costs in nats, the tokens scored and the characters (code points) they spell."""

    nats: float
    tokens: int
    characters: int

    @property
    def bits_per_character(self) -> float:
        """nats / ln 2 / characters."""
        return self.nats / math.log(2) / self.characters

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens), per token: do not compare it across tokenizers."""
        return math.exp(self.nats / self.tokens)


def bits_per_character(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    *,
    window: int = 512,
    stride: int | None = None,
    head_rows: int = 128,
    start: str | None = None,
) -> BitsPerCharacter:
    """Score texts, each from its beginning, every token exactly once.

    Each text is preceded by the BOS token (EOS where the tokenizer has none), so that its first token has a
    probability too. That is right for a model that has read BOS before its texts, as LLaMA has. The BOS of
    SmolLM2-Instruct opens a turn of a conversation: behind it the model expects a role, and a short text
    costs it far more than behind the end of a line (`start="\\n"`).

    A text longer than `window` is scored in windows that start every `stride` tokens; a token is scored in
    the first window that holds it, so it has at least `window - stride` tokens of context.

    Args:
        model: a transformers causal language model; it is put into eval mode and back.
        tokenizer: its tokenizer.
        texts: what to score; empty strings cost nothing and are counted as nothing.
        window: context length in tokens, at most the model's `max_position_embeddings`.
        stride: by default half the window.
        head_rows: rows of logits computed at once: at 50,000 pieces all rows of a window would need 100 MB.
        start: what stands before each text instead of BOS; it is not scored.

    Returns: BitsPerCharacter.

    Raises: TextError if there is no character to score, the tokenizer has neither BOS nor EOS, or `start` is
        no token or more than half a window.
    """
    stride = stride or window // 2
    if not 0 < stride < window:
        raise TextError(f"The stride is {stride} and the window {window}.", remedy="Use 0 < stride < window.")
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and window > limit:
        # transformers accepts longer sequences in silence and returns noise.
        raise TextError(
            f"The window is {window} and the model reads {limit}.", remedy=f"Use window <= {limit}."
        )
    before = ids_before(tokenizer, start, window // 2)
    was_training = model.training
    model.eval()
    nats, tokens, characters = 0.0, 0, 0
    try:
        with torch.inference_mode():
            for number, text in enumerate(iterate_texts(texts)):
                utf8_lengths([text], first=number)  # names the text that holds a lone surrogate
                # What looks like a special token is text here too, as it was in training.
                ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
                if ids:
                    nats += _nats(model, [*before, *ids], len(before), window, stride, head_rows)
                    tokens += len(ids)
                characters += len(text)
    finally:
        model.train(was_training)
    if not characters or not tokens:
        raise TextError(
            "There is no text to score.", where="texts", remedy="Give at least one text that is not empty."
        )
    return BitsPerCharacter(nats, tokens, characters)


def _nats(model: Any, ids: list[int], given: int, window: int, stride: int, head_rows: int) -> float:
    """Cost of all ids but the first `given`, each given what is before it in its window."""
    body, head = model.get_decoder(), model.get_output_embeddings()
    total = 0.0
    for begin, scored, end in windows(len(ids), window, stride, given):
        block = torch.tensor([ids[begin:end]], device=model.device)
        hidden = body(input_ids=block, use_cache=False).last_hidden_state[0]
        # Position p predicts token p + 1.
        rows = hidden[scored - 1 - begin : end - 1 - begin]
        targets = block[0, scored - begin :]
        total += _cost(head, rows, targets, head_rows)
    return total


def windows(length: int, window: int, stride: int, given: int = 1) -> Iterator[tuple[int, int, int]]:
    """(begin, first to be scored, end) of windows that score every id but the first `given` exactly once."""
    begin, scored = 0, given
    while scored < length:
        end = min(begin + window, length)
        yield begin, scored, end
        begin, scored = begin + stride, end


def _cost(head: Any, hidden: torch.Tensor, targets: torch.Tensor, head_rows: int) -> float:
    """Sum of the cross-entropies in nats, `head_rows` positions at a time."""
    total = 0.0
    for at in range(0, len(targets), head_rows):
        logits = head(hidden[at : at + head_rows]).float()
        loss = torch.nn.functional.cross_entropy(logits, targets[at : at + head_rows], reduction="sum")
        total += float(loss.double())
    return total


def answer_bits(
    model: Any, tokenizer: Any, rows: Iterable[Any], template: str, *, head_rows: int = 128
) -> BitsPerCharacter:
    """What the answers of instruction rows cost, given their prompts; EOS is scored, and is no character.

    Args:
        rows: as for `encode_instructions`; one that does not fit the model's context is an error.
        template: what the prompts are rendered in; it need not be the one that the model was trained with.

    Raises: TrainingError: as `encode_instructions`, or a row that is too long.
    """
    from chinese_llama_lab.training.instructions import IGNORED, encode_instructions

    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    encoded = encode_instructions(rows, template, tokenizer, max_length=limit, too_long="refuse")
    encoded.refuse_nothing()
    was_training = model.training
    model.eval()
    nats, tokens, characters = 0.0, 0, 0
    try:
        with torch.inference_mode():
            for example in encoded.examples:
                begin = next(n for n, label in enumerate(example.labels) if label != IGNORED)
                nats += _nats_of(model, example.input_ids, begin, head_rows)
                tokens += len(example.input_ids) - begin
                characters += example.characters
    finally:
        model.train(was_training)
    return BitsPerCharacter(nats, tokens, characters)


def _nats_of(model: Any, ids: list[int], begin: int, head_rows: int) -> float:
    """Cost of ids[begin:] given all before them, in one window."""
    block = torch.tensor([ids], device=model.device)
    hidden = model.get_decoder()(input_ids=block, use_cache=False).last_hidden_state[0]
    return _cost(model.get_output_embeddings(), hidden[begin - 1 : -1], block[0, begin:], head_rows)
