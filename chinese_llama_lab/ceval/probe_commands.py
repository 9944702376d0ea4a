"""`ceval-probe` from the shell: what else a score depends on, and whether the questions were known."""

from __future__ import annotations

import argparse
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinese_llama_lab.ceval.options import (
    add_model_options,
    add_prompt_options,
    add_question_options,
    model_of,
    prompt_options,
    questions_of,
    set_name,
)

if TYPE_CHECKING:
    from chinese_llama_lab.ceval.questions import Question

WHAT = ("position", "prompts", "contamination")


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "ceval-probe",
        help="what a score owes to the order of options and to the prompt; were the questions known?",
        description="position: the same questions with their options moved round. prompts: one model under"
        " every prompt and number of shots. contamination: is the published order of the options cheaper than"
        " others, and can the model complete them? Runs lie in --out, and a stopped probe goes on there.",
    )
    parser.add_argument("what", choices=WHAT, metavar="WHAT", help=", ".join(WHAT))
    add_model_options(parser)
    add_question_options(parser)
    parser.add_argument("--prompt", help="style; prompts: a list with commas (default: ceval-official; all)")
    parser.add_argument("--shots", help="demonstrations; prompts: a list with commas (default: 5; 0,5)")
    add_prompt_options(parser)
    parser.add_argument("--orders", default="cyclic", help="of options: cyclic (default, 4) or all (24)")
    parser.add_argument("--layout", default="lines", help="contamination: lines (default) or csv")
    parser.add_argument("--reference", metavar="MODEL", help="contamination: one that cannot know them")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.set_defaults(handler=_probe)


def _probe(options: argparse.Namespace) -> int:
    from chinese_llama_lab.ceval.errors import CevalError

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CevalError(
            "a probe runs in one process", where="accelerate launch", remedy="start it without accelerate"
        )
    given = questions_of(options)
    dev = [question for question in given.questions if question.split == "dev"]
    asked = [question for question in given.questions if question.split != "dev"]
    shots = _shots(options)
    model, tokenizer = model_of(options)

    def rows(part: str, prompt: str, count: int, questions: Sequence[Question]) -> tuple[Any, ...]:
        from chinese_llama_lab.ceval.score import score

        return score(
            model,
            tokenizer,
            questions,
            dev=dev,
            prompt=prompt,
            shots=count,
            out=options.out / part,
            resume=(options.out / part / "run.json").is_file(),
            name=set_name(options),
            model_name=options.model,
            **prompt_options(options),
        ).rows

    probes: dict[str, Callable[[], dict[str, Any]]] = {
        "position": lambda: _position(options, asked, shots, rows),
        "prompts": lambda: _prompts(options, asked, shots, rows),
        "contamination": lambda: _contamination(options, asked, model, tokenizer),
    }
    found = probes[options.what]()
    _write(options.out / f"{options.what}.json", {"model": options.model, "kind": options.kind} | found)
    return 0


def _shots(options: argparse.Namespace) -> list[int]:
    from chinese_llama_lab.ceval.errors import CevalError

    default = "0,5" if options.what == "prompts" else "5"
    try:
        counts = [int(one) for one in (options.shots or default).split(",")]
    except ValueError:
        counts = []
    if not counts or (len(counts) > 1 and options.what != "prompts"):
        raise CevalError(
            f"shots is {options.shots!r}", where="--shots", remedy="give a number, or for `prompts` some: 0,5"
        )
    return counts


def _position(options: argparse.Namespace, asked: Any, shots: Any, rows: Any) -> dict[str, Any]:
    from chinese_llama_lab.ceval.position import position_bias

    number = itertools.count()
    found = position_bias(
        asked,
        lambda moved: rows(f"order-{next(number)}", options.prompt or "ceval-official", shots[0], moved),
        orders=options.orders,
    )
    _left_out(found.left_out)
    print(f"{found.questions:,} questions, each in {len(found.orders)} orders; {found.accuracy:.1%} right")
    shares = ", ".join(f"{share:.1%}" for share in found.by_order)
    print(f"by order: {shares}; right in every order: {found.always_right:.1%}")
    print(
        f"an option that moved: followed {found.follows_content:.1%}, its letter kept"
        f" {found.follows_letter:.1%}, neither {found.follows_neither:.1%} (by lot: 25, 25, 50 %)"
    )
    recalls = ", ".join(f"{letter} {share:.1%}" for letter, share in found.recalls.items())
    print(f"right where the answer was: {recalls}; standard deviation {100 * found.recall_spread:.1f} points")
    print(f"letters chosen: {', '.join(f'{name} {count:,}' for name, count in found.letters.items())}")
    return {**_plain(found), "recall_spread": found.recall_spread}


