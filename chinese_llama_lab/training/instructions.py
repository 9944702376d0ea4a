"""Instruction rows: read, rendered, tokenised, the prompt masked.

Two faults of the published script are not repeated here. It masks the prompt and then cuts prompt + answer at
`max_seq_length`, so that a long row loses its EOS or has no label left at all; and it tokenises prompt and
answer apart, so that the answer's first token is one the model never sees when it generates.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chinese_llama_lab.sources.textfiles import check_text_file
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.templates import check_template, render_prompt

IGNORED = -100  # the label that transformers' loss leaves out

TOO_LONG = ("cut", "refuse")
HISTOGRAM_STEP = 64  # tokens


@dataclass(frozen=True)
class Instruction:
    """One row: what is asked, further material (may be empty), the answer, where it stood, its category."""

    instruction: str
    input: str
    output: str
    where: str = ""
    category: str = ""


@dataclass(frozen=True)
class Example:
    """One row as token ids; `labels` are the same ids with the prompt as -100. `row` counts from 0."""

    input_ids: list[int]
    labels: list[int]
    row: int
    characters: int  # of the answer


@dataclass(frozen=True)
class EncodedInstructions:
    """What became of the rows.

    Attributes:
        examples: the rows that are trained on, in their order.
        cut: rows whose prompt lost text. refused: row number -> reason.
        histogram: lower end of a range of 64 tokens -> number of rows, before anything was cut.
    """

    examples: list[Example]
    cut: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    histogram: dict[int, int] = field(default_factory=dict)

    def refuse_nothing(self) -> None:
        """Raise TrainingError if a row was left out: where every row counts, as in an evaluation."""
        for row, reason in self.refused.items():
            raise TrainingError(
                f"row {row} was left out: {reason}",
                where="instructions",
                remedy="shorten it, or leave it out",
            )

    def __repr__(self) -> str:
        reasons = Counter(self.refused.values())
        listed = "; ".join(f"{count} refused: {reason}" for reason, count in sorted(reasons.items()))
        lengths = ", ".join(f"{low}–{low + HISTOGRAM_STEP - 1}: {n}" for low, n in self.histogram.items())
        head = f"{len(self.examples)} rows, {len(self.cut)} with a shortened prompt"
        return f"{head}{'; ' + listed if listed else ''}\ntokens: {lengths}"


def read_instructions(path: Path) -> list[Instruction]:
    """Rows of a JSON array or of JSON lines, with `instruction`, `output` and, if there is one, `input`.

    Raises:
        TrainingError: a line that is not JSON, a row that is no object, lacks `instruction` or `output`, or
            holds something else than text: the line (or row) is named.
        TextError: no such file, or one that may not be read.
    """
    path = Path(path)
    check_text_file(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise TrainingError(
            f"{path.name} is not UTF-8", where=f"{path}, line {line}", remedy="convert it to UTF-8"
        ) from None
    if text.lstrip()[:1] == "[":
        rows = [
            instruction_row(row, f"{path}, row {n}") for n, row in enumerate(_parsed(text, path), start=1)
        ]
    else:
        rows = []
        # Only "\n" ends a line of JSON lines: U+0085 and U+2028 may stand inside a string.
        for number, entry in enumerate(text.split("\n"), start=1):
            if entry.strip():
                rows.append(instruction_row(_parsed(entry, path, number), f"{path}, line {number}"))
    if not rows:
        raise TrainingError(
            "there are no instructions", where=str(path), remedy="give a file with rows in it"
        )
    return rows


def instruction_row(row: Any, where: str = "") -> Instruction:
    """Check one mapping and make it an Instruction.

    Raises: TrainingError naming the place, the key and what it holds. Earlier turns (`history`) and a
        `system` prompt are refused where they hold something: without them the answer answers another
        question.
    """
    if isinstance(row, Instruction):
        _check_text(row, where)
        return row
    if not isinstance(row, Mapping):
        raise TrainingError(
            f"a row is {type(row).__name__}, not an object with instruction, input and output",
            where=where,
            remedy='write {"instruction": "…", "input": "", "output": "…"}',
        )
    for key in ("instruction", "output"):
        if key not in row:
            raise TrainingError(
                f"a row has no {key!r}: it has {', '.join(map(repr, row)) or 'nothing'}",
                where=where,
                remedy=f"add {key!r}, or leave the row out",
            )
    for key in ("instruction", "input", "output"):
        if not isinstance(row.get(key, ""), str):
            value = "null" if row[key] is None else f"{row[key]!r}"
            raise TrainingError(
                f"{key!r} is {value}, and must be text", where=where, remedy="write a string, or leave it out"
            )
    if not row["instruction"].strip():
        raise TrainingError("'instruction' is empty", where=where, remedy="write one, or leave the row out")
    for key in ("history", "system"):
        if row.get(key):
            raise TrainingError(
                f"a row has {key!r}, which is not trained on",
                where=where,
                remedy="put what the answer needs into the instruction, or leave the row out",
            )
    category = row.get("category", "")
    found = Instruction(
        row["instruction"],
        row.get("input", ""),
        row["output"],
        where,
        category if isinstance(category, str) else "",
    )
    _check_text(found, where)
    return found


def _check_text(row: Instruction, where: str) -> None:
    for key in ("instruction", "input", "output"):
        try:
            getattr(row, key).encode("utf-8")
        except UnicodeEncodeError as error:
            raise TrainingError(
                f"{key!r} holds a lone surrogate, U+{ord(error.object[error.start]):04X}, at {error.start}",
                where=where,
                remedy="correct the text: half of a character has no UTF-8 form",
            ) from None


def _parsed(text: str, path: Path, line: int | None = None) -> Any:
    """One JSON value; `line` is where it stands, if it is a line."""
    at = line
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problem, at = f"{error.msg} (column {error.colno})", at or error.lineno
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        problem = str(error)
    raise TrainingError(
        f"a line is not JSON: {problem}",
        where=f"{path}, line {at or 1}",
        remedy="correct the line; one object a line, or one array for the whole file",
    )


def special_strings(tokenizer: Any) -> list[str]:
    """What a tokenizer reads as one of its special tokens wherever it stands in a text, such as `</s>`."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *(t.content for t in added if t.special)]))


