"""The shipped Chinese model beside SmolLM2 as it came: bits per character, tokens, speed, and what it writes.

    python benchmarks/zh_model.py [--model NAME_OR_FOLDER] [--instruct NAME_OR_FOLDER] [--bits] [--save]

- bits per character of held-out texts (nothing of these documents was trained on; of the kinds marked False
  in `TEXTS` smollm2-zh never saw any), each behind the end of a line (see `START`); intervals are over
  documents, that of the change over the same documents in both models; each model reads the same characters
  in its own tokens;
- tokens per character; characters a second of greedy decoding, fp32, two engines;
- greedy continuations of ten fixed prompts, and answers to twenty fixed questions, as they come.

A quarter of an hour on two cores; --bits stops after the first of these.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from chinese_llama_lab import results
from chinese_llama_lab.paths import committed_results_dir
from chinese_llama_lab.quiet import quiet_libraries

# Text → (kind, language, whether smollm2-zh was trained on other documents of it)
TEXTS = {
    "peoples-daily": ("news of 1998", "zh", True),
    "reviews": ("reviews", "zh", True),
    "modern": ("web news and notices", "zh", True),
    "hsk-zh": ("textbook sentences", "zh", False),
    "alpaca-zh": ("answers of GPT-4", "zh", False),
    "three-kingdoms": ("a novel of the 14th century", "zh", False),
    "c4-en": ("web text", "en", True),
    "wikipedia-en": ("encyclopedia", "en", True),
}
CHARACTERS = 10_000  # of each text
LONGEST = 700  # of a piece of a document
# SmolLM2-Instruct's BOS opens a turn of a conversation. The shipped model was trained with it before texts,
# SmolLM2 never was, and pays up to four bits a character more on short texts behind it than behind this.
START = "\n"
CONTINUED = (
    "中国的首都是",
    "春天来了，",
    "据新华社北京电，",
    "这家酒店的服务",
    "国务院总理今天上午",
    "学习一门新的语言，最重要的是",
    "他推开门，看见",
    "改革开放以来，",
    "这本书讲的是",
    "The capital of France is",
)
ASKED = (
    "中国的首都是哪里？",
    "一年有几个季节？请列出来。",
    "请用一句话介绍长城。",
    "3 加 5 等于多少？",
    "把“我喜欢读书”翻译成英文。",
    "为什么天空是蓝色的？",
    "请给一家小面馆起一个名字。",
    "怎样才能睡得更好？给出三条建议。",
    "请写一句祝贺朋友生日的话。",
    "水的化学式是什么？",
    "请把下面的句子改得更礼貌：把门关上。",
    "《红楼梦》的作者是谁？",
    "请用“虽然……但是……”造一个句子。",
    "早上见到老师应该说什么？",
    "请列出三种水果。",
    "判断这句话的感情是正面还是负面：这部电影太无聊了。",
    "下雨天出门应该带什么？",
    "请写一首关于秋天的短诗。",
    "电脑突然很慢，应该怎么办？",
    "What is the capital of Japan?",
)


def pieces_of(name: str, characters: int, part: str = "held-out") -> list[list[str]]:
    """Pieces of a text's documents, by document: the first piece of each, then the second, until enough."""
    from chinese_llama_lab.sources.corpora import load_corpus

    documents = [d.text for d in load_corpus(name).chinese_punctuation().split(part).sample(1000)]
    chosen: list[list[str]] = [[] for _ in documents]
    total = 0
    for at in range(0, max(map(len, documents)), LONGEST):
        for document, pieces in zip(documents, chosen, strict=True):
            if total < characters and at < len(document):
                pieces.append(document[at : at + LONGEST])
                total += len(pieces[-1])
    return [pieces for pieces in chosen if pieces]


def counts_of(model: Any, tokenizer: Any, documents: list[list[str]]) -> Any:
    """(documents, 3): bits, tokens and characters of each."""
    import numpy as np

    from chinese_llama_lab.training.metrics import bits_per_character

    each = [bits_per_character(model, tokenizer, pieces, start=START) for pieces in documents]
    return np.asarray([(one.nats / np.log(2), one.tokens, one.characters) for one in each])


