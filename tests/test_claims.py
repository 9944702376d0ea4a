"""The ledger: every pointer followed, every number borne out, every command one that the parser takes."""

from __future__ import annotations

import csv
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest

from chinese_llama_lab.claims import (
    TOPICS,
    VERDICTS,
    Claim,
    ClaimBrowser,
    ClaimError,
    counts,
    load_claims,
    resolve,
    table,
    unsupported_numbers,
)
from chinese_llama_lab.claims.ledger import COLUMNS, NOT_MEASURED, OPEN, command_arguments
from chinese_llama_lab.claims.pointers import parse
from chinese_llama_lab.cli import build_parser, main
from chinese_llama_lab.errors import ResultError
from chinese_llama_lab.inference.shapes import shape_of
from chinese_llama_lab.paths import data_dir

ROOT = Path(__file__).resolve().parent.parent
LEDGER = load_claims()
BY_ID = {claim.id: claim for claim in LEDGER}
# What the ledger has to deal with → a row that does. Written out, so that a row which is lost is missed.
MUST_HAVE = {
    "the 50,000 vocabulary": ("vocabulary-size", "vocabulary"),
    "where its pieces came from": ("vocabulary-origin", "vocabulary"),
    "token-to-character ratio": ("tokens-halved", "tokens per character"),
    "speed": ("faster-chinese", "tokens per character"),
    "which layers LoRA touches": ("lora-targets", "LoRA"),
    "what fits in 24 GB": ("lora-24gb", "LoRA"),
    "the whole recipe in 24 GB": ("lora-24gb-whole-recipe", "LoRA"),
    "about 50,000 instructions": ("instructions-size", "instructions"),
    "translated instructions": ("instructions-translated", "instructions"),
    "NF4 on 6 GB": ("nf4-6gb", "NF4"),
    "quantization-aware loading": ("nf4-quantization-aware", "NF4"),
    "the GPT-3.5 line": ("gpt-3-5-score", "GPT-3.5"),
    "native models: Qwen": ("native-qwen-7b", "native models"),
    "native models: Yi": ("native-yi-6b", "native models"),
    "native models: DeepSeek": ("native-deepseek-7b", "native models"),
    "native models: ChatGLM3": ("native-chatglm3-6b", "native models"),
    "native models: Baichuan2": ("native-baichuan2-7b", "native models"),
    "native models: the fork": ("native-fork-38", "native models"),
    "roughly 40 % lower": ("native-40-percent", "native models"),
    "Qwen's vocabulary": ("qwen-vocabulary", "Qwen's vocabulary"),
    "missing GQA": ("no-gqa", "architecture"),
    "missing SwiGLU": ("no-swiglu", "architecture"),
    "instability": ("training-unstable", "instability"),
    "tokenizer-merge bugs: pieces": ("merge-loses-pieces", "tokenizer merge"),
    "tokenizer-merge bugs: conversion": ("merge-fast-differs", "tokenizer merge"),
    "breaking with newer transformers": ("newer-transformers", "newer transformers"),
    "LLaMA's licence": ("licence-llama", "licences"),
    "Qwen's licence": ("licence-qwen", "licences"),
    "contamination": ("contamination", "contamination"),
    "translationese": ("translationese", "translationese"),
    "bias": ("bias-cultural", "bias"),
    "no evaluation of bias": ("bias-no-evaluation", "bias"),
}
# The article's table: model → C-Eval 5-shot, tokens per second, VRAM in GB.
TABLE = {
    "chinese-llama-7b": ("34.5", "45", "6.2"),
    "chinese-alpaca-7b": ("38.1", "42", "6.8"),
    "chinese-llama-13b": ("41.2", "28", "10.1"),
    "chinese-alpaca-13b": ("44.7", "25", "10.9"),
}


def ids(claims):
    return [pytest.param(claim, id=claim.id) for claim in claims]


# --- the ledger that is shipped -------------------------------------------------------------------