def encode_pair(tokenizer: Any, prompt: str, answer: str, *, plain: bool = False) -> tuple[list[int], int]:
    """Ids of BOS (where the tokenizer adds one) + prompt + answer + EOS, and how many belong to the prompt.

    Args:
        tokenizer: a transformers tokenizer with an EOS token.
        prompt, answer: texts.
        plain: whether `</s>` and the like in them are text; False for a prompt that a chat template wrote.

    Both are tokenised as one text, since a tokenizer may join a prompt's last characters with the answer's
    first (`：` + `A`). What the prompt alone and the whole have in common is the prompt; a token that spans
    both belongs to the answer, whose label it is.
    """
    whole = tokenizer.encode(prompt + answer, add_special_tokens=False, split_special_tokens=plain)
    alone = tokenizer.encode(prompt, add_special_tokens=False, split_special_tokens=plain)
    start = bos_before(tokenizer, whole)
    common = 0
    for one, other in zip(whole, alone, strict=False):
        if one != other:
            break
        common += 1
    return [*start, *whole, tokenizer.eos_token_id], len(start) + common


def bos_ids(tokenizer: Any) -> list[int]:
    """`[bos]` where the tokenizer itself starts a text so (LLaMA), else nothing (SmolLM2, Qwen)."""
    # Not of an empty text: one that ends in EOS begins with it, and EOS may be BOS.
    first = tokenizer.encode("a", add_special_tokens=True)[:1]
    return [tokenizer.bos_token_id] if first == [tokenizer.bos_token_id] and first != [None] else []


