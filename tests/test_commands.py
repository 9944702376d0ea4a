"""`sources`, `fetch` and `fertility` from the shell: what they print, write and return."""

from __future__ import annotations

import csv
import io
import json
import os
import threading

import pytest
import sentencepiece
from indexserver import as_folder, manifest_text, wheel_bytes

from chinese_llama_lab.cli import main
from chinese_llama_lab.sources import fetch as fetching
from chinese_llama_lab.sources import index
from chinese_llama_lab.sources import manifest as manifests
from chinese_llama_lab.sources.index import IndexSettings
from chinese_llama_lab.sources.manifest import load_manifest, parse_manifest
from chinese_llama_lab.tokenization.registry import open_tokenizer

SENTENCE = "人工智能是计算机科学、心理学、哲学等学科融合的交叉学科。"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(f"{SENTENCE}\n\n我们学习。\n", encoding="utf-8")
    return path


def rows_of(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


# --- fertility ------------------------------------------------------------------------------------


def test_fertility_prints_a_table_and_writes_csv_and_plot(text, tmp_path, capsys):
    out, plot = tmp_path / "new folder" / "out.csv", tmp_path / "out.png"
    command = ["fertility", str(text), "--tokenizer", "llama", "qwen", "--tokenizer", "smollm2"]
    assert main([*command, "--csv", str(out), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "33 characters, 99 bytes, 2 documents" in printed
    assert f"written: {out}" in printed and f"written: {plot}" in printed
    rows = rows_of(out)
    assert [row["tokenizer"] for row in rows] == ["LLaMA", "Qwen", "SmolLM2"]
    assert rows[0]["characters"] == "33" and rows[0]["text"] == str(text)
    assert float(rows[0]["tokens_per_character"]) == round(int(rows[0]["tokens"]) / 33, 4)
    assert rows[0]["relative_length"] == "1.0" and float(rows[1]["relative_length"]) < 1
    assert {"coverage_level 1", "split_share", "byte_share", "unknown_share", "low", "high"} <= set(rows[0])
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path)) == ["new folder", "out.png", "text.txt"]


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")])
def test_a_plot_takes_the_format_of_its_suffix(text, tmp_path, suffix, start):
    plot = tmp_path / f"plot{suffix}"
    assert main(["fertility", str(text), "--tokenizer", "llama", "--plot", str(plot)]) == 0
    assert plot.read_bytes().startswith(start)


def test_the_known_answer_from_the_shell(tmp_path, capsys):
    from chinese_llama_lab.sources.corpora import load_corpus

    path = tmp_path / "news.txt"
    path.write_text("\n".join(load_corpus("peoples-daily").raw().texts()[::20]), encoding="utf-8")
    assert main(["fertility", str(path), "--tokenizer", "llama", "deepseek-v4"]) == 0
    printed = capsys.readouterr().out
    assert "94,735 characters" in printed and "1.5447" in printed and "0.6145" in printed


def test_several_files_corpora_and_a_tokenizer_file(text, tmp_path, capsys):
    from chinese_llama_lab.sources.fetch import source_file

    other = tmp_path / "other.txt"
    other.write_text("另一个文件\r\n", encoding="utf-8")
    out = tmp_path / "out.csv"
    command = [
        "fertility",
        str(text),
        str(other),
        "--corpus",
        "hsk-zh",
        "--tokenizer",
        str(source_file("mistral")),
    ]
    assert main([*command, "--csv", str(out), "--reference", "qwen"]) == 0
    assert [row["text"] for row in rows_of(out)] == [str(text), str(other), "hsk-zh"]
    assert rows_of(out)[1]["characters"] == "5"
    assert "× Qwen" in capsys.readouterr().out


def test_the_seed_decides_the_interval(text, tmp_path):
    def interval(seed: str) -> tuple[str, str]:
        out = tmp_path / "out.csv"
        main(["fertility", "--corpus", "hsk-zh", "--tokenizer", "qwen", "--csv", str(out), "--seed", seed])
        return rows_of(out)[0]["low"], rows_of(out)[0]["high"]

    assert interval("1") == interval("1")


def failed(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and "what to do: " in captured.err
    return captured.err


def test_an_unknown_tokenizer_says_which_exist(text, capsys):
    error = failed(capsys, "fertility", str(text), "--tokenizer", "lama")
    assert error.startswith("TokenizerError: there is no tokenizer called 'lama'")
    assert "did you mean llama" in error and "deepseek-v4" in error


def test_a_missing_file_is_found_before_any_work(text, tmp_path, capsys):
    out = tmp_path / "out.csv"
    command = ["fertility", str(text), str(tmp_path / "no.txt"), "--tokenizer", "llama", "--csv", str(out)]
    assert "no.txt does not exist" in failed(capsys, *command)
    assert not out.exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "nothing to measure"),
        (b"\n \n", "nothing to measure"),
        ("好\n坏".encode() + b"\xff\n", "line 2, byte 7"),
        ((SENTENCE * 20 + "\n").encode("gbk"), "GBK"),
        (SENTENCE.encode("utf-16"), "UTF-16"),
    ],
)
def test_bad_files_are_named_and_cost_nothing_that_was_done(text, tmp_path, capsys, data, said):
    bad, out = tmp_path / "bad.txt", tmp_path / "out.csv"
    bad.write_bytes(data)
    error = failed(capsys, "fertility", str(text), str(bad), "--tokenizer", "llama", "--csv", str(out))
    assert "bad.txt" in error and said in error
    assert [row["text"] for row in rows_of(out)] == [str(text)]


