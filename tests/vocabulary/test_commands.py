"""The five vocabulary commands, from the shell's side: what they write, print and refuse."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from chinese_llama_lab.cli import main
from chinese_llama_lab.vocabulary import sp_model

from .conftest import CHINESE, ENGLISH, byte_bpe


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(CHINESE + ENGLISH), encoding="utf-8")
    return path


@pytest.fixture
def models(tmp_path, small_base, small_extra):
    base, extra = tmp_path / "base.model", tmp_path / "extra.model"
    base.write_bytes(small_base.SerializeToString())
    extra.write_bytes(small_extra.SerializeToString())
    return base, extra


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_a_model_is_trained_and_can_be_read(text, tmp_path, capsys):
    out = tmp_path / "zh.model"
    assert run("train-vocab", "--text", text, "--size", 200, "--out", out) == 0
    assert "pieces written to" in capsys.readouterr().out
    assert sp_model.model_type(sp_model.load_model(out)) == "unigram"


def test_two_models_are_merged_into_a_folder_that_transformers_loads(models, tmp_path, capsys):
    out = tmp_path / "merged"
    assert run("merge-vocab", *models, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "repaired" in printed and "0 pieces can never be produced" in printed
    tokenizer = AutoTokenizer.from_pretrained(out)
    expected = sp_model.processor(sp_model.load_model(out / "tokenizer.model"))
    for line in CHINESE + ENGLISH:
        assert tokenizer.encode(line, add_special_tokens=False) == expected.encode(line)


def test_the_published_policy_takes_the_name_of_its_padding_piece(models, tmp_path, capsys):
    out = tmp_path / "alpaca"
    assert run("merge-vocab", *models, "--policy", "published", "--pad", "[PAD]", "--out", out) == 0
    pieces = sp_model.load_model(out / "tokenizer.model").pieces
    assert pieces[-1].piece == "[PAD]" and pieces[-1].score == 0.0


def test_an_output_folder_that_holds_something_is_refused_before_any_work(models, tmp_path, capsys):
    out = tmp_path / "full"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert run("merge-vocab", *models, "--out", out) == 1
    assert "not empty" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "keep"


def test_byte_level_bpe_is_continued(text, tmp_path, capsys):
    base = tmp_path / "tokenizer.json"
    tokenizer = byte_bpe("qwen")
    tokenizer.save(str(base))
    out = tmp_path / "longer"
    assert run("continue-bpe", base, "--text", text, "--tokens", 10, "--out", out) == 0
    longer = AutoTokenizer.from_pretrained(out)
    assert len(longer) == tokenizer.get_vocab_size() + 10
    for line in ENGLISH:
        assert longer.encode(line, add_special_tokens=False) == tokenizer.encode(line).ids


def test_fewer_tokens_than_asked_for_are_given_and_said(text, tmp_path, capsys):
    base = tmp_path / "tokenizer.json"
    byte_bpe("smollm2").save(str(base))
    assert run("continue-bpe", base, "--text", text, "--tokens", 100_000, "--out", tmp_path / "x") == 0
    assert "the text yields" in capsys.readouterr().out


def test_a_model_gets_its_rows(tmp_path, capsys):
    from chinese_llama_lab.sources.models import load_base
    from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
    from chinese_llama_lab.vocabulary.consistency import check_consistency

    _, tokenizer = load_base("smollm2", dtype="bfloat16")
    continue_bpe(tokenizer, CHINESE, 5).tokenizer.save_pretrained(tmp_path / "longer")
    out = tmp_path / "model"
    assert run("extend", "smollm2", tmp_path / "longer", "--dtype", "bfloat16", "--out", out) == 0
    assert check_consistency(*load_base(str(out), dtype="bfloat16")).embedding == len(tokenizer) + 5


@pytest.mark.filterwarnings("ignore::chinese_llama_lab.quantization.load.SlowKernelWarning")
def test_a_quantized_model_gets_no_rows(tmp_path, capsys):
    from quantization.quality_models import saved

    from chinese_llama_lab.quantization.load import load_quantized, save_quantized

    base = saved(tmp_path / "base")
    save_quantized(load_quantized(str(base), "nf4"), tmp_path / "nf4")
    assert run("extend", tmp_path / "nf4", base, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "are quantized" in said and "then quantize the result" in said
    assert not (tmp_path / "out").exists()


def test_reachability_is_printed_with_reasons(models, capsys):
    assert run("reachability", models[0]) == 0
    assert "0 can never be produced" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train-vocab", "--out", "x.model"], "no text to learn from"),
        (["reachability", "qwen"], "tiktoken"),
        (["continue-bpe", "llama", "--corpus", "hsk-zh", "--tokens", "5", "--out", "x"], "merge-vocab"),
        (["merge-vocab", "no-such.model", "no-such.model", "--out", "x"], "no-such.model"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_text_for_the_published_policy_is_refused(models, text, tmp_path, capsys):
    out = tmp_path / "x"
    assert run("merge-vocab", *models, "--policy", "published", "--text", text, "--out", out) == 1
    assert "published" in capsys.readouterr().err and not out.exists()


def test_text_helps_the_merge(models, text, tmp_path, capsys):
    assert run("merge-vocab", *models, "--text", text, "--out", tmp_path / "x") == 0
    assert "0 pieces can never be produced" in capsys.readouterr().out