def _prompts(options: argparse.Namespace, asked: Any, shots: Any, rows: Any) -> dict[str, Any]:
    from chinese_llama_lab.ceval.prompts import STYLES
    from chinese_llama_lab.ceval.sensitivity import prompt_sensitivity
    from chinese_llama_lab.results import table

    prompts = options.prompt.split(",") if options.prompt else tuple(STYLES)
    found = prompt_sensitivity(
        lambda prompt, count: rows(f"{prompt}-{count}", prompt, count, asked), prompts=prompts, shots=shots
    )
    for prompt, count, why in found.impossible:
        print(f"not possible: {prompt} with {count} shots: {why}")
    lines = [
        {
            "prompt": one.prompt,
            "shots": str(one.shots),
            "by question": str(one.by_question),
            "by subject": str(one.by_subject),
            "not extracted": str(one.unextracted),
            "fewer shots": str(one.fewer_shots),
        }
        for one in found.scores
    ]
    print(table("prompts", lines))
    print(
        f"best less worst: {100 * found.spread:.1f} points, p = {found.p:.3g} (for all pairs); another letter"
        f" under some prompt on {found.changed:.1%} of {found.questions:,} questions; right under all"
        f" {found.always_right:.1%}, under none {found.never_right:.1%}"
    )
    return {**_plain(found), "spread": found.spread}


def _contamination(options: argparse.Namespace, asked: Any, model: Any, tokenizer: Any) -> dict[str, Any]:
    from tqdm.auto import tqdm

    from chinese_llama_lab.ceval.contamination import probe_completion, probe_order

    shown = tqdm(asked, desc="order", unit="question")
    order = probe_order(model, tokenizer, shown, orders=options.orders, layout=options.layout)
    _left_out(order.left_out)
    print(
        f"order: the published one is the cheapest in {order.hits:,} of {order.questions:,} questions,"
        f" {order.expected:.1f} by luck (p = {order.p:.3g}); {order.published:.3f} bits a character,"
        f" the others {order.others:.3f}"
    )
    reference = None
    if options.reference:
        changes = {"model": options.reference, "adapter": None}
        reference = model_of(argparse.Namespace(**vars(options) | changes))
    shown = tqdm(asked, desc="completion", unit="question")
    complete = probe_completion(model, tokenizer, shown, layout=options.layout, reference=reference)
    _left_out(complete.left_out)
    judge = "the reference" if reference else "the model itself"
    print(
        f"completion: {complete.exact:,} of {len(complete.completions):,} halves written character for"
        f" character; {complete.matched:.1%} of a half on average"
    )
    for one in (one for one in complete.completions if one.exact):
        name = f"{one.question.subject}, id {one.question.id}"
        print(f"  {name}: {one.expected!r}, {one.surprise:.2f} bits a character to {judge}")
    print("neither clears a model: a leak in other words or another layout leaves no trace here")
    return {"order": _plain(order), "completion": _plain(complete)}


def _left_out(left: Iterable[Any]) -> None:
    for reason, count in Counter(one.reason.split(":")[0] for one in left).items():
        print(f"left out, {count:,} questions: {reason}")


def _plain(found: Any) -> dict[str, Any]:
    """As JSON has it; a question stands there as subject, split and id."""

    def short(value: Any) -> Any:
        if isinstance(value, Mapping):
            if {"subject", "split", "id", "text", "options"} <= set(value):
                return [value["subject"], value["split"], value["id"]]
            return {name: short(one) for name, one in value.items()}
        return [short(one) for one in value] if isinstance(value, list | tuple) else value

    plain: dict[str, Any] = short(asdict(found))
    return plain


def _write(path: Path, content: Mapping[str, Any]) -> None:
    from chinese_llama_lab.paths import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content, allow_nan=False)
    print(f"written: {path}")
