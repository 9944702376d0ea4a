"""The prompts that published scores were measured with, exact to the byte.

| style | used for |
|---|---|
| `ceval-official` | C-Eval's own code and table |
| `chinese-llama-alpaca` | the LLaMA models of Chinese-LLaMA-Alpaca and -2: without shots there is no header |
| `chinese-llama-alpaca-v1` | Chinese-Alpaca: the whole prompt is one instruction |
| `chinese-llama-alpaca-v2` | Chinese-Alpaca-2: Llama-2's form; a shot is a turn |
| `chinese-llama-alpaca-chat` | the turns of Llama-3-Chinese-Instruct, in the tokenizer's own chat template |
| `lm-eval` | `ceval-valid` and `cmmlu` of lm-evaluation-harness: ` A` stands behind a space |

A prompt is two strings. `prefix` (header and shots) is the same for all questions of a subject, so that a
model can read it once; `tail` is the question, up to where the answer begins.

With `names="chinese"` the header holds 高等数学; with `names="key"` it holds `advanced_mathematics`, as the
published code of C-Eval and of Chinese-LLaMA-Alpaca 1 and 2 wrote it.

Source: `code/evaluator_series/evaluators/llama.py` of hkust-nlp/ceval; `scripts/ceval/llama_evaluator.py` of
ymcui/Chinese-LLaMA-Alpaca, -2 and -3; `lm_eval/tasks/ceval` and `cmmlu` of EleutherAI/lm-evaluation-harness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.ceval.errors import PromptError, SubjectError
from chinese_llama_lab.ceval.questions import LETTERS, Question

NAMES = ("chinese", "key")
_HEADER = "以下是中国关于{}考试的单项选择题，请选出其中的正确答案。\n\n"
_ANSWER = "\n答案："
_STEPS = "让我们一步一步思考，\n"
_FIRST_STEP = "1."
_V1_BEGIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n"
)
_V1_END = "\n\n### Response: "
_SYSTEM = "You are a helpful assistant. 你是一个乐于助人的助手。"
_V2_BEGIN = f"[INST] <<SYS>>\n{_SYSTEM}\n<</SYS>>\n\n"
_READY = "好的，我会结合{}相关知识回答"


@dataclass(frozen=True)
class Prompt:
    """What a model reads before it answers one question.

    Attributes:
        prefix: header and shots, shared by the questions of a subject.
        tail: the question, up to where the answer begins. `prefix + tail` is the prompt.
        style, cot, names: as asked for.
        shots: how many demonstrations are in it.
        dropped: how many were left out, from the left, because the context is too short.
        writes_bos: the text holds its own BOS, so the tokenizer must not add another.
    """

    prefix: str
    tail: str
    style: str
    shots: int
    cot: bool = False
    names: str = "chinese"
    dropped: int = 0
    writes_bos: bool = False

    @property
    def text(self) -> str:
        """The whole prompt."""
        return self.prefix + self.tail


@dataclass(frozen=True)
class Style:
    """A way to ask.

    Attributes:
        name: what it is called.
        form: how a letter stands behind this prompt in its own shots: `bare` or `spaced`.
        published_form: what the published code looked at, with the tokenizer of LLaMA that it was written
            for; `both` adds the logits of the two forms.
        build: (question, shots, subject name, chain of thought, tokenizer) → prefix, tail.
        cot: whether a chain-of-thought form was published.
    """

    name: str
    form: str
    published_form: str
    build: Callable[[Question, Sequence[Question], str, bool, Any], tuple[str, str]]
    cot: bool = True

    def resolve(self, form: str | None) -> str:
        """The form that is meant: None is this prompt's own, `published` what its code looked at."""
        return self.published_form if form == "published" else form or self.form