@pytest.mark.parametrize("claim", ids(claim for claim in LEDGER if claim.pointer))
def test_every_pointer_leads_to_a_figure_and_every_number_is_there(claim):
    assert all(resolve(claim.pointer))
    assert unsupported_numbers(claim) == [], f"{claim.id}: {claim.measured}"


@pytest.mark.parametrize("claim", ids(claim for claim in LEDGER if not claim.pointer))
def test_what_was_not_measured_prints_no_number(claim):
    assert claim.measured.startswith(NOT_MEASURED) and unsupported_numbers(claim) == []


@pytest.mark.parametrize("what", MUST_HAVE)
def test_the_ledger_deals_with_everything_it_has_to(what):
    name, topic = MUST_HAVE[what]
    assert BY_ID[name].topic == topic


@pytest.mark.parametrize("model", TABLE)
def test_the_articles_table_has_three_rows_a_model_with_its_figures(model):
    for kind, figure in zip(("ceval", "speed", "vram"), TABLE[model], strict=True):
        claim = BY_ID[f"{kind}-{model}"]
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.]\d)", claim.claim), claim.claim
        assert model in claim.claim.lower()


def test_every_topic_has_a_row():
    assert {claim.topic for claim in LEDGER} == set(TOPICS)
    assert 40 <= len(LEDGER) <= 55


def test_the_gap_is_computed_from_the_rows_of_the_native_models():
    names = ("qwen-7b", "yi-6b", "deepseek-7b", "chatglm3-6b", "baichuan2-7b")
    claims = [BY_ID[f"native-{name}"] for name in names]
    said = [float(re.search(r"scores (\d+\.\d)", claim.claim)[1]) for claim in claims]
    published = [float(re.match(r"(\d+\.\d)", claim.primary)[1]) for claim in claims]
    plus = float(re.search(r"has (\d+\.\d) \(val\)", BY_ID["ceval-chinese-alpaca-7b"].primary)[1])
    mean_said, mean_published = sum(said) / 5, sum(published) / 5
    text = BY_ID["native-40-percent"].primary
    for number in (
        f"38 is {1 - 38 / mean_said:.0%}".replace("%", " %"),
        f"the five, {mean_said:.1f}",
        f"{plus} is {1 - plus / mean_published:.0%}".replace("%", " %"),
        f"their mean, {mean_published:.1f}",
        f"from {1 - plus / min(published):.0%}".replace("%", " %"),
        f"to {1 - plus / max(published):.0%}".replace("%", " %"),
    ):
        assert number in text, f"{number} is not in {text}"


@pytest.mark.parametrize("claim", ids(claim for claim in LEDGER if " ceval " in claim.command))
def test_an_alpaca_is_asked_as_an_alpaca(claim):
    style = claim.command.split("--prompt ")[1].split()[0]
    if "--model chinese-" in claim.command:
        kind = "-v1" if "alpaca" in claim.command.split("--model ")[1].split()[0] else ""
        assert style == f"chinese-llama-alpaca{kind}"


@pytest.mark.parametrize("claim", ids(claim for claim in LEDGER if claim.command))
def test_commands_are_taken_by_the_parsers(claim, monkeypatch):
    program, arguments = command_arguments(claim.command)
    if program == "chinese-llama-lab":
        given = build_parser().parse_args(arguments)
        if given.command == "estimate":
            shape_of(given.model)
            assert main(arguments) == 0
        return
    spec = importlib.util.spec_from_file_location("benchmark_gpu", ROOT / program)
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", [program, *arguments])
    assert gpu.main() == gpu.NO_GPU  # the arguments were taken; there is no GPU to go on with
    for name in arguments[arguments.index("--models") + 1 :]:
        if name.startswith("--"):
            break
        shape_of(name)


def test_what_cannot_be_checked_here_says_how_it_could_be():
    still_open = [claim for claim in LEDGER if claim.verdict == OPEN]
    assert still_open and all(claim.command for claim in still_open)
    assert all(claim.reference for claim in LEDGER)


