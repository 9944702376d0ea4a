"""Sources to notebooks: what is kept, what is stripped, what is refused, and what counts as drift."""

from __future__ import annotations

import csv
import json
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest

from chinese_llama_lab.course import clean
from chinese_llama_lab.course.build import (
    build,
    check_call,
    is_exercise,
    solution_notebook,
    write_solutions,
)
from chinese_llama_lab.course.chapters import Chapter, chapters, read_source, select, source_hash
from chinese_llama_lab.course.drift import drift, faults, read_notebook, template_faults
from chinese_llama_lab.course.execute import execute
from chinese_llama_lab.errors import CourseError

SOURCE = """
# %% [markdown]
# # Toy
#
# How much is one and one?

# %%
import os
from chinese_llama_lab.exercises import check, exercise

@exercise("90.1", hint="count", praise="two it is")
def _(answer):
    return None if answer == 2 else "count again"

print(os.environ["LAB_PROFILE"])

# %% tags=["chapter-card"]
from chinese_llama_lab import chapter_card
chapter_card("90")

# %%
answer = ...
check("90.1", answer)

# %% tags=["solution"]
answer = 2

# %% tags=["wrong-solution"]
answer = 11
"""


def make(folder: Path, source: str, name: str = "90_toy") -> Chapter:
    (folder / "source").mkdir(parents=True, exist_ok=True)
    path = folder / "source" / f"{name}.py"
    path.write_text(textwrap.dedent(source).lstrip("\n"), encoding="utf-8")
    return Chapter(name[:2], name, path, folder / f"{name}.ipynb")


def build_in(folder: Path, source: str, **options: Any) -> Chapter:
    chapter = make(folder, source)
    build(chapter, results=folder.parent / "results", **options)
    return chapter


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Chapter:
    return build_in(tmp_path_factory.mktemp("toy") / "notebooks", SOURCE)


def outputs(notebook: Any) -> str:
    return json.dumps([cell.get("outputs", []) for cell in notebook.cells], ensure_ascii=False)


def test_a_source_becomes_an_executed_notebook_without_its_solutions(toy: Chapter) -> None:
    notebook = read_notebook(toy.notebook)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code", "code"]
    text = outputs(notebook)
    assert "course" in text and "… not answered yet — count" in text
    assert "answer = 2" not in toy.notebook.read_text(encoding="utf-8")
    assert notebook.metadata.kernelspec.name == "python3"
    assert "version" not in notebook.metadata.language_info
    assert notebook.metadata.chinese_llama_lab == {
        "profile": "course",
        "source_sha256": source_hash(toy.source),
    }


def test_the_run_is_measured_and_the_card_shows_that_very_run(toy: Chapter) -> None:
    path = toy.notebook.parent.parent / "results" / "course_runs.csv"
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["chapter"], row["profile"], row["cells"]) for row in rows] == [("90", "course", "3")]
    assert float(rows[0]["seconds"]) > 0 and float(rows[0]["peak_mib"]) > 20
    card = read_notebook(toy.notebook).cells[2].outputs[0].data
    assert card["text/plain"].startswith(f"chapter 90: {float(rows[0]['seconds']):.0f} s, ")
    assert rows[0]["date"][:10] in card["text/html"]


def test_what_was_just_built_has_no_drift_and_no_faults(toy: Chapter) -> None:
    assert drift(toy.source, toy.notebook) == []
    assert faults(toy.notebook) == []


def test_a_second_build_differs_only_in_what_was_measured(tmp_path: Path, toy: Chapter) -> None:
    again = build_in(tmp_path / "notebooks", SOURCE)
    one, two = read_notebook(toy.notebook), read_notebook(again.notebook)
    for notebook in (one, two):
        notebook.cells[2].outputs = []
    assert one == two


def test_cell_ids_survive_an_inserted_cell(tmp_path: Path) -> None:
    text = "# %%\na = 1\n\n# %%\na = 1\n\n# %%\nb = 2\n"
    before = read_source(make(tmp_path / "a", text).source)
    after = read_source(make(tmp_path / "b", "# %%\nnew = 0\n\n" + text).source)
    ids = [cell.id for cell in after.cells]
    assert [cell.id for cell in before.cells] == ids[1:]
    assert len(set(ids)) == 4


def test_crlf_makes_no_difference(tmp_path: Path) -> None:
    unix, windows = make(tmp_path / "a", SOURCE).source, make(tmp_path / "b", SOURCE).source
    windows.write_bytes(unix.read_bytes().replace(b"\n", b"\r\n"))
    assert source_hash(unix) == source_hash(windows)
    assert read_source(unix) == read_source(windows)