def test_a_damaged_tokenizer_file_is_named(text, tmp_path, capsys):
    bad = tmp_path / "tokenizer.model"
    bad.write_bytes(b"")
    assert str(bad) in failed(capsys, "fertility", str(text), "--tokenizer", str(bad))


def test_nothing_to_measure_and_impossible_plots(text, capsys):
    assert "before --tokenizer" in failed(capsys, "fertility", "--tokenizer", "llama", str(text))
    for plot in ("out.xyz", "out"):
        error = failed(capsys, "fertility", str(text), "--tokenizer", "llama", "--plot", plot)
        assert ".png, .svg, .pdf" in error
    assert "no corpus called" in failed(capsys, "fertility", "--corpus", "poems", "--tokenizer", "llama")


@pytest.mark.parametrize("option", ["--csv", "--plot"])
def test_a_place_that_cannot_be_written_is_named(text, tmp_path, capsys, option):
    target = tmp_path / "folder.png"
    target.mkdir()
    error = failed(capsys, "fertility", str(text), "--tokenizer", "llama", option, str(target))
    assert str(target) in error
    assert os.listdir(tmp_path / "folder.png") == []
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "out.png"
    assert "file" in failed(capsys, "fertility", str(text), "--tokenizer", "llama", option, str(below))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("data", [f"{SENTENCE}\n我们学习。\n".encode(), b""])
def test_a_pipe_is_read_from_its_beginning(tmp_path, capsys, data):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,), daemon=True)
    writer.start()
    code = main(["fertility", str(pipe), "--tokenizer", "llama"])
    writer.join(5)
    captured = capsys.readouterr()
    if data:
        assert code == 0 and "2 documents" in captured.out
    else:
        assert code == 1 and "nothing to measure" in captured.err


# --- sources and fetch ----------------------------------------------------------------------------


@pytest.fixture
def tiny(empty_cache, plain_pip, tmp_path, monkeypatch):
    """A manifest of one source, and a find-links folder that has it."""
    data = wheel_bytes([("p/poem.txt", b"poem")])
    name = "tiny-1.0-py3-none-any.whl"
    manifest = parse_manifest(
        manifest_text({"tiny": (name, data)}, {"poem": ("tiny", {"p/poem.txt": b"poem"})})
    )
    monkeypatch.setattr(manifests, "load_manifest", lambda: manifest)
    monkeypatch.setattr(fetching, "load_manifest", lambda: manifest)
    links = as_folder(tmp_path / "links", {name: data})
    settings = IndexSettings(index_urls=(), find_links=(str(links),))
    monkeypatch.setattr(index, "index_settings", lambda: settings)
    return empty_cache


def test_fetch_says_what_it_downloads_and_how_large_it_is(tiny, capsys):
    assert main(["fetch"]) == 0
    first = capsys.readouterr().out
    assert "about to download 1 archives, 0.0 MB" in first
    assert "tiny-1.0-py3-none-any.whl  (poem)" in first and f"done: {tiny / 'sources'}" in first
    assert main(["fetch", "poem"]) == 0
    assert capsys.readouterr().out == f"everything is here already, in {tiny / 'sources'}\n"