def test_the_file_is_as_csv_writes_it_and_its_readme_counts_right():
    data = (data_dir() / "claims.csv").read_bytes()
    assert b"\r" not in data and data.decode("utf-8").splitlines()[0] == ",".join(COLUMNS)
    assert f"{len(LEDGER)} claims" in (data_dir() / "README.md").read_text(encoding="utf-8")


# --- reading a ledger -----------------------------------------------------------------------------

GOOD = Claim(
    "a-claim",
    "VRAM",
    "It takes 6.2 GB.",
    "someone",
    "6.2 GB.",
    "a paper",
    "It takes 6.31 GB.",
    "results/m.csv#what=NF4, 2,048 tokens:GB",
    "partly",
    "Because.",
    "",
)


def ledger(folder: Path, *claims: Claim, columns=COLUMNS, extra: str = "") -> Path:
    path = folder / "claims.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([getattr(claim, column, "x") for column in columns] for claim in claims)
        stream.write(extra)
    return path


def test_what_was_written_is_read(tmp_path):
    other = replace(
        GOOD, id="b2", claim='中文, "quoted"\nand two lines', measured=f"{NOT_MEASURED}.", pointer=""
    )
    assert load_claims(ledger(tmp_path, GOOD, other)) == [GOOD, other]


@pytest.mark.parametrize(
    ("change", "column", "said"),
    [
        ({"verdict": "Confirmed"}, "verdict", "did you mean 'confirmed'"),
        ({"topic": "speed"}, "topic", "use one of"),
        ({"id": "A claim"}, "id", "small letters"),
        ({"id": ""}, "id", "the cell is empty"),
        ({"claim": ""}, "claim", "the cell is empty"),
        ({"reference": ""}, "reference", "the cell is empty"),
        ({"why": " Because."}, "why", "spaces around"),
        ({"pointer": ""}, "pointer", NOT_MEASURED),
        ({"pointer": "results/m.csv:GB"}, "pointer", "results/NAME.csv#column=value"),
        ({"pointer": "results/../m.csv#a=b:c"}, "pointer", "is no pointer"),
        ({"pointer": "results/m.csv#a=b:c|results/m.csv#a=b:d"}, "pointer", "is no pointer"),
        ({"pointer": "results/m.csv#a=b:c |  | results/m.csv#a=b:c"}, "pointer", "is no pointer"),
        ({"pointer": "results/m.csv#a=50%:c"}, "pointer", "is no pointer"),
        ({"pointer": "results/m.csv#a=b=c:d"}, "pointer", "is no pointer"),
        ({"verdict": OPEN}, "command", "no command would settle it"),
        ({"command": "rm -rf ."}, "command", "is no command line of this repository"),
        ({"command": "chinese-llama-lab"}, "command", "give the arguments"),
        ({"command": "chinese-llama-lab ceval 'open"}, "command", "is no command line"),
    ],
)
def test_a_bad_cell_is_refused_with_file_row_and_remedy(tmp_path, change, column, said):
    bad = replace(GOOD, **({"id": "b2"} | change))
    with pytest.raises(ClaimError) as error:
        load_claims(ledger(tmp_path, GOOD, bad))
    assert f"{tmp_path / 'claims.csv'}, row 3" in error.value.where
    assert error.value.where.endswith(f"column {column}") and error.value.remedy
    assert said in str(error.value)


def test_an_id_stands_once(tmp_path):
    with pytest.raises(ClaimError, match="stands in row 2 already"):
        load_claims(ledger(tmp_path, GOOD, GOOD))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (COLUMNS[:-1], "missing: 'command'"),
        ((*COLUMNS, "note"), "unknown: 'note'"),
        ((*COLUMNS[:-2], "command", "why"), "another order"),
    ],
)
def test_other_columns_are_refused(tmp_path, columns, said):
    with pytest.raises(ClaimError, match=said) as error:
        load_claims(ledger(tmp_path, GOOD, columns=columns))
    assert error.value.where.endswith("row 1")


