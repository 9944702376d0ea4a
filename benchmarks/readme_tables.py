"""Write what both READMEs take from `results/` anew: each chapter's time, the tables of the shipped model.

    python benchmarks/readme_tables.py

A test holds the READMEs to the same tables.
"""

from __future__ import annotations

import re
from typing import Any

from chinese_llama_lab import results
from chinese_llama_lab.paths import committed_results_dir

NAMES = {
    "README.md": {
        "peoples-daily": "news (People's Daily)",
        "reviews": "reviews",
        "modern": "web news",
        "hsk-zh": "textbook sentences",
        "alpaca-zh": "answers of GPT‑4",
        "three-kingdoms": "三国演义",
        "c4-en": "English web text",
        "wikipedia-en": "English encyclopedia",
    },
    "README.zh.md": {
        "peoples-daily": "新闻（人民日报）",
        "reviews": "图书、酒店与商品评价",
        "modern": "网络新闻",
        "hsk-zh": "课本例句",
        "alpaca-zh": "GPT‑4 的回答",
        "three-kingdoms": "《三国演义》",
        "c4-en": "英文网页",
        "wikipedia-en": "英文百科",
    },
}
PARTS = {
    "README.md": {
        "SmolLM2 as it came": "SmolLM2 as it came",
        "vocabulary alone, random rows": "new tokens with random rows",
        "vocabulary alone, rows from their parts": "new tokens, rows from their parts",
        "LoRA without new tokens": "LoRA, no new tokens",
        "new rows without LoRA": "new rows alone, no LoRA",
        "LoRA and new rows, random start": "LoRA and new rows, random start",
        "course's recipe": "LoRA and new rows, rows from their parts: the recipe",
        "course's recipe, twice the text": "the recipe, twice the text",
        "course's recipe, four times the text": "the recipe, four times the text",
    },
    "README.zh.md": {
        "SmolLM2 as it came": "原始 SmolLM2",
        "vocabulary alone, random rows": "只加词元，新行随机初始化",
        "vocabulary alone, rows from their parts": "只加词元，新行取旧子词元的平均",
        "LoRA without new tokens": "只做 LoRA，不加词元",
        "new rows without LoRA": "只训练新行，不做 LoRA",
        "LoRA and new rows, random start": "LoRA 加新行，新行随机初始化",
        "course's recipe": "LoRA 加新行，新行取平均：完整配方",
        "course's recipe, twice the text": "完整配方，文本加倍",
        "course's recipe, four times the text": "完整配方，四倍文本",
    },
}


def model_rows(names: dict[str, str], rows: list[dict[str, Any]], percent: str) -> list[str]:
    """One line a text: tokens and bits per character, before → after, and the change of the bits."""
    before = {row["text"]: row for row in rows if row["model"] == "smollm2"}
    lines = []
    for row in rows:
        if row["model"] == "smollm2":
            continue
        first = before[row["text"]]
        mark = " †" if str(row["kind_trained_on"]) == "False" else ""
        cells = [
            f"{float(first[key]):.2f} → {float(row[key]):.2f}"
            for key in ("tokens_per_character", "bits_per_character")
        ]
        change = f"{100 * float(row['against_smollm2']):+.1f}{percent}".replace("-", "−")
        lines.append(f"| {names[row['text']]}{mark} | {cells[0]} | {cells[1]} | {change} |")
    return lines


def parts_rows(names: dict[str, str], rows: list[dict[str, Any]]) -> list[str]:
    """One line a run: tokens read, tokens a character, bits a character of news and of English."""
    lines = []
    for row in rows:
        bits = " | ".join(f"{float(row[key]):.2f}" for key in ("tokens_per_character", "zh_bits", "en_bits"))
        lines.append(f"| {names[row['run']]} | {int(row['tokens_read']):,} | {bits} |")
    return lines


def with_table(text: str, mark: str, lines: list[str]) -> str:
    """The text with the table behind a mark replaced; its two head lines stay."""
    before, found, after = text.partition(f"<!-- {mark} -->\n")
    head, _, rest = after.partition("\n\n")
    return before + found + "\n".join([*head.splitlines()[:2], *lines]) + "\n\n" + rest


def with_times(text: str, runs: dict[str, dict[str, Any]]) -> str:
    """The map of chapters with measured minutes and GiB in its last two columns."""

    def line(found: re.Match[str]) -> str:
        row = runs[found[2]]
        seconds = round(float(row["seconds"]))
        return f"{found[1]}{seconds // 60}:{seconds % 60:02d} | {float(row['peak_mib']) / 1024:.1f} |"

    return re.sub(r"^(\| (\d\d) \|.*\| )\d+:\d\d \| [\d.]+ \|$", line, text, flags=re.MULTILINE)


def main() -> int:
    """Both READMEs, in place."""
    folder = committed_results_dir()
    model, parts, course = (
        results.read_table(folder / f"{name}.csv").rows for name in ("zh_model", "zh_parts", "course_runs")
    )
    runs = {f"{int(row['chapter']):02d}": row for row in course}
    for name, names in NAMES.items():
        path = folder.parent / name
        text = with_times(path.read_text(encoding="utf-8"), runs)
        percent = "%" if name == "README.zh.md" else " %"  # Chinese leaves no space
        text = with_table(text, "zh_model", model_rows(names, model, percent))
        text = with_table(text, "zh_parts", parts_rows(PARTS[name], parts))
        path.write_text(text, encoding="utf-8")
        print(f"{name}: {len(model) // 2} texts, {len(parts)} parts, {len(runs)} chapters")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
