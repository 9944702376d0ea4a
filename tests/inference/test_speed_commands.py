"""`speed` through the parser, on a tiny folder."""

from __future__ import annotations

import argparse

import pytest

from chinese_llama_lab.inference import speed_commands
from chinese_llama_lab.inference.bandwidth import SpeedError
from tests.inference.test_speed import TEXT, big_enough
from tests.threads import one_thread  # noqa: F401 - a fixture
from tests.training.conftest import make_tokenizer


@pytest.fixture
def folder(tmp_path):
    big_enough().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def run(*words):
    parser = argparse.ArgumentParser()
    speed_commands.add_commands(parser.add_subparsers())
    given = parser.parse_args(["speed", *map(str, words)])
    return given.handler(given)


def test_a_table_with_limit_and_share(folder, capsys):
    sizes = ("--prompt-tokens", 4, "--new-tokens", 3, "--repeats", 1, "--batch", 1, "--batch", 2)
    assert run(folder / "model", "--kind", "fp32", "--text", folder / "text.txt", "--parts", *sizes) == 0
    said = capsys.readouterr().out
    assert "GB/s" in said and "share_of_limit" in said and "python_ms" in said
    rows = [line.split()[:3] for line in said.splitlines() if line.startswith("fp32")]
    assert rows == [["fp32", name, batch] for name in ("generate", "fast") for batch in ("1", "2")]


def test_a_text_that_is_no_text(folder):
    (folder / "bad.txt").write_bytes(b"\xff\xfe\xff")
    for name in ("bad.txt", "none.txt"):
        with pytest.raises(SpeedError, match="the text cannot be read"):
            run(folder / "model", "--text", folder / name)


def test_choices(folder, capsys):
    for words in (("--kind", "int3"), ("--engine", "quick")):
        with pytest.raises(SystemExit):
            run(folder / "model", *words)
        assert "invalid choice" in capsys.readouterr().err