@pytest.mark.parametrize(
    ("extra", "said"), [("a,b\n", "2 cells"), ("\n", "0 cells"), ('"open', "cannot be read")]
)
def test_a_damaged_row_is_refused(tmp_path, extra, said):
    with pytest.raises(ClaimError, match=said):
        load_claims(ledger(tmp_path, GOOD, extra=extra))


def test_no_file_no_rows_and_another_encoding(tmp_path):
    with pytest.raises(ClaimError, match="cannot be read"):
        load_claims(tmp_path / "nothing.csv")
    with pytest.raises(ClaimError, match="no rows"):
        load_claims(ledger(tmp_path))
    path = tmp_path / "gbk.csv"
    path.write_bytes("中文\n".encode("gbk"))
    with pytest.raises(ClaimError, match="cannot be read"):
        load_claims(path)
    path.write_bytes(b"")
    with pytest.raises(ClaimError, match="missing: 'id'"):
        load_claims(path)


# --- pointers and numbers -------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    text = 'what,GB,share,a:b\n"NF4, 2,048 tokens",6.314,0.0622,x\nbf16,14.5,6.22%,y\nbf16,14.5,,y\n'
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_pointer_names_one_cell_or_several(results):
    assert resolve("results/m.csv#what=NF4, 2,048 tokens:GB", results) == ("6.314",)
    both = "results/m.csv#what=bf16&share=6.22%25:GB | results/m.csv#a%3Ab=x:a%3Ab"
    assert resolve(both, results) == ("14.5", "x")
    assert parse(both)[0].row == (("what", "bf16"), ("share", "6.22%"))


@pytest.mark.parametrize(
    ("pointer", "said"),
    [
        ("results/n.csv#what=bf16:GB", "there are: m"),
        ("results/m.csv#what=bf16:GiB", "use one of: what, GB"),
        ("results/m.csv#kind=bf16:GB", "no column 'kind'"),
        ("results/m.csv#what=bf16:GB", "2 rows"),
        ("results/m.csv#what=fp16:GB", "0 rows .*\n.*\n.*what is one of: NF4, 2,048 tokens, bf16"),
        ("results/m.csv#what=bf16&share=6.22%25:nothing", "no column 'nothing'"),
    ],
)
def test_a_pointer_that_leads_nowhere_says_what_is_there(results, pointer, said):
    with pytest.raises(ClaimError, match=said):
        resolve(pointer, results)


def test_an_empty_cell_and_a_damaged_file(results):
    (results / "e.csv").write_text("a,b\nx,\n", encoding="utf-8")
    with pytest.raises(ClaimError, match="is empty"):
        resolve("results/e.csv#a=x:b", results)
    (results / "e.csv").write_text("a,b\nx\n", encoding="utf-8")
    with pytest.raises(ResultError):
        resolve("results/e.csv#a=x:b", results)


@pytest.mark.parametrize(
    ("measured", "missing"),
    [
        ("It takes 6.314 GB, or 6.31, or 6.3, or 6.", []),
        ("It takes 6.32 GB.", ["6.32"]),
        ("It takes 6.30 GB.", ["6.30"]),
        ("For 2,048 tokens; NF4 and 4-bit and LLaMA-7B and 7B and SmolLM2 are names.", []),
        ("For 2,047 tokens.", ["2,047"]),
        ("A share of 6.22 %, or 6%, or 0.062.", []),
        ("A share of 6.23 %.", ["6.23 %"]),
        ("It is −6.3.", ["−6.3"]),
        ("It takes 631.4 %.", []),
    ],
)
def test_a_number_has_to_stand_in_the_figures_to_the_printed_rounding(results, measured, missing):
    pointer = f"{GOOD.pointer} | results/m.csv#what=NF4, 2,048 tokens:share"
    assert unsupported_numbers(replace(GOOD, measured=measured, pointer=pointer), results) == missing


