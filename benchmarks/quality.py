"""What quantization costs SmolLM2, before and after it learnt Chinese.

    python benchmarks/quality.py [--adapted FOLDER] [--characters N] [--save]

Every kind against float32 (divergence, perplexity, bits per character, greedy agreement); weight errors by
kind of layer, with outliers and block sizes; merging into 4 bits against merging first. Each row is printed,
and its table written, as it comes. The adapted model is given, or trained here and kept in `--runs`: new
tokens, the recipe smollm2-zh, `--steps` steps; a run that was stopped goes on. The table of merging needs its
adapter: with `--adapted`, give `--base` and `--adapter` too, or it is left out. The bundled SmolLM2 is made
of 4-bit weights (GGUF's Q4_1; the embedding Q8_0), written out in float32: "fp32" is that, and not the model
as it was trained.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BEFORE, AFTER = "before", "after"
PROMPT_CHARACTERS = {"zh": 24, "en": 60}  # the beginning of a held-out document


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and save."""
    from chinese_llama_lab import results
    from chinese_llama_lab.paths import committed_results_dir
    from chinese_llama_lab.quantization.merging_loss import MERGED, NO_ADAPTER, WAYS, merging_loss
    from chinese_llama_lab.quantization.quality import KINDS, compare_kinds
    from chinese_llama_lab.quiet import quiet_libraries

    quiet_libraries()
    options = _options(arguments, KINDS)
    texts, prompts = held_out(options.characters, options.prompts, options.english)
    models: dict[str, str] = {BEFORE: options.model}
    if options.adapted:
        base, adapter = options.base, options.adapter
        models[AFTER] = str(options.adapted)
    else:
        base, adapter, merged = adapt(options.model, options.runs, options.steps, options.new_tokens)
        models[AFTER] = str(merged)
    about = {
        "seed": 0,
        "model": "SmolLM2-135M-Instruct; weights out of GGUF (Q4_1)",
        "characters": {language: sum(map(len, given)) for language, given in texts.items()},
        "english": options.english,
        "prompts": len(prompts),
        "new_tokens": options.generate,
        "block": options.block,
        "steps": None if options.adapted else options.steps,
    }
    if options.save:
        os.environ["LAB_RESULTS_DIR"] = str(committed_results_dir())

    kinds: list[dict[str, Any]] = []
    save = _saver(options.save, "bench_quality", kinds, about, results.save)
    for stage, model in models.items():
        compare_kinds(
            model,
            options.kinds,
            texts["zh"],
            texts["en"],
            prompts,
            new_tokens=options.generate,
            block=options.block,
            compute_dtype=options.compute_dtype,
            watch=lambda row, stage=stage, save=save: save({"model": stage, **row}),
        )

    layers: list[dict[str, Any]] = []
    outliers: list[dict[str, Any]] = []
    save = _saver(options.save, "bench_quality_layers", layers, about, results.save)
    save_outliers = _saver(options.save, "bench_quality_outliers", outliers, about, results.save)
    for stage, model in models.items():
        measure_layers(stage, model, options.kinds, save)
    measure_outliers(options.model, save_outliers)  # training moves them by a part in thousands

    if base and adapter:
        merging: list[dict[str, Any]] = []
        save = _saver(options.save, "bench_quality_merging", merging, about, results.save)
        for number, kind in enumerate(options.merging_kinds):
            again = number > 0  # rows without quantization stand in the table once
            ways = WAYS if again else (*WAYS, NO_ADAPTER)
            watch = _without(MERGED, save) if again else save
            merging_loss(base, adapter, texts, kind=kind, ways=ways, block=options.block, watch=watch)
    else:
        print("no table of merging: --adapted came without --base and --adapter")
    return 0


def _options(arguments: Sequence[str] | None, kinds: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="before adaptation: a name or folder")
    parser.add_argument("--adapted", type=Path, help="merged folder (default: train one)")
    parser.add_argument("--base", type=Path, help="of --adapted: the unquantized base")
    parser.add_argument("--adapter", type=Path, help="of --adapted: the adapter or run")
    parser.add_argument(
        "--runs", type=Path, default=Path("build/quality"), help="where a trained one is kept"
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--new-tokens", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", default=list(kinds))
    parser.add_argument("--merging-kinds", nargs="+", default=["nf4", "nf4-double", "fp4"])
    parser.add_argument("--characters", type=int, default=2000, help="held out, of each language")
    parser.add_argument("--english", nargs="+", default=["c4-en", "wikipedia-en"], help="English corpora")
    parser.add_argument("--prompts", type=int, default=4, help="for greedy agreement, of each language")
    parser.add_argument("--generate", type=int, default=200, help="tokens a prompt")
    parser.add_argument("--block", type=int, default=256, help="tokens read at once")
    parser.add_argument("--compute-dtype", help="of quantized kinds (default: bfloat16 where it is fast)")
    parser.add_argument("--save", action="store_true", help="write results/bench_quality*.csv")
    return parser.parse_args(arguments)


