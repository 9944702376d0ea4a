"""The doctor: each check on a healthy and an ill machine, no secrets, no crash, the right exit code."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import types
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chinese_llama_lab import doctor, machine
from chinese_llama_lab.doctor import Finding
from chinese_llama_lab.sources import fetch, index


def states(findings: list[Finding]) -> set[str]:
    return {finding.state for finding in findings}


def test_python() -> None:
    assert states(doctor.check_python()) == {"ok"}


def test_an_unsupported_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    (finding,) = doctor.check_python()
    assert finding.state == "problem" and "3.10 to 3.13" in finding.found and finding.remedy


def test_pins_follow_markers() -> None:
    text = "# c\ntorch==2.0\nA_b==1 ; python_full_version < '3.0'\nA_b==2 ; python_full_version >= '3.0'\n"
    assert doctor.pins(text) == {"torch": "2.0", "a-b": "2"}


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "constraints.txt"
    file.write_text("torch==2.0\nnumpy==9.9\n", encoding="utf-8")
    installed = {"torch": "2.0+cpu", "numpy": "1.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise doctor.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor, "_required", lambda: ["torch"])
    assert states(doctor.check_versions(file)) == {"ok"}, "a local label names a build, not a version"
    monkeypatch.setattr(doctor, "_required", lambda: ["torch", "numpy", "absent"])
    findings = doctor.check_versions(file)
    assert [finding.state for finding in findings] == ["problem", "problem"]
    assert "absent" in findings[0].found and "numpy 1.0 (tested with 9.9)" in findings[1].found
    assert "pip install -c constraints.txt" in findings[0].remedy


@pytest.mark.parametrize(("gib", "state"), [(5.0, "problem"), (8.0, "ok")])
def test_memory(monkeypatch: pytest.MonkeyPatch, gib: float, state: str) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: int(gib * machine.GIB))
    assert states(doctor.check_memory()) == {state}


@pytest.mark.parametrize(
    ("cores", "flags", "state"),
    [(2, {"avx2", "amx_bf16"}, "ok"), (1, {"avx2"}, "note"), (4, {"sse"}, "note"), (4, set(), "ok")],
)
def test_processor(monkeypatch: pytest.MonkeyPatch, cores: int, flags: set[str], state: str) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    monkeypatch.setattr(machine, "processor_flags", lambda: frozenset(flags))
    (finding,) = doctor.check_processor()
    assert finding.state == state
    assert ("AMX bf16" in finding.found) == ("amx_bf16" in flags)


def answer(text: str, code: int = 0, error: str = "") -> Any:
    return lambda *a, **k: subprocess.CompletedProcess([], code, text, error)


@pytest.mark.parametrize(
    ("run", "state", "words"),
    [
        (answer("GPU 2.13 False\n"), "ok", "sees no GPU"),
        (answer("GPU 2.13 True\nGPU A card, 80 GiB\n"), "ok", "A card, 80 GiB"),
        (answer("", 1, "Traceback\nImportError: libx"), "problem", "ImportError: libx"),
    ],
)
def test_gpu(monkeypatch: pytest.MonkeyPatch, run: Any, state: str, words: str) -> None:
    monkeypatch.setattr(doctor.subprocess, "run", run)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    (finding,) = doctor.check_gpu()
    assert finding.state == state and words in finding.found


def source(name: str, state: str) -> Any:
    return types.SimpleNamespace(source=types.SimpleNamespace(name=name, size=2_000_000), state=state)


def test_cache_lists_sizes_and_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAB_CACHE_DIR", str(tmp_path / "cache"))
    listed = [source("llama", "here"), source("qwen", "missing"), source("font", "damaged")]
    monkeypatch.setattr(fetch, "status", lambda names=(): listed)
    monkeypatch.setattr(fetch, "packages_to_download", lambda names: [types.SimpleNamespace(size=5_000_000)])
    findings = doctor.check_cache()
    assert [finding.state for finding in findings] == ["ok", "ok", "problem", "note"]
    assert "1 of 3" in findings[0].found and "llama, 2.0 MB" in findings[1].found
    assert "fetch font" in findings[2].remedy and "5.0 MB to download" in findings[3].remedy


def test_a_cache_that_is_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LAB_CACHE_DIR", str(tmp_path / "file"))
    (finding,) = doctor.check_cache()
    assert finding.state == "problem" and "LAB_CACHE_DIR" in finding.remedy


@pytest.mark.parametrize(("gib", "state"), [(1, "problem"), (50, "ok")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gib: int, state: str) -> None:
    monkeypatch.setenv("LAB_CACHE_DIR", str(tmp_path / "not" / "yet"))
    usage = types.SimpleNamespace(free=gib * machine.GIB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage)
    assert states(doctor.check_disk()) == {state}


SECRET = "https://reader:swordfish@mirror.example/simple"


def with_index(monkeypatch: pytest.MonkeyPatch, *urls: str, get: Any) -> None:
    @contextmanager
    def client(settings: Any) -> Any:
        yield types.SimpleNamespace(get=get)

    monkeypatch.delenv("LAB_OFFLINE", raising=False)
    monkeypatch.setattr(index, "index_settings", lambda: index.IndexSettings(index_urls=urls))
    monkeypatch.setattr(index, "open_client", client)


def test_an_index_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with_index(monkeypatch, SECRET, get=lambda url, timeout: types.SimpleNamespace(status_code=200))
    (finding,) = doctor.check_index()
    assert finding.state == "ok" and "***@mirror.example" in finding.found


@pytest.mark.parametrize("code", [401, 404, 503])
def test_an_index_that_refuses(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    with_index(monkeypatch, SECRET, get=lambda url, timeout: types.SimpleNamespace(status_code=code))
    (finding,) = doctor.check_index()
    assert finding.state == "note" and str(code) in finding.found and "swordfish" not in finding.found


def test_no_network_is_a_note_and_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(url: str, timeout: float) -> None:
        raise ConnectionError(f"cannot connect to {url}")

    with_index(monkeypatch, SECRET, get=get)
    (finding,) = doctor.check_index()
    assert finding.state == "note" and "swordfish" not in finding.found and "reader" not in finding.found


def test_a_second_index_need_not_hold_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {"a": 200, "b": 404}
    with_index(
        monkeypatch, "https://a/simple", "https://b/simple",
        get=lambda url, timeout: types.SimpleNamespace(status_code=codes[url[8]]),
    )  # fmt: skip
    assert states(doctor.check_index()) == {"ok"}


def test_an_index_in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_index(monkeypatch, tmp_path.as_uri(), (tmp_path / "no").as_uri(), get=None)
    assert [finding.state for finding in doctor.check_index()] == ["ok", "note"]


def test_offline_by_the_readers_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert states(doctor.check_index() + doctor.check_hub()) == {"note"}


def test_a_hub_out_of_reach_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    # Port 9 of this very machine: refused at once, and nothing leaves the machine.
    monkeypatch.setenv("HF_ENDPOINT", "http://me:swordfish@127.0.0.1:9")
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    (finding,) = doctor.check_hub()
    assert finding.state == "note" and "swordfish" not in str(finding)


@pytest.mark.parametrize(
    "text", [SECRET, f"pip: {SECRET}: no", "https://swordfish@x/y", "https://x/?token=swordfish&a=1"]
)
def test_secrets_are_masked(text: str) -> None:
    assert "swordfish" not in doctor.without_secrets(text)


@pytest.mark.parametrize(("state", "expected"), [("here", "ok"), ("missing", "note")])
def test_fonts(monkeypatch: pytest.MonkeyPatch, state: str, expected: str) -> None:
    from chinese_llama_lab import plots

    monkeypatch.setattr(plots, "has_chinese_font", lambda: False)
    monkeypatch.setattr(fetch, "status", lambda names=(): [source("font-zh", state)])
    assert states(doctor.check_fonts()) == {expected}


def test_a_check_that_breaks_is_a_problem_and_the_others_are_made() -> None:
    def breaks() -> list[Finding]:
        raise RuntimeError(f"at {SECRET}")

    findings = doctor.examine({"one": breaks, "two": lambda: [Finding("two", "ok", "fine")]})
    assert [finding.state for finding in findings] == ["problem", "ok"]
    assert "swordfish" not in findings[0].found


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("note", 0), ("problem", 1)])
def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: Any, code: int
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"x": lambda: [Finding("x", state, "found", "do this")]})
    parser = argparse.ArgumentParser()
    doctor.add_commands(parser.add_subparsers())
    arguments = parser.parse_args(["doctor"])
    assert arguments.handler(arguments) == code
    printed = capsys.readouterr().out
    assert "found" in printed and "what to do: do this" in printed
    arguments = parser.parse_args(["doctor", "--json"])
    assert arguments.handler(arguments) == code
    assert json.loads(capsys.readouterr().out) == [
        {"check": "x", "state": state, "found": "found", "remedy": "do this"}
    ]