def test_fetch_replaces_what_is_damaged(tiny, capsys):
    main(["fetch"])
    (tiny / "sources" / "poem" / "poem.txt").write_bytes(b"p0em")
    assert main(["sources"]) == 0  # sizes alone do not tell
    assert main(["sources", "--verify"]) == 1
    assert "damaged" in capsys.readouterr().out
    assert main(["fetch", "--verify"]) == 0
    assert main(["sources", "--verify"]) == 0


def test_fetch_of_an_unknown_name(tiny, capsys):
    assert "no source called 'peom'" in failed(capsys, "fetch", "peom")


def test_fetch_offline(tiny, capsys, monkeypatch):
    monkeypatch.setenv("LAB_OFFLINE", "1")
    error = failed(capsys, "fetch")
    assert "poem" in error and "chinese-llama-lab fetch poem" in error


def test_sources_lists_licence_purpose_and_state(tiny, capsys):
    assert main(["sources"]) == 0
    before = capsys.readouterr().out
    assert "missing" in before and "CC0" in before and "a test" in before
    assert "0 of 1 are here" in before and "chinese-llama-lab fetch" in before
    main(["fetch"])
    capsys.readouterr()
    main(["sources"])
    assert "1 of 1 are here" in capsys.readouterr().out


def test_sources_as_json_is_the_whole_manifest(capsys):
    main(["sources", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == list(load_manifest().sources)
    assert all(entry["licence"] and entry["members"][0]["sha256"] for entry in listed)
    assert {entry["name"]: entry["hub"] for entry in listed}["mistral"] == "mistralai/Mistral-7B-v0.1"


def test_a_bad_file_does_not_cost_the_others(tmp_path, capsys):
    good, empty, last = tmp_path / "good.txt", tmp_path / "empty.txt", tmp_path / "last.txt"
    good.write_text("中国人民\n", encoding="utf-8")
    last.write_text("北京大学\n", encoding="utf-8")
    empty.write_text("")
    out = tmp_path / "out.csv"
    files = [str(path) for path in (good, empty, last)]
    assert main(["fertility", *files, "--tokenizer", "llama", "--csv", str(out)]) == 1
    assert "empty.txt" in capsys.readouterr().err
    assert [row["text"] for row in csv.DictReader(out.open(encoding="utf-8"))] == [files[0], files[2]]


@pytest.mark.parametrize("option", ["--csv", "--plot"])
def test_an_input_is_never_overwritten(option, tmp_path, capsys):
    text = tmp_path / "text.png"
    text.write_text("中国人民\n", encoding="utf-8")
    assert main(["fertility", str(text), "--tokenizer", "llama", option, str(text)]) == 1
    assert "overwrite" in capsys.readouterr().err
    assert text.read_text(encoding="utf-8") == "中国人民\n"


def test_two_tokenizer_files_of_one_name_are_told_apart(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("中国人民\n", encoding="utf-8")
    names = []
    for folder, known in (("a", "llama"), ("b", "mistral")):
        path = tmp_path / folder / "tok.model"
        path.parent.mkdir()
        path.write_bytes(open_tokenizer(known).model)
        names.append(str(path))
    out = tmp_path / "out.csv"
    assert main(["fertility", str(text), "--tokenizer", *names, "--csv", str(out)]) == 0
    assert [row["tokenizer"] for row in csv.DictReader(out.open(encoding="utf-8"))] == names


def test_without_reference_and_coverage_nothing_else_is_needed(tmp_path, empty_cache, monkeypatch):
    text, model = tmp_path / "text.txt", tmp_path / "own.model"
    text.write_text("中国人民\n", encoding="utf-8")
    model.write_bytes(_own_model())
    monkeypatch.setenv("LAB_OFFLINE", "1")
    options = ["--reference", "none", "--no-coverage"]
    assert main(["fertility", str(text), "--tokenizer", str(model), *options]) == 0


def _own_model() -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["中国人民", "人民中国"] * 20),
        model_writer=out,
        vocab_size=10,
        minloglevel=2,
    )
    return out.getvalue()
