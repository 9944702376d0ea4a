"""The reader's own files: what a line is, what is not UTF-8 and where, and bounded memory."""

from __future__ import annotations

import codecs
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinese_llama_lab.errors import TextError
from chinese_llama_lab.sources import textfiles
from chinese_llama_lab.sources.textfiles import guess_encoding, read_all, read_documents

CHINESE = "今天天气很好，我们去公园散步，看见许多人在打太极拳。"


@pytest.fixture
def write(tmp_path):
    def written(data: bytes, name: str = "text.txt"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return written


def place_of(path) -> tuple[str, int, int]:
    with pytest.raises(TextError) as caught:
        list(read_documents(path))
    where = caught.value.where
    assert where.startswith(f"{path}, line ")
    line, byte = where.removeprefix(f"{path}, line ").split(", byte ")
    return str(caught.value), int(line), int(byte)


@pytest.mark.parametrize(
    ("data", "documents"),
    [
        (b"", []),
        (b"\n\n \n\t\n", []),
        ("一\n二\n".encode(), ["一", "二"]),
        ("一\n\n二".encode(), ["一", "二"]),
        ("一\r\n二\r\n".encode(), ["一", "二"]),
        ("一\r二\n".encode(), ["一\r二"]),
        ("一\u2028二\u0085三\u2029四\x0b五\n六".encode(), ["一\u2028二\u0085三\u2029四\x0b五", "六"]),
        (codecs.BOM_UTF8 + "一\n".encode(), ["一"]),
        (codecs.BOM_UTF8, []),
        ("一\n\ufeff二\n".encode(), ["一", "\ufeff二"]),
        ("  一 \n".encode(), ["  一 "]),
        (b"a\0b\n", ["a\0b"]),
    ],
)
def test_what_a_line_is(write, data, documents):
    assert list(read_documents(write(data))) == documents


@pytest.mark.parametrize(
    ("before", "line"),
    [
        (b"", 1),
        ("好\n".encode(), 2),
        ("好\r\n好\r\n\r\n".encode(), 4),
        (codecs.BOM_UTF8, 1),
        (codecs.BOM_UTF8 + "好\r\n".encode(), 2),
        ("好\u2028好\n".encode(), 2),
        ((CHINESE + "\n").encode() * 50_000, 50_001),
    ],
)
@pytest.mark.parametrize("bad", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe4\xbd", b"\xf5\x80\x80\x80"])
def test_a_bad_byte_is_named_by_line_and_byte(write, before, line, bad):
    start = "好 ok ".encode()
    message, found_line, byte = place_of(write(before + start + bad + b" end\n"))
    assert (found_line, byte) == (line, len(before) + len(start))
    assert "text.txt is not UTF-8" in message


def test_lines_after_a_very_long_one_keep_their_number(write, monkeypatch):
    monkeypatch.setattr(textfiles, "LINE_BYTES", 1000)
    before = ("长" * 5000).encode() + b"\n" + "短\n".encode()
    assert place_of(write(before + b"ab\xff\n"))[1:] == (3, len(before) + 2)
    assert place_of(write(("长" * 5000).encode() + b"\xff\n"))[1:] == (1, 15000)


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "gb2312"])
@pytest.mark.parametrize("lines", [1, 20_000])
def test_a_gbk_file_is_recognised_with_the_command_that_converts_it(write, encoding, lines):
    path = write((CHINESE + "\n").encode(encoding) * lines, "news.txt")
    message, line, _ = place_of(path)
    assert line == 1
    assert "GBK" in message
    assert "iconv -f gb18030 -t utf-8 news.txt > news.utf8.txt" in message


def test_gbk_after_many_lines_of_ascii(write):
    before = b"plain ascii line\n" * 30_000
    message, line, byte = place_of(write(before + (CHINESE + "\n").encode("gbk") * 400))
    assert (line, byte) == (30_001, len(before)) and "GBK" in message


def test_big5_and_utf16_are_recognised(write):
    traditional = "今天天氣很好，我們去公園散步，看見許多人在打太極拳。\n" * 30
    assert "UTF-16" in place_of(write(traditional.encode("utf-16")))[0]
    message = place_of(write(traditional.encode("big5")))[0]
    assert "looks like" in message and "iconv" in message


