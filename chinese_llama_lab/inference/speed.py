"""Tokens and characters per second: prefill and decoding apart, with spread, memory and the hardware's limit.

Tokens per second do not compare two vocabularies: a longer one says the same in fewer tokens. Characters per
second do: tokens per second times the characters per token of a reference text.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import torch

from chinese_llama_lab.inference.bandwidth import Bandwidth, SpeedError, step_bytes, synchronize
from chinese_llama_lab.inference.decode import check_room, unwrapped
from chinese_llama_lab.inference.engines import ENGINES, engine, greedy_without_end
from chinese_llama_lab.inference.process_memory import forget_peak, give_back, resident
from chinese_llama_lab.inference.speed_rows import Speed, SpeedRow, Times


@lru_cache(maxsize=1)
def reference_text() -> str:
    """Chinese news that nothing in the course trains on: 40 held-out texts of the People's Daily."""
    from chinese_llama_lab.sources.corpora import load_corpus

    return "\n".join(load_corpus("peoples-daily").chinese_punctuation().split("held-out").sample(40).texts())


def encoded(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text without BOS or EOS.

    Raises: SpeedError: a text that gives no tokens.
    """
    # Not verbose: a reference text longer than the model's context is no mistake.
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    if not ids:
        raise SpeedError("the text gives no tokens", where="text", remedy="give a text that is not empty")
    return [int(number) for number in ids]


def characters_per_token(tokenizer: Any, text: str) -> float:
    """Code points of the text over its tokens.

    Raises: SpeedError: a text that gives no tokens.
    """
    return len(text) / len(encoded(tokenizer, text))


@contextmanager
def peak_memory(device: Any) -> Iterator[list[int]]:
    """The list holds, after the block, the bytes at its highest: on the GPU, or of the process.

    On a processor that is the resident memory of the whole process: Python, libraries and all models that
    are loaded, beside what the block takes. What was freed before the block does not count: it is given back
    to the system first, where the C library can do that (`give_back`). Linux lets a process reset its own
    peak; where that cannot be done the peak since its start counts.
    """
    found: list[int] = []
    graphics = torch.device(device).type == "cuda"
    if graphics:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        give_back()
        with suppress(OSError):  # the peak since the start is then what is left
            forget_peak()
    yield found
    found.append(int(torch.cuda.max_memory_allocated(device)) if graphics else _resident_peak())


def _resident_peak() -> int:
    try:
        return resident("VmHWM")
    except (OSError, RuntimeError):
        import psutil

        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))  # Windows knows a peak, macOS only the present


class _Clock:
    """A stopping criterion that never stops, but notes when the first and the last token came."""

    def __init__(self, prompt: int, new_tokens: int) -> None:
        self.first_at, self.last_at = prompt + 1, prompt + new_tokens
        self.first = self.last = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **others: Any) -> torch.Tensor:
        if input_ids.shape[1] in (self.first_at, self.last_at):
            synchronize(input_ids.device)
            self.last = time.perf_counter()
            if input_ids.shape[1] == self.first_at:
                self.first = self.last
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _generate_once(model: Any, ids: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    from transformers import StoppingCriteriaList

    clock = _Clock(ids.shape[1], new_tokens)
    with greedy_without_end(model):
        synchronize(ids.device)
        started = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    return clock.first - started, clock.last - clock.first


def _steps_once(chosen: Any, ids: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    synchronize(ids.device)
    started = time.perf_counter()
    tokens = chosen.start(ids, new_tokens)
    synchronize(ids.device)
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        tokens = chosen.step(tokens)
    synchronize(ids.device)
    return first - started, time.perf_counter() - first


def measure_speed(
    model: Any,
    tokenizer: Any,
    *,
    prompt: str | None = None,
    prompt_tokens: int = 64,
    new_tokens: int = 64,
    batches: Sequence[int] = (1,),
    repeats: int = 5,
    warm_up: int = 1,
    engine_name: str = "generate",
    text: str | None = None,
    bandwidth: Bandwidth | float | None = None,
    name: str = "",
) -> Speed:
    """Measure prefill and decoding of a model, on the device where it is.

    Args:
        model: a causal language model of transformers, any dtype, quantized or not; or a peft model.
        tokenizer: its own.
        prompt: a text to go on with; None takes `prompt_tokens` tokens of `text`, over again if it is short.
            All sequences of a batch get the same prompt, so there is no padding.
        new_tokens: decoded greedily; EOS stops nothing. At least 2: the first belongs to the prefill.
        batches: numbers of sequences at once.
        repeats: of prefill and decoding together, each timed apart. warm_up: runs before, not counted.
        engine_name: `generate` (default), `forward`, `static`, `compiled` or `fast` (see `engines.py`).
        text: what characters per token are counted on; None takes `reference_text()`, which is Chinese.
        bandwidth: of `memory_bandwidth`, or bytes per second: gives the limit and the share of it.
        name: of the model, for the table.

    Returns: a Speed with a row a batch size.

    Raises: SpeedError: sizes that are impossible, more tokens than the model's context, a text that gives no
        tokens, an unknown engine, or a model that the engine does not know.
    """
    if new_tokens < 2 or repeats < 1 or warm_up < 0 or not batches or min(batches) < 1 or prompt_tokens < 1:
        raise SpeedError(
            f"new_tokens {new_tokens}, prompt_tokens {prompt_tokens}, batches {list(batches)}, repeats "
            f"{repeats}, warm_up {warm_up}",
            where="measure_speed",
            remedy="use 2 new tokens or more, no warm-up below 0, and 1 or more of the rest",
        )
    if engine_name not in ENGINES:
        raise SpeedError(
            f"there is no engine {engine_name!r}",
            where="engine_name",
            remedy=f"use one of {', '.join(ENGINES)}",
        )
    text = reference_text() if text is None else text
    density = characters_per_token(tokenizer, text)
    if prompt is not None:
        ids = encoded(tokenizer, prompt)
    else:
        ids = encoded(tokenizer, text)
        ids = (ids * -(-prompt_tokens // len(ids)))[:prompt_tokens]
    inner = unwrapped(model)
    check_room(inner, len(ids), new_tokens)
    was_training = inner.training
    inner.eval()
    try:
        chosen = None if engine_name == "generate" else engine(inner, engine_name)
        rows = []
        for batch in batches:
            block = torch.tensor([ids] * batch, device=inner.device)
            times = []
            with peak_memory(inner.device) as peak:
                for _ in range(warm_up + repeats):
                    times.append(
                        _generate_once(inner, block, new_tokens)
                        if chosen is None
                        else _steps_once(chosen, block, new_tokens)
                    )
            rate = bandwidth.bytes_per_second if isinstance(bandwidth, Bandwidth) else bandwidth
            read = step_bytes(inner, context=len(ids) + new_tokens // 2, batch=batch)
            rows.append(
                SpeedRow(
                    name,
                    engine_name,
                    batch,
                    len(ids),
                    new_tokens,
                    Times(tuple(prefill for prefill, _ in times[warm_up:]), batch * len(ids)),
                    Times(tuple(decode for _, decode in times[warm_up:]), batch * (new_tokens - 1)),
                    density,
                    peak[0],
                    None if rate is None else read.limit(rate),
                )
            )
    finally:
        inner.train(was_training)
    return Speed(tuple(rows))