REFUSED = {
    "error": ("# %%\n1 / 0\n", "ZeroDivisionError"),
    "home": ("# %%\nfrom pathlib import Path\nprint(Path.home() / 'x')\n", "path of one machine"),
    "repository": (
        "# %%\nfrom chinese_llama_lab.paths import repository_root\nprint(repository_root())\n",
        "path of one machine",
    ),
    "somebody": ("# %%\nprint('/home/' + 'someone/notes.txt')\n", "/home/someone/notes.txt"),
    "warning": ("# %%\nimport sys\nprint('/tmp/' + 'x.py:3: Warning', file=sys.stderr)\n", "/tmp/x.py"),
    "in the source": ("# %%\npath = '/Users/me/corpus.txt'\n", "/Users/me"),
    # In lines: nbclient takes a minute to look for carriage returns in one line of this length.
    "large": ("# %%\nprint(('x' * 99 + chr(10)) * 4_000)\n", "more than 300,000"),
    "address": ("# %%\nobject()\n", "memory address"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_nothing_written(tmp_path: Path, name: str) -> None:
    source, reason = REFUSED[name]
    chapter = make(tmp_path / "notebooks", source)
    chapter.notebook.write_text("as it was", encoding="utf-8")
    with pytest.raises(CourseError) as caught:
        build(chapter, results=tmp_path / "results")
    assert reason in str(caught.value)
    assert chapter.source.name in str(caught.value)
    assert chapter.notebook.read_text(encoding="utf-8") == "as it was"
    assert not (tmp_path / "results").exists()
    assert [path.name for path in (tmp_path / "notebooks").iterdir() if path.name.startswith(".")] == []


def test_a_failing_cell_is_shown_with_its_number_and_text(tmp_path: Path) -> None:
    with pytest.raises(CourseError) as caught:
        build_in(tmp_path / "notebooks", "# %%\na = 1\n\n# %% [markdown]\n# b\n\n# %%\na / 0  # here\n")
    assert "code cell 2" in str(caught.value) and "| a / 0  # here" in str(caught.value)


def test_progress_bars_and_widgets_are_taken_out(tmp_path: Path) -> None:
    chapter = build_in(
        tmp_path / "notebooks",
        """
        # %%
        import sys
        from tqdm.auto import tqdm
        from tqdm import tqdm as plain
        for _ in tqdm(range(3)): pass
        for _ in plain(range(3)): pass
        print("a warning that matters", file=sys.stderr)
        print("a result")
        """,
    )
    notebook = read_notebook(chapter.notebook)
    assert "widgets" not in notebook.metadata
    kinds = [(output.output_type, output.get("name")) for output in notebook.cells[0].outputs]
    assert sorted(kinds) == [("stream", "stderr"), ("stream", "stdout")]
    text = outputs(notebook)
    assert "a warning that matters" in text and "it/s" not in text and "widget" not in text


def test_the_kernel_is_this_interpreter_whatever_is_installed_for_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = tmp_path / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    foreign = {
        "argv": ["/no/such/python", "-f", "{connection_file}"],
        "display_name": "x",
        "language": "python",
    }
    (kernels / "kernel.json").write_text(json.dumps(foreign), encoding="utf-8")
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("raise SystemExit('a startup file of the user ran')", encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    source = make(
        tmp_path / "notebooks", "# %%\nimport sys, os\nprint(sys.executable, os.environ['X'])\n"
    ).source
    notebook = read_source(source)
    run = execute(notebook, folder=tmp_path, environment={"X": "given"})
    import sys

    assert run.failure is None
    assert outputs(notebook).count(f"{sys.executable} given") == 1


def test_a_dead_kernel_and_a_slow_cell_are_failures_with_a_cell_number(tmp_path: Path) -> None:
    dead = read_source(make(tmp_path, "# %%\na = 1\n\n# %%\nimport os\nos._exit(9)\n").source)
    run = execute(dead, folder=tmp_path, environment={})
    assert run.failure is not None and run.failure.cell == 2 and "kernel died" in run.failure.error
    slow = read_source(make(tmp_path, "# %%\nimport time\ntime.sleep(60)\n").source)
    run = execute(slow, folder=tmp_path, environment={}, cell_timeout=1)
    assert run.failure is not None and "still running after 1 s" in run.failure.error


def test_peak_memory_includes_children(tmp_path: Path) -> None:
    hog = "import time; x = bytearray(300 * 2**20); time.sleep(1.5)"
    text = f"# %%\nimport subprocess, sys\n_ = subprocess.run([sys.executable, '-c', {hog!r}])\n"
    run = execute(read_source(make(tmp_path, text).source), folder=tmp_path, environment={})
    assert run.peak_mib > 300


def tamper(toy: Chapter, folder: Path, change: Any) -> Chapter:
    copy = Chapter(toy.number, toy.name, toy.source, folder / toy.notebook.name)
    notebook = json.loads(toy.notebook.read_text(encoding="utf-8"))
    change(notebook)
    copy.notebook.write_text(json.dumps(notebook), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda nb: nb["cells"][3].update(source="answer = 2\ncheck('90.1', answer)"), "cell 4 was changed"),
        (lambda nb: nb["cells"].pop(1), "a cell of the source is missing"),
        (
            lambda nb: nb["cells"].insert(1, {**nb["cells"][0], "source": "more", "id": "x"}),
            "not in the source",
        ),
        (lambda nb: nb["cells"][1]["metadata"].update(tags=["nbval-skip"]), "was changed"),
        (lambda nb: [c.update(outputs=[]) for c in nb["cells"] if "outputs" in c], "no outputs at all"),
        (lambda nb: nb["cells"][1].update(execution_count=None), "cell 2 was not executed"),
        (lambda nb: nb["metadata"]["chinese_llama_lab"].update(profile="smoke"), "profile 'smoke'"),
        (lambda nb: nb["metadata"]["chinese_llama_lab"].update(source_sha256="0"), "changed since"),
    ],
)
def test_a_tampered_notebook_has_drifted(toy: Chapter, tmp_path: Path, change: Any, reason: str) -> None:
    copy = tamper(toy, tmp_path, change)
    assert any(reason in difference for difference in drift(copy.source, copy.notebook))


def test_a_missing_half_is_drift(toy: Chapter, tmp_path: Path) -> None:
    assert "is missing" in drift(toy.source, tmp_path / "90_toy.ipynb")[0]
    assert "has no source" in drift(tmp_path / "90_toy.py", toy.notebook)[0]


def test_widgets_errors_and_paths_are_faults_of_a_file(toy: Chapter, tmp_path: Path) -> None:
    def spoil(notebook: Any) -> None:
        notebook["metadata"]["widgets"] = {}
        error = {"output_type": "error", "ename": "E", "evalue": "v", "traceback": []}
        notebook["cells"][1]["outputs"].append(error)
        notebook["cells"][0]["source"] += " /home/somebody/x"

    text = "\n".join(faults(tamper(toy, tmp_path, spoil).notebook))
    assert "widget state" in text and "ends in an error: E" in text and "/home/somebody/x" in text


def test_pictures_are_not_searched_for_paths() -> None:
    import nbformat

    cell = nbformat.v4.new_code_cell("show()")
    data = {"image/png": "/home/x/abc", "text/plain": "<Figure size 1x1>"}
    cell.outputs = [nbformat.v4.new_output("display_data", data=data)]
    assert clean.faults(nbformat.v4.new_notebook(cells=[cell])) == []


def test_a_home_at_the_root_is_not_found_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: Path("/")))
    assert clean.machine_paths("a/b and /c") == set()


