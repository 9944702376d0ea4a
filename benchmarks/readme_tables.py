"""Write what both READMEs take from `results/` anew: each chapter's time, the table of the shipped model.

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
MARK = "<!-- zh_model -->\n"


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
    model = results.read_table(folder / "zh_model.csv").rows
    runs = {f"{int(row['chapter']):02d}": row for row in results.read_table(folder / "course_runs.csv").rows}
    for name, names in NAMES.items():
        path = folder.parent / name
        text = with_times(path.read_text(encoding="utf-8"), runs)
        before, _, after = text.partition(MARK)
        head, _, rest = after.partition("\n\n")
        percent = "%" if name == "README.zh.md" else " %"  # Chinese leaves no space
        table = [*head.splitlines()[:2], *model_rows(names, model, percent)]
        path.write_text(before + MARK + "\n".join(table) + "\n\n" + rest, encoding="utf-8")
        print(f"{name}: {len(table) - 2} texts, {len(runs)} chapters")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