def test_numbers_in_a_cell_of_text_count_and_infinity_does_not(results):
    (results / "t.csv").write_text('a,b,c\nx,"1,234 of 6.22%",inf\n', encoding="utf-8")
    claim = replace(GOOD, measured="1,234 and 6.22 % and 6.22", pointer="results/t.csv#a=x:b")
    assert unsupported_numbers(claim, results) == ["6.22"]  # printed in percent there, bare here
    assert unsupported_numbers(replace(claim, measured="5", pointer="results/t.csv#a=x:c"), results) == ["5"]
    assert unsupported_numbers(replace(claim, measured=f"{NOT_MEASURED}: 3", pointer="")) == ["3"]


# --- shown ----------------------------------------------------------------------------------------


def test_the_table_is_filtered_by_verdict_topic_and_words():
    assert table().claims == tuple(LEDGER)
    refuted = table("refuted", "native models")
    assert refuted.claims and all(
        c.verdict == "refuted" and c.topic == "native models" for c in refuted.claims
    )
    assert [claim.id for claim in table(search="SWIGLU relu").claims] == ["no-swiglu"]
    assert len(table(search="no such word at all")) == 0
    assert repr(table(search="no such word at all")) == "0 claims"
    for arguments in ({"verdict": "refutd"}, {"topic": "vram"}):
        with pytest.raises(ClaimError, match="use one of"):
            table(**arguments)


def test_counts_add_up_in_the_order_of_the_verdicts():
    found = counts(LEDGER)
    assert tuple(found) == VERDICTS and sum(found.values()) == len(LEDGER)
    assert counts([GOOD]) == {"confirmed": 0, "refuted": 0, "partly": 1, OPEN: 0}


def test_the_text_form_says_the_same_each_time_and_the_html_is_escaped():
    odd = replace(GOOD, claim="<script>", command="chinese-llama-lab estimate --models")
    shown = table(claims=[odd, replace(odd, id="b2", verdict="refuted")])
    assert repr(shown) == repr(table(claims=shown.claims))
    assert repr(shown).splitlines()[:2] == ["2 claims: 1 refuted, 1 partly", "≈ partly | a-claim: <script>"]
    assert "<script>" not in shown._repr_html_() and "&lt;script&gt;" in shown._repr_html_()
    assert "✘ refuted" in shown._repr_html_() and "estimate --models" in shown._repr_html_()
    full = repr(table(claims=[odd], full=True))
    for text in (odd.claimed_by, odd.reference, odd.measured, odd.pointer, odd.why, odd.command):
        assert text in full
    assert max(map(len, repr(table()).splitlines())) <= 100


def test_the_browser_shows_what_table_gives():
    browser = ClaimBrowser(verdict="refuted")
    assert browser.shown == table("refuted") and browser.answer.value == browser.shown._repr_html_()
    browser.dials["topic"].value = "native models"
    browser.dials["search"].value = "yi-6b"
    assert browser.shown == table("refuted", "native models", "yi-6b")
    browser.dials["verdict"].value = browser.dials["topic"].value = "all"
    browser.dials["search"].value = ""
    assert browser.shown == table()
    for start in ({"verdict": "x"}, {"topic": "x"}, {"colour": "x"}):
        with pytest.raises(ClaimError):
            ClaimBrowser(**start)
    assert len(ClaimBrowser([GOOD]).shown) == 1


def test_the_command_prints_the_ledger_or_a_part(capsys):
    assert main(["claims"]) == 0
    assert capsys.readouterr().out == f"{table()!r}\n"
    assert main(["claims", "--verdict", "refuted", "--topic", "architecture", "--full"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 claim: 1 refuted") and "arXiv 2302.13971" in printed
    assert main(["claims", "--topics"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(TOPICS)
    assert main(["claims", "--verdict", "wrong"]) == 1
    assert "ClaimError: 'wrong' is no verdict" in capsys.readouterr().err