def bits_rows(name: str, counted: dict[str, Any], base: dict[str, Any]) -> list[dict[str, Any]]:
    """Bits and tokens per character of each text, and how they compare with `base`; bootstrap intervals."""
    import numpy as np

    rows = []
    for text, counts in counted.items():
        picks = np.random.default_rng(0).integers(len(counts), size=(2000, len(counts)))
        drawn, of_base = counts[picks].sum(axis=1), base[text][picks].sum(axis=1)
        bits, tokens, characters = counts.sum(axis=0)
        kind, language, trained = TEXTS[text]
        levels = np.quantile(drawn[:, 0] / drawn[:, 2], [0.025, 0.975])
        changes = np.quantile(drawn[:, 0] / of_base[:, 0] - 1, [0.025, 0.975])
        rows.append(
            {
                "model": name,
                "text": text,
                "kind": kind,
                "language": language,
                "kind_trained_on": trained,
                "documents": len(counts),
                "characters": int(characters),
                "tokens_per_character": round(tokens / characters, 4),
                "bits_per_character": round(bits / characters, 4),
                "low": round(float(levels[0]), 4),
                "high": round(float(levels[1]), 4),
                "against_smollm2": round(float(bits / base[text][:, 0].sum()) - 1, 4),
                "against_low": round(float(changes[0]), 4),
                "against_high": round(float(changes[1]), 4),
            }
        )
        print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def speed_rows(name: str, model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """Greedy decoding of one sequence."""
    from chinese_llama_lab.inference.speed import measure_speed

    rows = []
    for engine in ("generate", "fast"):
        row = measure_speed(
            model, tokenizer, engine_name=engine, new_tokens=48, repeats=5, name=name
        ).measured[0]
        rows.append(
            {
                "model": name,
                "engine": engine,
                "tokens_per_second": round(row.decode.rate, 2),
                "slowest": round(row.decode.slowest, 2),
                "fastest": round(row.decode.fastest, 2),
                "characters_per_token": round(row.characters_per_token, 4),
                "characters_per_second": round(row.decode.rate * row.characters_per_token, 2),
            }
        )
        print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def written_rows(name: str, model: Any, tokenizer: Any, prompts: Any, template: Any) -> list[dict[str, Any]]:
    """What a model writes, greedily; `stream_answer` divides repeated tokens' logits by 1.1."""
    from chinese_llama_lab.training.generate import stream_answer

    rows = []
    for prompt in prompts:
        said = "".join(stream_answer(model, tokenizer, prompt, template=template, max_new_tokens=60))
        rows.append({"model": name, "prompt": prompt, "written": said})
        print(f"{name} | {prompt} | {said}", flush=True)
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """`results/zh_model.png`, the plot of the README."""
    from chinese_llama_lab import plots

    plots.use_style()
    columns = {"tokens": "tokens_per_character", "bits": "bits_per_character"}
    panels = {
        name: {text: {r["model"]: r[column] for r in rows if r["text"] == text} for text in TEXTS}
        for name, column in columns.items()
    }
    figure = plots.plot_bar_panels(
        panels,
        title="What the recipe does to SmolLM2, on held-out text",
        xlabel="per character (lower is better)",
        references={},
    )
    figure.savefig(committed_results_dir() / "zh_model.png", dpi=110)


def main() -> int:
    """Print one line a row; with --save write four tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-zh")
    parser.add_argument("--instruct", default="smollm2-zh-instruct", help="or `none`")
    parser.add_argument("--characters", type=int, default=CHARACTERS, help="of each text (default: 10000)")
    parser.add_argument("--bits", action="store_true", help="bits per character alone")
    parser.add_argument("--save", action="store_true", help="write results/zh_*.csv")
    options = parser.parse_args()
    quiet_libraries()
    from chinese_llama_lab.sources.models import load_base

    texts = {name: pieces_of(name, options.characters) for name in TEXTS}
    bits, speed, continued, answers = [], [], [], []
    base: dict[str, Any] = {}
    for name, place in (("smollm2", "smollm2"), ("smollm2-zh", options.model)):
        model, tokenizer = load_base(place)
        counted = {text: counts_of(model, tokenizer, documents) for text, documents in texts.items()}
        base = base or counted
        bits += bits_rows(name, counted, base)
        if not options.bits:
            speed += speed_rows(name, model, tokenizer)
            continued += written_rows(name, model, tokenizer, CONTINUED, None)
    asked = (("smollm2", "smollm2"), ("smollm2-zh-instruct", options.instruct))
    for name, place in asked if options.instruct != "none" and not options.bits else ():
        model, tokenizer = load_base(place)
        answers += written_rows(name, model, tokenizer, ASKED, "chat")
    if options.save:
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())
        tables = {"zh_model": bits, "zh_speed": speed, "zh_continuations": continued, "zh_answers": answers}
        scored = {"start": START, "characters": options.characters}
        for name, rows in tables.items():
            if rows:
                results.save(name, rows, seed=0, **(scored if rows is bits else {}))
        draw(bits)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
