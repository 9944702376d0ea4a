"""The models that come with the repository: small, without paths, and what their files say they are."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chinese_llama_lab.cli import build_parser
from chinese_llama_lab.errors import ModelError
from chinese_llama_lab.paths import data_dir
from chinese_llama_lab.shipped import SHIPPED, adapter_folder, merged_path
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.sources.models import BUNDLED, load_base
from chinese_llama_lab.toml import parse_settings
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.metrics import bits_per_character
from chinese_llama_lab.training.pretrain import pretrain
from chinese_llama_lab.training.recipe import Recipe, load_recipe
from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
from chinese_llama_lab.vocabulary.embeddings import extend_embeddings

FOLDERS = [folder for folder in (data_dir() / "adapters" / name for name in SHIPPED) if folder.is_dir()]
FIRST = 20  # steps of which the first row of the log is written


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_shipped_model_can_be_loaded_by_name():
    assert set(SHIPPED) < set(BUNDLED) and SHIPPED["smollm2-zh"] == "smollm2"


def test_a_missing_adapter_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("chinese_llama_lab.shipped.data_dir", lambda: tmp_path)
    with pytest.raises(ModelError, match="adapter of smollm2-zh is not there") as caught:
        merged_path("smollm2-zh")
    assert "checkout" in caught.value.remedy


def test_another_adapter_is_kept_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr("chinese_llama_lab.shipped.data_dir", lambda: tmp_path)
    folder = tmp_path / "adapters" / "smollm2-zh"
    folder.mkdir(parents=True)
    places = set()
    for weights, words in ((b"1", b"a"), (b"2", b"a"), (b"2", b"b")):
        (folder / "adapter_model.safetensors").write_bytes(weights)
        (folder / "tokenizer.json").write_bytes(words)
        places.add(merged_path("smollm2-zh"))
    assert len(places) == 3


def test_all_adapters_together_stay_small():
    sizes = [path.stat().st_size for path in (data_dir() / "adapters").rglob("*") if path.is_file()]
    assert 0 < sum(sizes) <= 25_000_000


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_is_shipped(folder):
    assert read(folder, "adapter_config.json")["base_model_name_or_path"] == SHIPPED[folder.name]
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    for path in folder.iterdir():
        if path.suffix in (".json", ".jsonl", ".md") and path.name != "tokenizer.json":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"/(tmp|home|root|work|Users)/", text), path.name
    stages, rows = read(folder, "stages.json"), log(folder)
    assert stages[0]["starts_from"] is None and all(stage["starts_from"] for stage in stages[1:])
    assert {row["stage"] for row in rows} == {stage["stage"] for stage in stages}
    assert max(row["step"] for row in rows if row["stage"] == len(stages)) <= stages[-1]["steps_done"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    for heading in ("Data", "Recipe", "Results", "Limits", "Licence"):
        assert re.search(rf"^## {heading}", card, re.MULTILINE), heading


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_rebuilt_it_has_the_recorded_bits_per_character(folder):
    said = read(folder, "check.json")
    news = load_corpus(said["corpus"]).chinese_punctuation().split("held-out")
    texts = [text[: said["cut"]] for text in news.sample(said["documents"]).texts()]
    model, tokenizer = load_base(folder.name)
    scored = bits_per_character(model, tokenizer, texts)
    assert scored.characters == said["characters"]
    assert scored.bits_per_character == pytest.approx(said["bits_per_character"], rel=1e-4)


@pytest.mark.slow
def test_trained_again_from_the_start_it_has_the_same_first_losses(tmp_path):
    folder = adapter_folder("smollm2-zh")
    stage, rows = read(folder, "stages.json")[0], log(folder)
    model, words = load_base("smollm2", dtype="bfloat16")

    def texts(names):
        return [d for name in names for d in load_corpus(name).chinese_punctuation().split("train").texts()]

    learnt = continue_bpe(words, texts(["peoples-daily", "reviews"]), 5000).tokenizer
    shipped = load_base("smollm2-zh").tokenizer
    assert learnt.get_vocab() == shipped.get_vocab()
    extend_embeddings(model, words, learnt)
    recipe = Recipe(**stage["recipe"]).replace(log_every=FIRST, save_every=0, evaluate_every=0)
    got = []

    class Enough(Exception):
        pass

    def watch(row):
        got.append(row)
        if "loss" in row:
            raise Enough

    with pytest.raises(Enough):
        pretrain(
            model,
            learnt,
            texts(stage["corpora"]),
            recipe,
            tmp_path / "run",
            replay=texts(stage["replay"]),
            watch=watch,
            progress=False,
        )
    assert read(tmp_path / "run", "run.json")["data"] == stage["data"]
    first = next(row for row in rows if "loss" in row)
    assert first["step"] == got[-1]["step"] == FIRST
    # bfloat16 on another processor rounds elsewhere.
    assert got[-1]["loss"] == pytest.approx(first["loss"], rel=0.02)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_of_a_next_stage_can_be_given_as_it_stands(processes):
    script = Path(__file__).parent.parent / "benchmarks" / "zh_stage.py"
    line = [sys.executable, str(script), "--steps", "10", "--processes", str(processes), "--print"]
    words = shlex.split(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    given = build_parser().parse_args(words[words.index("chinese_llama_lab") + 1 :])
    settings = parse_settings(given.set, TrainingError)
    load_recipe("smollm2-zh").replace(**settings).accumulation(processes)
    assert settings["seed"] not in [s["recipe"]["seed"] for s in read(given.start_from, "stages.json")]
