"""The prompts that instruction-tuned models were trained with, exact to the byte.

- `v1`: Chinese-Alpaca; an input is joined to the instruction by a line break; ends in a space.
- `v2`: Chinese-Alpaca-2: Llama-2's form with a bilingual system prompt.
- `alpaca`: Stanford Alpaca and alpaca-lora, in two forms, with and without an input.
- `chat`: the chat template that the tokenizer carries.

A model that sees another template than its own answers worse, and says nothing about it; a missing space is
enough. This file does not tokenise: `instructions.py` does.

Source: `scripts/training/run_clm_sft_with_peft.py` of ymcui/Chinese-LLaMA-Alpaca and of
Chinese-LLaMA-Alpaca-2; `templates/alpaca.json` of tloen/alpaca-lora.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chinese_llama_lab.training.errors import TrainingError

TEMPLATES = ("v1", "v2", "alpaca", "chat")

_TASK = "Below is an instruction that describes a task"
_V1 = (
    f"{_TASK}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response: "
)
_V1_NEXT = "\n\n### Instruction:\n{instruction}\n\n### Response: "
_V2_SYSTEM = "You are a helpful assistant. 你是一个乐于助人的助手。"
_V2 = "[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{instruction} [/INST]"
_V2_NEXT = " {eos}{bos}[INST] {instruction} [/INST]"
_ALPACA = (
    f"{_TASK}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_INPUT = (
    f"{_TASK}, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA_NEXT = "\n\n### Instruction:\n{instruction}\n\n### Response:\n"


def check_template(template: str, tokenizer: Any = None) -> None:
    """Raise TrainingError unless `template` is known and, for `chat`, the tokenizer carries one."""
    if template not in TEMPLATES:
        raise TrainingError(
            f"there is no template {template!r}", remedy=f"choose one of {', '.join(TEMPLATES)}"
        )
    if template == "chat" and not getattr(tokenizer, "chat_template", None):
        raise TrainingError(
            "the tokenizer carries no chat template",
            where=str(getattr(tokenizer, "name_or_path", "")) or "tokenizer",
            remedy=f"use one of {', '.join(TEMPLATES[:-1])}, or set tokenizer.chat_template",
        )


def render_prompt(
    template: str,
    instruction: str,
    input: str = "",
    *,
    tokenizer: Any = None,
    history: Sequence[tuple[str, str]] = (),
    system: str | None = None,
) -> str:
    """The text that stands before the answer.

    Args:
        template: `v1`, `v2`, `alpaca` or `chat`.
        instruction: what is asked.
        input: further material; an empty string means none.
        tokenizer: needed for `chat`, and for `v2` with a history (its BOS and EOS strings).
        history: earlier turns as (what was asked, what was answered).
        system: system prompt of `v2` (its own by default) and `chat` (none by default).

    Returns: the prompt. Neither BOS nor EOS is in it, except what the chat template or a `v2` history writes.

    Raises: TrainingError: unknown template, a tokenizer that lacks what it needs, or a system prompt where
        the template has no place for it.
    """
    check_template(template, tokenizer)
    if system is not None and template in ("v1", "alpaca"):
        raise TrainingError(
            f"template {template!r} has no system prompt", where="system", remedy="use v2 or chat, or None"
        )
    joined = f"{instruction}\n{input}" if input else instruction
    if template == "chat":
        messages = [{"role": "system", "content": system}] if system is not None else []
        for asked, answered in history:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": joined})
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text
    if not history:
        return _first(template, instruction, input, system)
    text = _first(template, history[0][0], "", system) + history[0][1]
    turns = [*history[1:], (joined, "")]
    following = {"v1": _V1_NEXT, "v2": _V2_NEXT, "alpaca": _ALPACA_NEXT}[template]
    ends = {"{eos}": "", "{bos}": ""}
    if template == "v2":
        if tokenizer is None or tokenizer.eos_token is None:
            raise TrainingError(
                "template v2 needs the tokenizer's EOS between turns", where="tokenizer", remedy="pass it"
            )
        ends = {"{eos}": tokenizer.eos_token, "{bos}": tokenizer.bos_token or ""}
    for mark, token in ends.items():
        following = following.replace(mark, token)
    for asked, answered in turns:
        text += following.replace("{instruction}", asked) + answered
    return text


def _first(template: str, instruction: str, input: str, system: str | None) -> str:
    # `str.replace` rather than `format`: an instruction may hold braces of its own.
    if template == "v1":
        return _V1.replace("{instruction}", f"{instruction}\n{input}" if input else instruction)
    if template == "v2":
        before, after = _V2.split("{system}")
        after = after.replace("{instruction}", f"{instruction}\n{input}" if input else instruction)
        return before + (system if system is not None else _V2_SYSTEM) + after
    if not input:
        return _ALPACA.replace("{instruction}", instruction)
    before, after = _ALPACA_INPUT.split("{input}")
    return before.replace("{instruction}", instruction) + input + after
