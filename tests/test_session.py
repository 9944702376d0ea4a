"""The first cell of a notebook: seeds, style, a summary of fixed shape, and the card of a chapter."""

from __future__ import annotations

import random
import subprocess
import sys
import types
from pathlib import Path

import numpy
import pytest

from chinese_llama_lab import machine, session
from chinese_llama_lab.errors import CourseError, ProfileError


@pytest.fixture(autouse=True)
def plain_style(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for `plots`: fonts and rcParams are tested elsewhere."""
    calls: list[str] = []
    fake = types.ModuleType("chinese_llama_lab.plots")
    fake.use_style = lambda: calls.append("style")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "chinese_llama_lab.plots", fake)
    monkeypatch.setattr(sys.modules["chinese_llama_lab"], "plots", fake, raising=False)
    monkeypatch.setenv("LAB_PROFILE", "smoke")
    return calls


def test_setup_seeds_styles_and_prints_four_lines(
    plain_style: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    result = session.setup(seed=7, chapter="01")
    first = random.random(), float(numpy.random.rand())
    session.setup(seed=7, chapter="01")
    assert (random.random(), float(numpy.random.rand())) == first
    assert plain_style == ["style", "style"]
    lines = capsys.readouterr().out.splitlines()[:4]
    assert [line.split()[0] for line in lines] == ["chapter", "python", "machine", "versions"]
    assert lines[0] == "chapter   01 · profile smoke · seed 7"
    assert "tokenizers " in lines[3]
    assert repr(result) == "Session(chapter='01', profile='smoke', seed=7)"


def test_torch_is_seeded_when_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("torch")
    seeds: list[int] = []
    fake.manual_seed = seeds.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", fake)
    session.seed_everything(5)
    session.seed_everything(6, torch=True)
    assert seeds == [5, 6]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_an_impossible_seed_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed must lie between"):
        session.setup(seed=seed)


def test_a_wrong_profile_is_said_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_PROFILE", "huge")
    with pytest.raises(ProfileError):
        session.setup()


def test_a_missing_library_is_said_and_not_raised() -> None:
    assert session.installed(("no-such-distribution",)) == {"no-such-distribution": "not installed"}


def row(folder: Path, text: str) -> None:
    header = "chapter,profile,cells,seconds,peak_mib,hardware,versions,date\n"
    (folder / "course_runs.csv").write_text(header + text, encoding="utf-8")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(session, "committed_results_dir", lambda: tmp_path)
    return tmp_path


def test_a_card_shows_the_row_of_its_chapter_and_profile(results: Path) -> None:
    row(
        results,
        '01,course,30,42.3,1536,"A CPU, 2 cores, 8 GiB",torch=1,2026-01-02T03:04:05Z\n'
        "01,smoke,30,4.1,700,B,torch=1,2026-01-02T03:04:05Z\n"
        "02,course,30,120,90,<b>,torch=1,2026-01-02T03:04:05Z\n",
    )
    assert repr(session.chapter_card("01")) == (
        "chapter 01: 42 s, 1.5 GiB of memory at most "
        "(30 code cells, profile course, measured 2026-01-02 on A CPU, 2 cores, 8 GiB)"
    )
    assert "4 s, 700 MiB" in repr(session.chapter_card("01", "smoke"))
    html = session.chapter_card("02")._repr_html_()
    assert "2.0 min" in html and "&lt;b&gt;" in html and "<b>" not in html


def test_no_file_and_no_row_are_not_measured_yet(results: Path) -> None:
    assert repr(session.chapter_card("01")) == "chapter 01: not measured yet"
    row(results, "02,course,30,120,90,B,torch=1,2026-01-02T03:04:05Z\n")
    assert repr(session.chapter_card("01")) == "chapter 01: not measured yet"
    assert "not measured yet" in session.chapter_card("01")._repr_html_()


def test_a_damaged_row_is_an_error_that_names_the_file(results: Path) -> None:
    row(results, "01,course,30,fast,1536,B,torch=1,2026-01-02T03:04:05Z\n")
    with pytest.raises(CourseError, match=r"course_runs\.csv"):
        session.chapter_card("01")


def test_the_machine_is_described() -> None:
    assert machine.usable_cores() >= 1
    assert machine.memory_bytes() > 2**28
    assert machine.describe().endswith("GiB")


def test_importing_the_package_is_cheap_and_its_names_are_there() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import chinese_llama_lab as lab; "
        "took = time.perf_counter() - start; "
        "assert not {'numpy', 'torch', 'matplotlib', 'transformers'} & set(sys.modules); "
        "assert set(lab.__all__) <= set(dir(lab)); "
        "assert lab.check and lab.current_profile; print(took)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # 50 ms is the promise; a loaded machine gets some patience.
    assert float(result.stdout) < 0.25
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sys.modules["chinese_llama_lab"].nothing
