"""A question as a text that a model may have read: what its end costs, and what the model writes there."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.generation import GREEDY
from chinese_llama_lab.ceval.letters import encode
from chinese_llama_lab.ceval.questions import LETTERS, Question

LAYOUTS = ("lines", "csv")


def check_layout(layout: str) -> None:
    """Raise CevalError for a layout that there is none of."""
    if layout not in LAYOUTS:
        raise CevalError(f"layout is {layout!r}", where="layout", remedy=f"use {' or '.join(LAYOUTS)}")


def _row(cells: Sequence[str]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="").writerow(cells)
    return stream.getvalue()


def lay_options(question: Question, layout: str) -> str:
    """The options as they stand behind the question: lines `A. …`, or cells of a row."""
    if layout == "csv":
        return "," + _row(question.options)
    return "".join(f"\n{letter}. {option}" for letter, option in question.option.items())


def lay_question(question: Question, layout: str) -> str:
    """The question as it stands before its options."""
    return _row([question.text]) if layout == "csv" else question.text


def halves(question: Question, layout: str) -> tuple[str, str]:
    """Up to the label of C, and what follows it."""
    if layout == "csv":
        return f"{lay_question(question, layout)},{_row(question.options[:2])},", _row(question.options[2:])
    whole = lay_options(question, layout)
    cut = len("".join(f"\n{letter}. {question.option[letter]}" for letter in LETTERS[:2])) + len("\nC. ")
    return question.text + whole[:cut], whole[cut:]


def fits(model: Any, tokenizer: Any, text: str, room: int) -> bool:
    """Whether a text and `room` tokens more fit into the model's context."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit is None or len(encode(tokenizer, text)) + room <= limit


def border_of(tokenizer: Any, given: str, text: str) -> int:
    """Number of ids that `given` has by itself and together with `text`; at least 1: nothing predicts the
    very first one."""
    alone, joint = encode(tokenizer, given), encode(tokenizer, given + text)
    return max(1, next((n for n, (a, b) in enumerate(zip(alone, joint, strict=False)) if a != b), len(alone)))


def bits_of(model: Any, tokenizer: Any, text: str, start: int) -> float:
    """What a text costs from its token number `start` on, in bits.

    Raises: CevalError: it is not finite.
    """
    import torch

    block = torch.tensor([encode(tokenizer, text)], device=model.device)
    logits = model(input_ids=block).logits[0, start - 1 : -1].float()
    nats = torch.nn.functional.cross_entropy(logits, block[0, start:].to(logits.device), reduction="sum")
    bits = float(nats) / math.log(2)
    if not math.isfinite(bits):
        raise CevalError(
            f"the model's logits are not finite: {bits} bits",
            where=f"{text[:20]}…",
            remedy="load the model in float32 or bfloat16; check that its weights are whole",
        )
    return bits


def write_on(model: Any, tokenizer: Any, given: str, half: str, room: int) -> str:
    """What the model writes behind `given`, the likeliest token each time, `room` tokens."""
    import torch

    alone = encode(tokenizer, given)
    # Where the border falls inside a token, the model gets the tokens before it and writes that one as well.
    start = border_of(tokenizer, given, half)
    context = torch.tensor([alone[:start]], device=model.device)
    output = model.generate(
        input_ids=context,
        attention_mask=torch.ones_like(context),
        max_new_tokens=room + len(alone) - start,
        **GREEDY,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )
    whole: str = tokenizer.decode(output[0], skip_special_tokens=True)
    before: str = tokenizer.decode(alone, skip_special_tokens=True)
    return whole[len(before) :] if whole.startswith(before) else ""


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """A model in eval mode, without gradients, and then as it was."""
    import torch

    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
