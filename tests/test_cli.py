"""The command line as a whole: exit codes, help, interruptions, closed pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import chinese_llama_lab
from chinese_llama_lab import cli
from chinese_llama_lab.errors import LabError


def in_a_process(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(chinese_llama_lab.__file__).parents[1])}
    command = [sys.executable, "-m", "chinese_llama_lab", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", **options
    )


def raising(monkeypatch, error: BaseException) -> int:
    def handler(_):
        raise error

    monkeypatch.setattr(cli, "build_parser", lambda: parser)
    import argparse

    parser = argparse.ArgumentParser()
    parser.set_defaults(handler=handler)
    return cli.main([])


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for command in ("sources", "fetch", "fertility", "ceval", "course", "notebooks", "doctor"):
        assert f"\n    {command}" in printed, command


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"chinese-llama-lab {chinese_llama_lab.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["fertility"], ["fertility", "x", "--tokenizer"], ["fetch", "--nonsense"]]
)
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_an_error_is_printed_without_a_trace(monkeypatch, capsys):
    assert raising(monkeypatch, LabError("it is wrong", where="here.txt", remedy="mend it")) == 1
    assert capsys.readouterr().err == "LabError: it is wrong\n  where: here.txt\n  what to do: mend it\n"


def test_a_full_disk_is_printed_without_a_trace(monkeypatch, capsys):
    assert raising(monkeypatch, OSError(28, "No space left on device", "out.csv")) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "out.csv" in error and "what to do: " in error


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    assert raising(monkeypatch, KeyboardInterrupt()) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        raising(monkeypatch, ZeroDivisionError())


def test_as_a_module_with_chinese_on_a_plain_terminal():
    done = in_a_process("sources")
    assert done.returncode == 0, done.stderr
    assert "三国演义" in done.stdout and "are here" in done.stdout


def test_an_error_goes_to_stderr_alone():
    done = in_a_process("fertility", "no-such-file.txt", "--tokenizer", "llama")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("TextError: no-such-file.txt does not exist")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell with pipes")
def test_a_closed_pipe_is_no_error():
    package = str(Path(chinese_llama_lab.__file__).parents[1])
    shell = f'"{sys.executable}" -m chinese_llama_lab sources | head -n 1'
    done = subprocess.run(
        ["sh", "-c", shell], env={**os.environ, "PYTHONPATH": package}, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows consoles are UTF-16 inside")
def test_a_terminal_that_knows_only_ascii():
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    environment["PYTHONPATH"] = str(Path(chinese_llama_lab.__file__).parents[1])
    command = [sys.executable, "-m", "chinese_llama_lab", "sources"]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
