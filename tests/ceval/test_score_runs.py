"""A run that was stopped goes on: no question twice, none lost, and the same bytes as one never stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from chinese_llama_lab.ceval import reading, runs
from chinese_llama_lab.ceval.errors import CevalError, RunError
from chinese_llama_lab.ceval.questions import QuestionSet
from chinese_llama_lab.ceval.reading import Reader
from chinese_llama_lab.ceval.runs import ABOUT, LOCK, ROWS, read_run
from chinese_llama_lab.ceval.score import score

from .conftest import make_model, make_tokenizer
from .test_score import DEV, MIXED

ROOT = Path(__file__).parents[2]


@pytest.fixture
def begin(model, tokenizer):
    def scored(out, questions=MIXED, **options):
        settings = {"dev": DEV, "shots": 2, "batch": 2, "progress": False}
        return score(model, tokenizer, questions, out=out, **settings | options)

    return scored


@pytest.fixture
def whole(begin, tmp_path):
    begin(tmp_path / "whole")
    return (tmp_path / "whole" / ROWS).read_bytes()


def stop_after(monkeypatch, batches):
    """The next run is interrupted when it has read so many batches."""
    read, questions = Reader.read, []

    def counted(self, batch, prefix):
        nonlocal batches
        if batches == 0:
            raise KeyboardInterrupt
        batches -= 1
        questions.extend(batch)
        return read(self, batch, prefix)

    monkeypatch.setattr(Reader, "read", counted)
    return questions


def test_what_is_written(begin, tmp_path, whole):
    run = begin(tmp_path / "run")
    assert (tmp_path / "run" / ROWS).read_bytes() == whole
    rows = [json.loads(line) for line in whole.decode().splitlines()]
    assert rows == list(run.rows) and [row["id"] for row in rows] == [question.id for question in MIXED]
    about = json.loads((tmp_path / "run" / ABOUT).read_text(encoding="utf-8"))
    assert about == run.settings and about["versions"]["torch"] and about["letters"][0][0]["tokens"][0] == "A"
    again = read_run(tmp_path / "run")
    assert again == run and again.complete
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {ABOUT, ROWS, LOCK}
    kept = score_in_memory = begin(None)
    assert kept.rows == run.rows and score_in_memory.out is None


@pytest.mark.parametrize("batches", [0, 1, 3, 6])
def test_stopped_and_resumed(begin, tmp_path, whole, monkeypatch, batches):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        before = stop_after(patch, batches)
        with pytest.raises(KeyboardInterrupt):
            begin(out)
    partial = read_run(out)
    assert {row["id"] for row in partial.rows} == {one.question.id for one in before}
    assert batches <= len(partial.rows) < len(MIXED) and not partial.complete
    asked = []
    read = Reader.read
    monkeypatch.setattr(
        Reader, "read", lambda self, batch, prefix: asked.extend(batch) or read(self, batch, prefix)
    )
    begin(out, resume=True)
    assert (out / ROWS).read_bytes() == whole
    assert len(asked) == len(MIXED) - len(before)  # nothing was asked twice
    asked.clear()
    begin(out, resume=True)  # a run that is complete has nothing left
    assert asked == [] and (out / ROWS).read_bytes() == whole


@pytest.mark.parametrize("cut", [1, 30, -1])
def test_a_torn_last_line_is_dropped(begin, tmp_path, whole, cut):
    out = tmp_path / "run"
    begin(out)
    lines = whole.splitlines(keepends=True)
    # In the middle of a batch, and of a line: with -1 only its end is missing.
    (out / ROWS).write_bytes(b"".join(lines[:5]) + lines[5][:cut])
    assert len(read_run(out).rows) == 5
    begin(out, resume=True)
    assert (out / ROWS).read_bytes() == whole


def test_rows_of_several_processes_are_joined(begin, tmp_path, whole):
    out = tmp_path / "run"
    begin(out)
    lines = whole.splitlines(keepends=True)
    (out / ROWS).write_bytes(b"".join(lines[6:9]))
    (out / "rows.1.jsonl").write_bytes(b"".join(lines[2:4]) + lines[5][:9])
    (out / "rows.10.jsonl").write_bytes(lines[0])
    (out / ".rows.jsonl.abc.tmp").write_bytes(b"what a kill left")
    begin(out, resume=True)
    assert (out / ROWS).read_bytes() == whole
    assert {path.name for path in out.iterdir()} <= {ABOUT, ROWS, LOCK}


def test_another_run_is_refused(begin, tmp_path, tokenizer):
    out = tmp_path / "run"
    begin(out)
    before = (out / ROWS).read_bytes()
    with pytest.raises(RunError, match=r"holds a run already[\s\S]*--resume"):
        begin(out)
    for options, named in (
        ({"shots": 1}, r"shots \(2 there, 1 now\)"),
        ({"prompt": "chinese-llama-alpaca"}, "prompt"),
        ({"form": "spaced"}, r'form \("bare" there, "spaced" now\)'),
        ({"method": "generation"}, "method"),
        ({"questions": MIXED[1:]}, r"questions \(14 there, 13 now\)"),
        ({"questions": [replace(MIXED[0], answer="D"), *MIXED[1:]]}, "questions_sha256"),
    ):
        with pytest.raises(RunError, match=f"holds another run: it differs in [^\n]*{named}"):
            begin(out, resume=True, **options)
    other = make_model(len(tokenizer))
    other.lm_head.weight.data.neg_()
    with pytest.raises(RunError, match="differs in model_sha256"):
        score(other, tokenizer, MIXED, dev=DEV, shots=2, batch=2, out=out, resume=True)
    assert (out / ROWS).read_bytes() == before
    begin(out, resume=True, name="called otherwise", questions=QuestionSet("other", tuple(MIXED)))


def test_another_budget_goes_on_and_is_told(begin, tmp_path, whole):
    out = tmp_path / "run"
    begin(out)
    (out / ROWS).write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    begin(out, resume=True, batch=1)
    run = begin(out, resume=True, batch=1, memory_gib=0.5)
    assert run.complete and run.settings == read_run(out).settings
    before = [{"batch": 2, "memory_gib": 1.0}, {"batch": 1, "memory_gib": 1.0}]
    assert run.settings["budgets_before"] == before
    assert (run.settings["batch"], run.settings["memory_gib"]) == (1, 0.5)
    plain = [json.loads(line) for line in whole.splitlines()]
    assert [row["predicted"] for row in run.rows] == [row["predicted"] for row in plain]


def test_killed_between_joining_and_removing(begin, tmp_path, whole):
    out = tmp_path / "run"
    begin(out)
    lines = whole.splitlines(keepends=True)
    (out / "rows.1.jsonl").write_bytes(b"".join(lines[2:4]))
    assert len(read_run(out).rows) == len(MIXED)
    begin(out, resume=True)
    assert (out / ROWS).read_bytes() == whole and not (out / "rows.1.jsonl").exists()
    other = json.loads(lines[2]) | {"predicted": None}
    (out / "rows.1.jsonl").write_bytes(json.dumps(other).encode() + b"\n")
    with pytest.raises(RunError, match="answered twice"):
        begin(out, resume=True)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
    ],
)
@pytest.mark.parametrize("place", ["read_last", "read_prefix"])
def test_no_memory_is_said_and_nothing_is_lost(begin, tmp_path, monkeypatch, whole, error, place):
    out, left = tmp_path / "run", [1]
    there = getattr(reading, place)

    def full(*arguments):
        if not left:
            raise error
        left.pop()
        return there(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(reading, place, full)
        with pytest.raises(CevalError, match=r"no memory for 2 questions[\s\S]*memory_gib"):
            begin(out)
    assert 0 < len(read_run(out).rows) < len(MIXED)
    begin(out, resume=True)
    assert (out / ROWS).read_bytes() == whole


def test_damaged_folders(begin, tmp_path, whole):
    out = tmp_path / "run"
    begin(out)
    lines = whole.splitlines(keepends=True)
    for content, message in (
        (lines[0] + b"{nothing}\n" + lines[1], r"no row[\s\S]*line 2"),
        (lines[0] + b"[]\n", r"no row[\s\S]*line 2"),
        (lines[0] + lines[0], "id 0 was answered twice"),
        (lines[0].replace(b'"id": "0"', b'"id": "99"'), "id 99 is not asked in this run"),
        (lines[0].replace(lines[0][-68:-4], b"0" * 64), "another prompt"),
    ):
        text = content
        if message == "another prompt":
            row = json.loads(lines[0]) | {"prompt_sha256": "0" * 64}
            text = json.dumps(row).encode() + b"\n"
        (out / ROWS).write_bytes(text)
        with pytest.raises(RunError, match=message):
            begin(out, resume=True)
    (out / ABOUT).write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"run.json is damaged"):
        begin(out, resume=True)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match=r"is not empty: notes.txt"):
        begin(strange)
    with pytest.raises(RunError, match="there is no run"):
        read_run(strange)


def test_two_at_once(begin, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with FileLock(out / LOCK), pytest.raises(RunError, match="somebody is scoring into this folder now"):
        begin(out)
    begin(out)


def test_an_error_lets_the_folder_go(begin, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            begin(tmp_path / "run")
    begin(tmp_path / "run")


def called(*arguments, processes=1):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), "-m", "tests.ceval.worker", *arguments]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    plain |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=plain, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed(begin, tmp_path, processes, whole):
    out = tmp_path / "run"
    done = called(str(out), "torn=1", processes=processes)
    assert done.returncode != 0 and "scored" not in done.stdout
    torn = [path for path in out.glob("rows*.jsonl") if not path.read_bytes().endswith(b"\n")]
    assert len(torn) == 1 and 0 < len(read_run(out).rows) < len(MIXED)
    done = called(str(out), "resume", processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("scored 14") == processes
    assert (out / ROWS).read_bytes() == whole


@pytest.mark.slow
def test_accelerate_launches_the_command(tmp_path):
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), 8192).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    asked = [
        "-m",
        "chinese_llama_lab",
        "ceval",
        "--model",
        str(tmp_path / "model"),
        "--subjects",
        "法学",
        "law",
        "logic",
    ]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    written = []
    for name, command in (("one", asked), ("two", [*launch, *asked])):
        done = subprocess.run(
            [sys.executable, *command, "--out", str(tmp_path / name)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("written:") == 1  # one process speaks
        written.append((tmp_path / name / ROWS).read_bytes())
    assert written[0] == written[1] and written[0].count(b"\n") == 24