def bos_before(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """`bos_ids`, but nothing where a chat template wrote BOS already (Llama-2 and 3, Gemma, Mistral do)."""
    start = bos_ids(tokenizer)
    return [] if list(ids[:1]) == start else start


def encode_instructions(
    rows: Iterable[Instruction | Mapping[str, Any]],
    template: str,
    tokenizer: Any,
    *,
    max_length: int = 512,
    too_long: str = "cut",
    mask_prompt: bool = True,
) -> EncodedInstructions:
    """Render, tokenise and mask rows.

    Args:
        rows: Instructions, or mappings with `instruction`, `output` and maybe `input`.
        template: see `templates.py`.
        tokenizer: a transformers tokenizer with an EOS token.
        max_length: tokens, BOS and EOS included.
        too_long: `cut` shortens first the input and then the instruction, from their ends, until the row
            fits; the template, the answer and EOS stay whole. `refuse` leaves such a row out. Either way a
            row whose answer alone is too long is refused: half an answer teaches the model to stop nowhere.
        mask_prompt: False trains on the prompt too (chapter 05 shows what that does).

    Returns: EncodedInstructions. A row whose answer is empty has no label and is refused. `</s>` and the like
        in a row are text; under the chat template, which is written in such tokens, the row is refused.

    Raises: TrainingError: no row is left, an impossible option, a tokenizer without EOS, a malformed row.
    """
    check_template(template, tokenizer)
    if too_long not in TOO_LONG:
        raise TrainingError(f"too_long is {too_long!r}", remedy=f"use one of {', '.join(TOO_LONG)}")
    if max_length < 2:
        raise TrainingError(f"max_length is {max_length}", remedy="use at least 2 tokens")
    if tokenizer.eos_token_id is None:
        raise TrainingError("the tokenizer has no EOS token", remedy="set tokenizer.eos_token")
    examples: list[Example] = []
    cut: list[int] = []
    refused: dict[int, str] = {}
    lengths: Counter[int] = Counter()
    specials = special_strings(tokenizer) if template == "chat" else []
    for number, given in enumerate(rows):
        row = instruction_row(given, f"row {number}")
        if not row.output.strip():
            refused[number] = "no answer, so no label"
            continue
        inside = [s for s in specials if s in row.instruction or s in row.input or s in row.output]
        if inside:
            refused[number] = f"holds {inside[0]!r}, which the chat template gives a meaning"
            continue
        prompt = render_prompt(template, row.instruction, row.input, tokenizer=tokenizer)
        ids, masked = encode_pair(tokenizer, prompt, row.output, plain=template != "chat")
        lengths[len(ids) // HISTOGRAM_STEP * HISTOGRAM_STEP] += 1
        if len(ids) > max_length:
            if too_long == "refuse":
                refused[number] = f"longer than {max_length} tokens"
                continue
            shorter = _shorten(row, template, tokenizer, max_length)
            if shorter is None:
                refused[number] = f"the answer does not fit {max_length} tokens"
                continue
            ids, masked = shorter
            cut.append(number)
        labels = [IGNORED] * masked + ids[masked:] if mask_prompt else list(ids)
        examples.append(Example(ids, labels, number, len(row.output)))
    found = EncodedInstructions(examples, cut, refused, dict(sorted(lengths.items())))
    if not examples:
        reasons = Counter(refused.values()).most_common()
        raise TrainingError(
            "no row is left to train on: "
            + ("; ".join(f"{n} of {len(refused)}: {why}" for why, n in reasons) or "there was none"),
            where="instructions",
            remedy="give rows with answers, or raise max_length",
        )
    return found


def _shorten(row: Instruction, template: str, tokenizer: Any, limit: int) -> tuple[list[int], int] | None:
    """The longest beginning of the input, and then of the instruction, with which the row fits."""

    def attempt(instruction: str, input: str) -> tuple[list[int], int] | None:
        prompt = render_prompt(template, instruction, input, tokenizer=tokenizer)
        ids, masked = encode_pair(tokenizer, prompt, row.output, plain=template != "chat")
        return (ids, masked) if len(ids) <= limit else None

    def longest(text: str, least: int, build: Any) -> tuple[list[int], int] | None:
        low, high, best = least, len(text) - 1, build(text[:least])
        if best is None:
            return None
        while low < high:  # the most characters that fit; tokens grow with characters, nearly always
            middle = (low + high + 1) // 2
            found = build(text[:middle])
            if found is None:
                high = middle - 1
            else:
                low, best = middle, found
        return best

    if row.input:
        found = longest(row.input, 0, lambda text: attempt(row.instruction, text))
        if found is not None:
            return found
    return longest(row.instruction, 1, lambda text: attempt(text, ""))


def pad_batch(examples: Sequence[Example], pad: int) -> dict[str, list[list[int]]]:
    """Right-padded lists of shape (rows, longest): `input_ids`, `labels` and `attention_mask`."""
    longest = max(len(example.input_ids) for example in examples)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for example in examples:
        gap = longest - len(example.input_ids)
        batch["input_ids"].append(example.input_ids + [pad] * gap)
        batch["labels"].append(example.labels + [IGNORED] * gap)
        batch["attention_mask"].append([1] * len(example.input_ids) + [0] * gap)
    return batch