def test_the_template_is_enforced(toy: Chapter) -> None:
    found = template_faults(toy, following=Chapter("91", "91_next", toy.source, toy.notebook))
    text = "\n".join(found)
    assert "What we measured" in text and "no cell calls lab.setup" in text
    assert "1 exercises, fewer than 3" in text and "91_next.ipynb" in text
    assert "title" not in text and "question" not in text


GOOD = """
# %% [markdown]
# # Toy
#
# How much is it? 多少？
#
# ## What you will be able to do
#
# - count

# %%
import chinese_llama_lab as lab
print("lab.setup(0)")

# %% [markdown]
# ## 1. One

# %%
from IPython.display import SVG
SVG("<svg xmlns='http://www.w3.org/2000/svg'></svg>")

# %% [markdown]
# *Alternative text:* nothing.

# %%
lab.check("90.1", ...) if False else None

# %% [markdown]
# ## What we measured
# ## What can go wrong
# ## Where this came from
# [next](91_next.ipynb)
"""


def test_a_notebook_that_follows_the_template_has_only_the_faults_put_in(tmp_path: Path) -> None:
    following = Chapter("91", "91_next", tmp_path, tmp_path)
    chapter = build_in(tmp_path / "notebooks", GOOD)
    assert template_faults(chapter, following=following) == ["it has 0 exercises, fewer than 3"]
    bare = build_in(tmp_path / "notebooks", GOOD.replace("*Alternative text:*", "*A picture of*"))
    assert any("the plot of cell 4 has no cell" in fault for fault in template_faults(bare, following=None))
    long = GOOD.replace('print("lab.setup(0)")', 'print("lab.setup(0)")\n' + "a = 1\n" * 30)
    assert any(
        "has 32 lines" in f for f in template_faults(build_in(tmp_path / "notebooks", long), following=None)
    )