def build_prompt(
    style: str,
    question: Question,
    shots: Sequence[Question] = (),
    *,
    cot: bool = False,
    names: str = "chinese",
    tokenizer: Any = None,
) -> Prompt:
    """The prompt for one question.

    Args:
        style: a key of `STYLES`.
        question: what is asked.
        shots: demonstrations, in order; see `choose_shots`.
        cot: chain of thought: shots show their explanation, and the answer begins with a first step. The
            shots of `chinese-llama-alpaca-v2` show the letter alone, as published.
        names: `chinese` or `key`, the subject's name in the header.
        tokenizer: for `chinese-llama-alpaca-chat` alone: whose chat template is used.

    Raises:
        PromptError: unknown style or names, no published chain of thought, no chat template, or a shot
            without the answer or explanation that it has to show.
        SubjectError: the question's subject is in no table.
    """
    form = find_style(style)
    if names not in NAMES:
        raise PromptError(f"names is {names!r}", where="names", remedy=f"use one of {', '.join(NAMES)}")
    if cot and not form.cot:
        able = ", ".join(name for name, other in STYLES.items() if other.cot)
        raise PromptError(
            f"{style} has no chain of thought", where="cot", remedy=f"use cot=False, or one of {able}"
        )
    for shot in shots:
        lacks = "answer" if shot.answer is None else "explanation" if cot and not shot.explanation else ""
        if lacks:
            raise PromptError(
                f"a shot has no {lacks}",
                where=shot.where or f"{shot.subject}, {shot.split}, id {shot.id}",
                remedy="take the shots from dev" + (", or use cot=False" if lacks == "explanation" else ""),
            )
    subject = question.about()
    called = subject.chinese if names == "chinese" else subject.key
    prefix, tail = form.build(question, shots, called, cot, tokenizer)
    bos = getattr(tokenizer, "bos_token", None) if style == "chinese-llama-alpaca-chat" else None
    text = prefix + tail
    return Prompt(
        prefix, tail, style, len(shots), cot, names, writes_bos=bool(bos and text.startswith(str(bos)))
    )


def find_style(name: str) -> Style:
    """The style of this name.

    Raises: PromptError: there is none.
    """
    if name not in STYLES:
        raise PromptError(
            f"there is no prompt style {name!r}", where="style", remedy=f"use one of {', '.join(STYLES)}"
        )
    return STYLES[name]


def choose_shots(dev: Sequence[Question], question: Question, count: int) -> list[Question]:
    """The first `count` demonstrations of the question's subject, in the order of their file.

    Raises: SubjectError: there are fewer, or the question itself is among them.
    """
    if count < 0:
        raise PromptError(f"shots is {count}", where="shots", remedy="use 0 or more")
    key = (question.benchmark, question.subject)
    found = [q for q in dev if (q.benchmark, q.subject) == key and q.split == "dev"][:count]
    if len(found) < count:
        raise SubjectError(
            f"{question.subject} has {len(found)} dev questions, and {count} shots were asked for",
            where=question.where or question.subject,
            remedy=f"add {_dev_file(question)}, or ask for {len(found)} shots",
        )
    if any((q.split, q.id, q.text) == (question.split, question.id, question.text) for q in found):
        raise SubjectError(
            "a question would be shown with its answer before it is asked",
            where=question.where or f"{question.subject}, id {question.id}",
            remedy="score val or test, or use shots=0",
        )
    return found


def _dev_file(question: Question) -> str:
    """Where its benchmark keeps the demonstrations of a subject."""
    own = question.benchmark == "cmmlu"
    return f"dev/{question.subject}.csv" if own else f"dev/{question.subject}_dev.csv"


def _asked(question: Question) -> str:
    return question.text + "".join(
        f"\n{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=True)
    )


def _shown(shot: Question, cot: bool) -> str:
    if cot:
        return f"{_asked(shot)}{_ANSWER}{_STEPS}{shot.explanation}\n所以答案是{shot.answer}。\n\n"
    return f"{_asked(shot)}{_ANSWER}{shot.answer}\n\n"


def _official(question: Question, shots: Sequence[Question], name: str, cot: bool, _: Any) -> tuple[str, str]:
    prefix = _HEADER.format(name) + "".join(_shown(shot, cot) for shot in shots)
    return prefix, _asked(question) + _ANSWER + (_STEPS + _FIRST_STEP if cot else "")