@pytest.mark.parametrize("text", [CHINESE, "中国人民", "新华社北京一月一日电", "浣犲ソ", "a字b字"])
@pytest.mark.parametrize("damage", [b"\xff", b"\xe4", b"\x80\x80", b"\xc4\xe3"])
def test_damaged_utf8_is_not_taken_for_gbk(write, text, damage):
    good = (text + "\n").encode() * 200
    message, line, _ = place_of(write(good + damage + b"\n" + good))
    assert line == 201
    assert "looks like" not in message and "iconv" not in message
    assert "copied again" in message


def test_a_file_cut_inside_its_last_character(write):
    data = (CHINESE + "\n").encode() * 100
    message, line, _ = place_of(write(data[:-2]))
    assert line == 100 and "damaged file" in message


def test_random_bytes_are_no_text(write):
    message, _, _ = place_of(write(bytes(range(256)) * 100))
    assert "is not UTF-8" in message


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(TextError, match="does not exist"):
        list(read_documents(tmp_path / "no.txt"))
    with pytest.raises(TextError, match="is a folder"):
        list(read_documents(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(write):
    path = write(b"x")
    path.chmod(0)
    with pytest.raises(TextError, match="may not be read"):
        list(read_documents(path))


def test_several_files_one_after_the_other(write):
    one, two = write("一\n".encode(), "1.txt"), write("二".encode(), "2.txt")
    assert list(read_all([one, two])) == ["一", "二"]


def test_200_000_characters_on_one_line_are_one_document(write):
    text = (CHINESE * 10_000)[:200_000]
    assert list(read_documents(write(text.encode()))) == [text]


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("aé中𠀀\r"), min_size=1, max_size=80), st.integers(4, 40))
def test_a_line_longer_than_the_limit_is_cut_between_characters(tmp_path_factory, text, limit):
    path = tmp_path_factory.mktemp("cut") / "long.txt"
    path.write_bytes(("x" + text + "x\n").encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textfiles, "LINE_BYTES", limit)
        parts = list(read_documents(path))
    assert "".join(parts).replace("\r", "") == ("x" + text + "x").replace("\r", "")
    assert all(len(part.encode()) <= limit + 3 for part in parts)


def test_a_line_without_end_is_read_in_bounded_memory(write):
    import tracemalloc

    path = write("中文".encode() * 10_000_000)  # 60 MB without a line break
    tracemalloc.start()
    characters = sum(len(document) for document in read_documents(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters == 20_000_000
    assert peak < 100 << 20


@pytest.mark.parametrize(
    ("text", "encoding", "guessed"),
    [
        ("中国人民的生活非常好，我们在北京大学学习。", "gb18030", "gb18030"),
        ("這個國家的人民生活得很好，我們在學校裡學習。", "big5", "big5"),
        ("中国人民的生活非常好，我们在北京大学学习。", "utf-16-le", "utf-16-le"),
        ("plain English text, without a mark", "utf-16-be", "utf-16-be"),
        ("中国人民的生活非常好", "utf-32-le", None),
        ("été déjà vu, naïve façade", "latin-1", None),
        ("これは日本語のテキストです。", "shift_jis", None),
    ],
)
def test_an_encoding_is_guessed_only_where_the_text_reads_as_chinese(text, encoding, guessed):
    assert guess_encoding((text * 3).encode(encoding)) == guessed


def test_a_file_joined_from_two_encodings_is_not_to_be_converted_as_a_whole(write):
    message, line, _ = place_of(write("中国人民\n".encode() + "中国人民的生活非常好\n".encode("gbk")))
    assert line == 2 and "joined from two encodings" in message and "iconv" not in message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
@pytest.mark.parametrize("data", ["中国人民\n".encode() * 3, "中国人民的生活\n".encode("gbk") * 3])
def test_a_pipe_is_read_once(tmp_path, data):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    try:
        if data.startswith("中".encode()):
            assert list(read_documents(pipe)) == ["中国人民"] * 3
        else:
            with pytest.raises(TextError, match="GBK"):
                list(read_documents(pipe))
    finally:
        writer.join(timeout=10)