def test_solutions_are_judged_by_the_check_of_their_exercise(toy: Chapter, tmp_path: Path) -> None:
    notebook = solution_notebook(toy.source)
    run = execute(notebook, folder=tmp_path, environment={"LAB_PROFILE": "smoke"})
    assert run.failure is None
    said = outputs(notebook)
    # The chapter goes on from the right answer.
    assert said.index("✘ wrong — count again") < said.index("✔ right — two it is")


def test_a_wrong_solution_that_claims_to_be_right_is_found(tmp_path: Path) -> None:
    for right, wrong, said in (("2", "3", "count again"), ("11", "2", "two it is")):
        source = make(tmp_path, SOURCE.replace(f"answer = {right}\n", f"answer = {wrong}\n")).source
        run = execute(solution_notebook(source), folder=tmp_path, environment={"LAB_PROFILE": "smoke"})
        assert run.failure is not None and said in run.failure.error


def test_a_solution_before_any_exercise_is_refused(tmp_path: Path) -> None:
    source = make(tmp_path, '# %% tags=["solution"]\na = 1\n').source
    with pytest.raises(CourseError, match="before any exercise"):
        solution_notebook(source)


def test_teachers_copies_have_the_right_answers_only(toy: Chapter, tmp_path: Path) -> None:
    text = write_solutions(toy, tmp_path / "solutions").read_text(encoding="utf-8")
    assert "answer = 2" in text and "answer = 11" not in text


def test_check_call() -> None:
    assert check_call("a = 1\nlab.check('1.1', a)") == "lab.check('1.1', a)"
    assert check_call("check('1.1', a)\nprint(1)") == ""
    assert check_call("%matplotlib inline") == ""


def test_an_exercise_leaves_a_stub_to_the_reader() -> None:
    assert is_exercise("a = ...\nlab.check('1.1', a)")
    assert is_exercise("def f(x):\n    raise NotImplementedError\ncheck('1.1', f)")
    assert not is_exercise("lab.check('1.1', 28 / 35)"), "a demonstration of the checker"
    assert not is_exercise("a = ...")


def test_chapters_are_found_in_order_and_selected_by_number_or_name(tmp_path: Path) -> None:
    make(tmp_path, SOURCE, "02_b")
    make(tmp_path, SOURCE, "01_a")
    (tmp_path / "03_c.ipynb").touch()
    found = chapters(tmp_path)
    assert [chapter.name for chapter in found] == ["01_a", "02_b", "03_c"]
    assert [chapter.name for chapter in select(found, ["2", "01_a"])] == ["01_a", "02_b"]
    with pytest.raises(CourseError, match="there are 01, 02, 03"):
        select(found, ["7"])


@pytest.mark.parametrize("name", ["Notes", "1_a", "01-a", "01_B"])
def test_a_badly_named_notebook_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.ipynb").touch()
    with pytest.raises(CourseError, match=f"'{name}' is no name"):
        chapters(tmp_path)


def test_two_chapters_of_one_number_are_refused(tmp_path: Path) -> None:
    make(tmp_path, SOURCE, "01_a")
    make(tmp_path, SOURCE, "01_b")
    with pytest.raises(CourseError, match="two chapters have the number 01"):
        chapters(tmp_path)


def test_an_empty_source_and_a_damaged_notebook_are_errors_that_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="no cells"):
        read_source(make(tmp_path, "").source)
    (tmp_path / "90_toy.ipynb").write_text("{", encoding="utf-8")
    with pytest.raises(CourseError, match="no readable notebook"):
        read_notebook(tmp_path / "90_toy.ipynb")


@pytest.mark.parametrize("last", ["", "1 / 0"])
def test_no_kernel_outlives_its_notebook(tmp_path: Path, last: str) -> None:
    text = f"# %%\nimport os, pathlib\npathlib.Path('pid').write_text(str(os.getpid()))\n{last}\n"
    chapter = make(tmp_path / "a", text)
    run = execute(read_source(chapter.source), folder=tmp_path, environment={})
    assert (run.failure is not None) == bool(last)
    pid = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
