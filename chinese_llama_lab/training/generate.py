"""Answer a question, streamed, in the template that the model was trained with, over several turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event, Thread
from typing import Any

from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.instructions import bos_before
from chinese_llama_lab.training.templates import render_prompt


def stream_answer(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    template: str | None = "chat",
    history: Sequence[tuple[str, str]] = (),
    system: str | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 0.9,
    repetition_penalty: float = 1.1,
    seed: int = 0,
) -> Iterator[str]:
    """Pieces of the answer, as the model writes them.

    Args:
        model: a transformers causal language model or a peft model.
        tokenizer: its tokenizer.
        text: what is asked; with `template = None` the text to go on with.
        template, history, system: see `render_prompt`.
        max_new_tokens: at most so many. Generation also ends at EOS.
        temperature: 0 takes the likeliest token each time; otherwise tokens are drawn, by `seed`.
        top_p, repetition_penalty: as in transformers; top_p only where tokens are drawn.

    Raises: TrainingError: a prompt that leaves no room in the model's context, or an impossible option.
    """
    import torch
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    if max_new_tokens < 1 or temperature < 0:
        raise TrainingError(
            f"max_new_tokens is {max_new_tokens} and temperature {temperature}",
            remedy="use max_new_tokens of 1 or more and temperature of 0 or more",
        )
    prompt = (
        text
        if template is None
        else render_prompt(template, text, tokenizer=tokenizer, history=history, system=system)
    )
    # As in training: what looks like `</s>` in a question is text, unless the template is written in such.
    plain = template in ("v1", "alpaca") or (template == "v2" and not history)
    ids = tokenizer.encode(prompt, add_special_tokens=False, split_special_tokens=plain)
    ids = [*bos_before(tokenizer, ids), *ids]
    if not ids:
        raise TrainingError("the prompt is empty", remedy="write something")
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and len(ids) >= limit:
        raise TrainingError(
            f"the prompt has {len(ids)} tokens and the model reads {limit}",
            remedy="ask something shorter, or begin a new conversation",
        )
    room = max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids))
    block = torch.tensor([ids], device=model.device)
    options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        options = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    failed: list[BaseException] = []
    left = Event()

    def no_longer_read(input_ids: Any, scores: Any, **others: Any) -> Any:
        return torch.full((len(input_ids),), left.is_set(), device=input_ids.device)

    def work() -> None:
        try:
            own = [block.device] if block.is_cuda else []
            with torch.random.fork_rng(own):  # a run that asks its model meanwhile keeps its dropout
                torch.manual_seed(seed)
                model.generate(
                    input_ids=block,
                    attention_mask=torch.ones_like(block),
                    streamer=streamer,
                    max_new_tokens=room,
                    repetition_penalty=repetition_penalty,
                    pad_token_id=pad,
                    eos_token_id=tokenizer.eos_token_id,
                    stopping_criteria=StoppingCriteriaList([no_longer_read]),
                    **options,
                )
        except BaseException as error:
            failed.append(error)
            streamer.end()

    was_training = model.training
    model.eval()
    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        left.set()  # the reader may have had enough
        thread.join()
        model.train(was_training)
    if failed:
        raise failed[0]


def answer(model: Any, tokenizer: Any, text: str, **options: Any) -> str:
    """The whole answer; options as in `stream_answer`."""
    return "".join(stream_answer(model, tokenizer, text, **options))
