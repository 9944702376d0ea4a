"""Scoring a set of questions: the prefix of a subject is read once, and all questions behind it.

The plain scorer (`reference.py`) reads header and shots again for every question: at five shots four fifths
of all tokens. Here they are read once a subject; questions are read end to end behind them, and the head
looks at one token of each. In float32 the logits differ by rounding alone, and so does what is generated,
where two tokens are not as good as equally likely.

Where the parts are: `asked.py` what the model reads, `batching.py` which questions together, `attention.py`
and `prefix.py` how, `generation.py` answers in words, `runs.py` the folder, `processes.py` several of them.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from chinese_llama_lab.ceval import identity
from chinese_llama_lab.ceval.asked import prepare, separate
from chinese_llama_lab.ceval.attention import can_pack
from chinese_llama_lab.ceval.batching import CPU_TOKENS, Group, Sizes, plan, share_out
from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.letters import LetterIds
from chinese_llama_lab.ceval.processes import find_processes
from chinese_llama_lab.ceval.progress import Progress
from chinese_llama_lab.ceval.prompts import find_style
from chinese_llama_lab.ceval.questions import Question, QuestionSet
from chinese_llama_lab.ceval.reading import Reader
from chinese_llama_lab.ceval.reference import METHODS, check_method
from chinese_llama_lab.ceval.runs import Run, RunFolder, key_of

MEMORY_GIB = 1.0


def score(
    model: Any,
    tokenizer: Any,
    questions: QuestionSet | Iterable[Question],
    *,
    prompt: str = "ceval-official",
    shots: int = 5,
    method: str = "logits",
    form: str | None = None,
    cot: bool = False,
    names: str = "chinese",
    dev: Iterable[Question] | None = None,
    max_tokens: int | None = None,
    max_new_tokens: int = 256,
    out: Path | str | None = None,
    resume: bool = False,
    memory_gib: float = MEMORY_GIB,
    batch: int | None = None,
    shared: bool | None = None,
    progress: bool = True,
    name: str | None = None,
    model_name: str | None = None,
) -> Run:
    """Every question's answer.

    Args:
        model: a transformers causal language model in any dtype or quantization, or a peft model.
        tokenizer: its tokenizer.
        questions: what is asked. Those of split dev are not asked; shots are taken from them.
        prompt, cot, names: see `prompts`.
        shots: how many demonstrations; where the context is too short, those on the left are left out.
        method: `logits` (the letter with the highest logit; nothing is drawn) or `generation` (greedy, then
            `extract_answer`; what it does not find counts as not extracted).
        form: `bare`, `spaced`, `both` or `published`, see `reference.score`; None takes the prompt's own.
        dev: where shots are taken from, if not from `questions`, which are then all asked.
        max_tokens: longest prompt; None takes the model's context, less `max_new_tokens` by generation.
        max_new_tokens: by generation, at most so many tokens.
        out: folder for `run.json` and `rows.jsonl`, written as rows come.
        resume: go on with the run in `out`.
        memory_gib: for keys, values, activations and logits of a batch, beside the model (GiB of 2^30 bytes).
            A question that takes more on its own is read alone.
        batch: at most so many questions at a time; None leaves it to memory.
        shared: read prefixes once. None does so where the model's attention allows (`attention.can_pack`).
        progress: show subject, questions per second and accuracy.
        name, model_name: what questions and model are called in `run.json`; None takes the kind of the set,
            and where the model was loaded from.

    Returns: rows in the order of the questions, and the settings.

    Raises:
        CevalError: an unknown method or form, an impossible number, nothing to ask, chain of thought by
            logits, logits that are not finite, no memory.
        RunError: see `RunFolder`.
        PromptError, SubjectError, LetterError: a question that cannot be asked, before any is.
    """
    _check(method, form, cot, shots, max_new_tokens, memory_gib, batch)
    share = can_pack(model) if shared is None else shared
    if share and not can_pack(model):
        raise CevalError(
            f"questions cannot share a prefix in a model of type {model.config.model_type!r}",
            where="shared",
            remedy="use shared=False",
        )
    wanted = find_style(prompt).resolve(form)
    forms = (("bare", "spaced") if wanted == "both" else (wanted,)) if method == "logits" else ()
    limit = max_tokens
    if limit is None:
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and method == "generation":
            limit -= max_new_tokens
            if limit < 1:
                raise CevalError(
                    f"{max_new_tokens} new tokens leave no room for a prompt",
                    where=f"max_new_tokens, context of {limit + max_new_tokens}",
                    remedy="write fewer (--max-new-tokens)",
                )
    listed, shown = separate(questions, dev)
    asked = prepare(
        tokenizer, listed, shown, style=prompt, shots=shots, forms=forms, cot=cot, names=names, limit=limit
    )
    sets = list(dict.fromkeys(tuple(map(_only_letters, one.letters)) for one in asked))
    new_tokens = max_new_tokens if method == "generation" else 0
    settings: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "model": model_name or str(getattr(model.config, "_name_or_path", "")),
        "model_sha256": identity.model_sha256(model),
        "tokenizer_sha256": identity.tokenizer_sha256(tokenizer),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": identity.quantization_of(model),
        "adapters": identity.adapters_of(model),
        "device": model.device.type,
        "question_set": name or getattr(questions, "kind", None),
        "benchmark": listed[0].benchmark,
        "questions": len(asked),
        "questions_sha256": identity.questions_sha256(listed),
        "demonstrations_sha256": identity.demonstrations_sha256(listed, shown, shots),
        "prompt": prompt,
        "shots": shots,
        "cot": cot,
        "names": names,
        "method": method,
        "form": wanted if method == "logits" else None,
        "letters": [[_recorded(ids) for ids in some] for some in sets if some],
        "max_tokens": limit,
        "max_new_tokens": new_tokens or None,
        "shared": share,
        "batch": batch,
        "memory_gib": memory_gib,
        "versions": identity.versions(),
    }
    groups = plan(
        asked,
        Sizes.of(model),
        int(memory_gib * 2**30),
        batch=batch,
        tokens=CPU_TOKENS if model.device.type == "cpu" and method == "logits" else None,
        new_tokens=new_tokens,
        share=share,
    )
    processes = find_processes(model.device)
    folder = RunFolder(
        None if out is None else Path(out),
        settings,
        {one.key: one.prompt_sha256 for one in asked},
        resume=resume,
        processes=processes,
    )
    mine = share_out(groups, processes.count)[processes.rank] if processes.count > 1 else groups
    reader = Reader(model, tokenizer, method, share, max_new_tokens, sets)
    try:
        _work(reader, mine, folder, progress and processes.main)
        return folder.finish()
    finally:
        folder.close()


def _work(reader: Reader, groups: Sequence[Group], folder: RunFolder, show: bool) -> None:
    done = {key_of(row) for row in folder.before}
    own = {one.key for group in groups for batch in group.batches for one in batch}
    before = [row for row in folder.before if key_of(row) in own]
    with Progress(len(own), show, before) as bar, reader:
        for group in groups:
            # A batch of which some rows are there is read whole again: another batch has other roundings.
            left = [batch for batch in group.batches if any(one.key not in done for one in batch)]
            if not left:
                continue
            bar.subject(group.subject)
            prefix = reader.prefix(group)
            for batch in left:
                rows = [row for row in reader.read(batch, prefix) if key_of(row) not in done]
                folder.write(rows)
                bar.add(rows)


def _check(
    method: str, form: str | None, cot: bool, shots: int, new: int, memory: float, batch: int | None
) -> None:
    check_method(method, form, cot)
    for name, number, least in (("shots", shots, 0), ("max_new_tokens", new, 1), ("batch", batch, 1)):
        if number is not None and number < least:
            raise CevalError(f"{name} is {number}", where=name, remedy=f"use {least} or more")
    if not 0 < memory < float("inf"):
        raise CevalError(f"memory_gib is {memory}", where="memory_gib", remedy="use more than 0")


def _only_letters(ids: LetterIds) -> tuple[str, tuple[int, ...], tuple[str, ...], int]:
    return ids.form, ids.ids, ids.tokens, ids.taken


def _recorded(ids: tuple[str, tuple[int, ...], tuple[str, ...], int]) -> dict[str, Any]:
    form, numbers, tokens, taken = ids
    return {"form": form, "ids": list(numbers), "tokens": list(tokens), "taken": taken}


__all__ = ["METHODS", "Run", "score"]
