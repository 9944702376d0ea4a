"""`ceval` from the shell."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from chinese_llama_lab.ceval import commands
from chinese_llama_lab.ceval.errors import CevalError, RunError, SubjectError
from chinese_llama_lab.ceval.readers import read_questions
from chinese_llama_lab.ceval.runs import ABOUT, read_run
from chinese_llama_lab.ceval.score import score
from chinese_llama_lab.paths import data_dir
from chinese_llama_lab.sources.models import load_base


def call(*arguments):
    parser = argparse.ArgumentParser()
    commands.add_commands(parser.add_subparsers())
    options = parser.parse_args(["ceval", "--model", *map(str, arguments)])
    return options.handler(options)


def test_a_run(model_folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        call(model_folder, "--subjects", "法学", "logic", "--shots", 2, "--device", "cpu", "--out", out) == 0
    )
    said = capsys.readouterr().out
    run = read_run(out)
    assert "by question, %" in said
    assert f"written: {out / ABOUT}" in said
    assert {row["subject"] for row in run.rows} == {"law", "logic"} and run.complete
    about = json.loads((out / ABOUT).read_text(encoding="utf-8"))
    assert (about["question_set"], about["shots"], about["dtype"]) == ("ceval-lab", 2, "float32")
    lab = read_questions(data_dir() / "ceval_lab")
    asked = [q for q in lab.questions if q.subject in ("law", "logic")]
    base = load_base(str(model_folder))
    assert run.rows == score(base.model, base.tokenizer, asked, shots=2, progress=False).rows
    with pytest.raises(RunError, match="--resume"):
        call(model_folder, "--subjects", "law", "logic", "--shots", 2, "--device", "cpu", "--out", out)
    resumed = ("--subjects", "law", "logic", "--shots", 2, "--device", "cpu", "--out", out, "--resume")
    assert call(model_folder, *resumed) == 0


def test_a_folder_of_questions_by_generation(model_folder, tmp_path, capsys):
    options = ("--subjects", "law", "--method", "generation", "--max-new-tokens", 3, "--device", "cpu")
    questions = ("--questions", data_dir() / "ceval_lab")
    assert call(model_folder, *questions, *options, "--shots", 0, "--out", tmp_path / "run") == 0
    run = read_run(tmp_path / "run")
    lost = sum(row["predicted"] is None for row in run.rows)
    said = capsys.readouterr().out
    assert len(run.rows) == 12 and f"{lost} of 12 questions have no answer that could be extracted" in said


def test_an_adapter(model_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load_base(str(model_folder)).model, config).save_pretrained(
        tmp_path / "trained" / "adapter"
    )
    options = ("--subjects", "law", "--shots", 0, "--device", "cpu")
    call(model_folder, *options, "--out", tmp_path / "bare")
    call(model_folder, *options, "--adapter", tmp_path / "trained", "--out", tmp_path / "adapted")
    bare, adapted = read_run(tmp_path / "bare"), read_run(tmp_path / "adapted")
    assert bare.rows != adapted.rows and adapted.settings["adapters"] == ["default"]
    with pytest.raises(CevalError, match="there is no adapter"):
        call(model_folder, *options, "--adapter", tmp_path, "--out", tmp_path / "third")


def test_errors(model_folder, tmp_path):
    out = ("--device", "cpu", "--out", tmp_path / "run")
    with pytest.raises(SubjectError, match=r"did you mean logic"):
        call(model_folder, "--subjects", "logics", *out)
    with pytest.raises(SubjectError, match=r"no questions of tax_accountant[\s\S]*the subjects there are"):
        call(model_folder, "--subjects", "tax_accountant", *out)
    assert not (tmp_path / "run").exists()