def held_out(characters: int, prompts: int, english: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Texts by language, and prompts in both languages, from other parts of the documents than the texts.

    Documents are cut into pieces. Prompts are the beginnings of the first documents, whose first pieces are
    then not scored.
    """
    from chinese_llama_lab.sources.corpora import load_corpus

    corpora = {
        "zh": ([load_corpus("peoples-daily").chinese_punctuation()], 400),
        "en": ([load_corpus(name) for name in english], 600),
    }
    texts: dict[str, list[str]] = {}
    started: list[str] = []
    for language, (sources, cut) in corpora.items():
        wanted = PROMPT_CHARACTERS[language]
        texts[language] = []
        left, begun = characters, 0
        for text in (text for corpus in sources for text in corpus.split("held-out").texts()):
            at = 0
            if begun < prompts and len(text) >= 2 * wanted:
                started.append(text[:wanted])
                begun, at = begun + 1, cut
            while at < len(text) and left > 0:
                piece = text[at : at + min(cut, left)]
                texts[language].append(piece)
                left, at = left - len(piece), at + cut
            if left <= 0 and begun == prompts:
                break
        if left > 0 or begun < prompts:
            short = f"{left} characters or {prompts - begun} prompts short"
            raise SystemExit(f"the held-out documents of {language} are {short}: ask for fewer")
    return texts, started


def adapt(model: str, runs: Path, steps: int, new_tokens: int) -> tuple[Path, Path, Path]:
    """(extended base, run, merged folder) of SmolLM2 that was trained on Chinese news.

    What is there for these sizes is taken as it is.
    """
    from chinese_llama_lab.adapters import merge_adapters
    from chinese_llama_lab.paths import atomic_folder
    from chinese_llama_lab.sources.corpora import load_corpus
    from chinese_llama_lab.sources.models import load_base
    from chinese_llama_lab.training.precision import weights_dtype
    from chinese_llama_lab.training.pretrain import pretrain
    from chinese_llama_lab.training.recipe import load_recipe
    from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
    from chinese_llama_lab.vocabulary.embeddings import extend_embeddings

    place = runs / f"{steps}-steps-{new_tokens}-tokens"
    base, run, merged = place / "base", place / "run", place / "merged"
    train = load_corpus("peoples-daily").chinese_punctuation().split("train").texts()
    if not base.is_dir():
        plain, words = load_base(model)
        longer = continue_bpe(words, train, new_tokens).tokenizer
        extend_embeddings(plain, words, longer)
        with atomic_folder(base) as part:
            plain.save_pretrained(part)
            longer.save_pretrained(part)
    recipe = load_recipe("smollm2-zh").replace(
        steps=steps, evaluate_every=0, save_every=max(1, min(100, steps // 2))
    )
    if not (run / "adapter").is_dir():
        loaded, longer = load_base(str(base), dtype=weights_dtype(recipe))
        english = load_corpus("c4-en").split("train").texts()
        again = (run / "run.json").is_file()
        pretrain(loaded, longer, train, recipe, run, replay=english, resume=again)
    if not merged.is_dir():
        merge_adapters(base, [run], merged, dtype="float32")
    return base, run, merged


def measure_layers(
    stage: str, model: str, kinds: Sequence[str], save: Callable[[dict[str, Any]], None]
) -> None:
    """Errors by kind of layer."""
    from chinese_llama_lab.quantization.layer_errors import errors_by_layer_kind
    from chinese_llama_lab.sources.models import load_base

    for row in errors_by_layer_kind(load_base(model).model, [kind for kind in kinds if kind != "fp32"]):
        save({"model": stage, **row})


def measure_outliers(model: str, save: Callable[[dict[str, Any]], None]) -> None:
    """Errors by block size, in the linear layers with the fewest and the most outliers; and with more."""
    from chinese_llama_lab.quantization.layer_errors import outlier_sweep
    from chinese_llama_lab.quantization.measures import outlier_share
    from chinese_llama_lab.sources.models import load_base

    linear = {
        name: parameter
        for name, parameter in load_base(model).model.named_parameters()
        if parameter.dim() == 2 and name.endswith("_proj.weight")
    }
    shares = {name: outlier_share(parameter) for name, parameter in linear.items()}
    for chosen in (min(shares, key=lambda name: shares[name]), max(shares, key=lambda name: shares[name])):
        for row in outlier_sweep(linear[chosen], kinds=("nf4", "fp4", "int4"), name=chosen):
            save({**row, "natural_outliers": shares[chosen]})


def _saver(
    wanted: bool, name: str, rows: list[dict[str, Any]], about: dict[str, Any], save: Callable[..., Any]
) -> Callable[[dict[str, Any]], None]:
    """Prints a row, and writes the table so far."""

    def take(row: dict[str, Any]) -> None:
        rows.append({key: _short(value) for key, value in row.items()})
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
        if wanted:
            save(name, rows, **about)

    return take


def _without(way: str, save: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def take(row: dict[str, Any]) -> None:
        if row["way"] != way:
            save(row)

    return take


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    raise SystemExit(main())