def _base(
    question: Question, shots: Sequence[Question], name: str, cot: bool, tokenizer: Any
) -> tuple[str, str]:
    prefix, tail = _official(question, shots, name, cot, tokenizer)
    return (prefix if shots else ""), tail


def _v1(
    question: Question, shots: Sequence[Question], name: str, cot: bool, tokenizer: Any
) -> tuple[str, str]:
    prefix, _ = _base(question, shots, name, cot, tokenizer)
    return _V1_BEGIN + prefix, _asked(question) + _wanted(cot) + _V1_END


def _wanted(cot: bool) -> str:
    return "\n答案是什么？" + (_STEPS + _FIRST_STEP if cot else " ")


def _v2(question: Question, shots: Sequence[Question], name: str, cot: bool, _: Any) -> tuple[str, str]:
    prefix = ""
    if shots:
        prefix = f"{_V2_BEGIN}{_HEADER.format(name)} [/INST]{_READY.format(name)}"
        prefix += "".join(f"[INST] {_asked(shot)}{_ANSWER}[/INST]{shot.answer}\n" for shot in shots)
    return prefix + _V2_BEGIN, _asked(question) + (_wanted(cot) if cot else _ANSWER) + " [/INST]"


def _chat(
    question: Question, shots: Sequence[Question], name: str, cot: bool, tokenizer: Any
) -> tuple[str, str]:
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(
            "the tokenizer carries no chat template",
            where=str(getattr(tokenizer, "name_or_path", "")) or "tokenizer",
            remedy="pass the tokenizer of a chat model, or use chinese-llama-alpaca-v1 or -v2",
        )

    def render(asked: str) -> str:
        turns = [{"role": "system", "content": _SYSTEM}]
        if shots:
            turns += [
                {"role": "user", "content": _HEADER.format(name)},
                {"role": "assistant", "content": _READY.format(name)},
            ]
        for shot in shots:
            told = f"{_STEPS}{shot.explanation}\n所以答案是{shot.answer}。" if cot else str(shot.answer)
            turns += [
                {"role": "user", "content": _asked(shot) + _ANSWER},
                {"role": "assistant", "content": told},
            ]
        turns.append({"role": "user", "content": ("" if shots else _HEADER.format(name)) + asked})
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text

    text = render(_asked(question) + (_wanted(cot) if cot else _ANSWER))
    # Where the question begins is found with a mark in its place: templates may trim what they are given.
    mark = "\ue000"
    prefix = render(mark).split(mark)[0]
    if not text.startswith(prefix):
        raise PromptError(
            "the chat template puts the last question elsewhere for another question",
            where=str(getattr(tokenizer, "name_or_path", "")) or "tokenizer",
            remedy="use chinese-llama-alpaca-v1 or -v2, or set another tokenizer.chat_template",
        )
    return prefix, text[len(prefix) :]


def _lm_eval(question: Question, shots: Sequence[Question], name: str, cot: bool, _: Any) -> tuple[str, str]:
    header = "以下是中国关于{}的单项选择题，请选出其中的正确答案。\n\n"
    if question.benchmark == "cmmlu":
        header = "以下是关于{}的单项选择题，请直接给出正确答案的选项。\n\n"

    def asked(one: Question) -> str:
        return one.text.strip() + _asked(one)[len(one.text) :] + _ANSWER

    return header.format(name) + "".join(f"{asked(shot)} {shot.answer}\n\n" for shot in shots), asked(
        question
    )


STYLES = {
    style.name: style
    for style in (
        Style("ceval-official", "bare", "spaced", _official),
        Style("chinese-llama-alpaca", "bare", "both", _base),
        Style("chinese-llama-alpaca-v1", "bare", "both", _v1),
        Style("chinese-llama-alpaca-v2", "bare", "both", _v2),
        Style("chinese-llama-alpaca-chat", "bare", "both", _chat),
        Style("lm-eval", "spaced", "spaced", _lm_eval, cot=False),
    )
}
