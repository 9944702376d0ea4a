"""A run and its report in words and tables, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinese_llama_lab.ceval.questions import LETTERS
from chinese_llama_lab.ceval.report import CHANCE, Report


def show_settings(settings: Mapping[str, Any]) -> str:
    """How it was asked: everything that moves a score, in a few lines."""
    adapters = settings.get("adapters") or []
    shots = f"{settings.get('shots')} shots" + (", chain of thought" if settings.get("cot") else "")
    lines = [
        f"questions  {settings.get('question_set')}: {settings.get('questions', 0):,}, sha256 "
        f"{str(settings.get('questions_sha256'))[:12]}",
        f"model      {settings.get('model')} ({_weights(settings)}"
        + (f", adapter {', '.join(adapters)}" if adapters else "")
        + f"), sha256 {str(settings.get('model_sha256'))[:12]}",
        f"prompt     {settings.get('prompt')}, {shots}, subject names: {settings.get('names')}",
    ]
    if settings.get("method") == "generation":
        lines.append(f"answers    written, at most {settings.get('max_new_tokens')} tokens, and extracted")
    for number, some in enumerate(settings.get("letters") or []):
        forms = "; ".join(
            f"{one['form']} "
            + ", ".join(
                f"{letter} = {token!r} ({ids})"
                for letter, token, ids in zip(LETTERS, one["tokens"], one["ids"], strict=True)
            )
            for one in some
        )
        lines.append(f"{'answers    logits of ' if number == 0 else '           elsewhere '}{forms}")
    return "\n".join(lines)


def _weights(settings: Mapping[str, Any]) -> Any:
    """The dtype or the kind of quantization. An 8-bit config has the 4-bit keys too, at their defaults."""
    config = settings.get("quantization") or {}
    if config.get("load_in_8bit"):
        return "int8"
    if config.get("load_in_4bit"):
        return config["bnb_4bit_quant_type"] + ("-double" if config["bnb_4bit_use_double_quant"] else "")
    return config.get("quant_method") or settings.get("dtype")


def show_report(report: Report) -> str:
    """Tables of all scores, the lines of knowing nothing, letters, and what else a reader has to know."""
    names = (*LETTERS, "none")
    chosen, right = (
        ", ".join(f"{name} {counts[name]:,}" for name in names if name in LETTERS or counts[name])
        for counts in (report.predicted, report.gold)
    )
    whole = report.part("all")
    confidence = f"{100 * report.confidence:g} %"
    subjects = report.table("subject")
    lines = [
        # The lines of knowing nothing come once, below the table of all.
        repr(replace(subjects, rows=subjects.rows[:-2])),
        "",
        repr(report.table("all", "hard", "category")),
        "",
        f"letters chosen: {chosen}; right: {right}",
        "by question: each question counts the same; by subject: each subject does (C-Eval's own average)",
        f"intervals: {confidence}, Wilson's, questions independent; other prompts move a score by more",
    ]
    notes = {
        "got fewer shots than asked for: the context is too short": report.fewer_shots,
        "have two letters of one logit, the first was taken (16 bits round; see fp32)": report.tied,
        "have no answer that could be extracted, and count as wrong": whole.unextracted,
    }
    lines += [f"{count:,} of {whole.questions:,} questions {what}" for what, count in notes.items() if count]
    estimate = whole.average_by_question
    if estimate.low <= CHANCE <= estimate.high:
        lines.append("chance lies within the interval: this run does not tell the model from guessing")
    return "\n".join(lines)
