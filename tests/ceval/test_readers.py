"""Every form the questions come in, and every way they can be broken."""

from __future__ import annotations

import csv
import io
import random
import re
import zipfile
from pathlib import Path

import pytest

from chinese_llama_lab.ceval.errors import QuestionError, SubjectError
from chinese_llama_lab.ceval.questions import Question, QuestionSet
from chinese_llama_lab.ceval.readers import from_hub, read_questions
from chinese_llama_lab.ceval.subjects import HARD, find_subject, load_subjects

HEADER = ["id", "question", "A", "B", "C", "D", "answer"]
VAL = [
    ["0", '多行\n问题，有“引号”和 "ASCII"', "None", "1", "NA", "null", "A"],
    ["1", "第二题", "甲", "乙", "丙", "丁", "D"],
]
DEV = [[str(n), f"示例{n}", "一", "二", "三", "四", "ABCDA"[n], "1. 因为。\n2. 所以。"] for n in range(5)]
TEST = [["0", "不公布答案", "甲", "乙", "丙", "丁"]]


def table(rows, header=HEADER) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    return stream.getvalue().encode()


FILES = {
    "dev/law_dev.csv": table(DEV, [*HEADER, "explanation"]),
    "val/law_val.csv": table(VAL),
    "test/law_test.csv": table(TEST, HEADER[:-1]),
}


def folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        target = tmp_path / "set" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return tmp_path / "set"


def archive(tmp_path: Path, files: dict[str, bytes]) -> Path:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as stream:
        for name, data in files.items():
            stream.writestr(name, data)
    return path


def check(found: QuestionSet) -> None:
    first = found.select(split="val")[0]
    assert first.text == '多行\n问题，有“引号”和 "ASCII"'
    assert first.options == ("None", "1", "NA", "null") and first.answer == "A"
    assert [question.id for question in found.select(split="dev")] == list("01234")
    assert found.select(split="dev")[0].explanation == "1. 因为。\n2. 所以。"
    assert found.subjects == ["law"]


@pytest.mark.parametrize("make", [folder, archive])
@pytest.mark.parametrize("below", ["", "formal_ceval/"])
def test_the_official_files_as_folder_and_zip(tmp_path, make, below):
    found = read_questions(make(tmp_path, {below + name: data for name, data in FILES.items()}))
    check(found)
    assert found.kind == "ceval" and found.select(split="test")[0].answer is None
    assert [found.count(split) for split in ("dev", "val", "test")] == [5, 2, 1]
    assert found.select(split="val")[1].where.endswith("row 2 (line 4)")


def test_what_is_short_of_the_official_counts_is_named(tmp_path):
    dev, val, test = read_questions(folder(tmp_path, FILES)).shortfalls
    assert dev.startswith("dev: 5 of 260 questions: nothing for computer_network, operating_system")
    assert val.startswith("val: 2 of 1,346 questions: law has 2 of 24; nothing for computer_network")
    assert test.startswith("test: 1 of 12,342 questions: law has 1 of 221")
    only = read_questions(folder(tmp_path, FILES), splits=["dev"])
    assert only.count("val") == 0 and len(only.shortfalls) == 1
    without = {name: data for name, data in FILES.items() if not name.startswith("test")}
    again = read_questions(folder(tmp_path / "b", without))
    assert again.shortfalls[2] == "test: 0 of 12,342 questions: the split is not there"


def test_a_whole_set_has_no_shortfall(tmp_path):
    files = {}
    for key, subject in load_subjects().items():
        for split, count in subject.counts.items():
            rows = [[str(n), f"问题{n}", "甲", "乙", "丙", "丁", "C", "1. 略"] for n in range(count)]
            width = {"dev": 8, "val": 7, "test": 6}[split]
            head = [*HEADER, "explanation"][:width]
            files[f"{split}/{key}_{split}.csv"] = table([row[:width] for row in rows], head)
    found = read_questions(archive(tmp_path, files))
    assert found.shortfalls == ()
    assert [found.count(split) for split in ("dev", "val", "test")] == [260, 1346, 12342]
    assert found.subjects == list(load_subjects())


def test_too_many_questions_are_named_too(tmp_path):
    rows = [[str(n), "问", "甲", "乙", "丙", "丁", "C"] for n in range(25)]
    found = read_questions(folder(tmp_path, {"val/law_val.csv": table(rows)}), splits=["val"])
    assert "law has 25 of 24" in found.shortfalls[0]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    files = {name: b"\xef\xbb\xbf" + data for name, data in FILES.items()}
    check(read_questions(folder(tmp_path, files)))


def test_crlf_and_blank_lines(tmp_path):
    data = table([VAL[1]]).replace(b"\n", b"\r\n") + b"\r\n\r\n"
    found = read_questions(folder(tmp_path, {"val/law_val.csv": data}))
    assert found.questions[0].options == ("甲", "乙", "丙", "丁")


def test_cmmlu(tmp_path):
    header = ["", "Question", "A", "B", "C", "D", "Answer"]
    files = {
        "cmmlu/dev/agronomy.csv": table([row[:7] for row in DEV], header),
        "cmmlu/test/agronomy.csv": table(VAL, header),
        "cmmlu/test/high_school_physics.csv": table(VAL, header),
        "__MACOSX/cmmlu/test/._agronomy.csv": b"\x00\x05",
    }
    found = read_questions(archive(tmp_path, files))
    assert found.kind == "cmmlu" and found.count("test") == 4
    assert {question.benchmark for question in found.questions} == {"cmmlu"}
    assert found.select(subject="high_school_physics")[0].about().chinese == "高中物理学"
    assert found.shortfalls[0].startswith("dev: 5 of 335 questions")
    # How many a subject has in test is not published: what is known is the least.
    assert found.shortfalls[1].startswith(
        "test: 4 of at least 6,700 questions: agronomy has 2 of at least 100"
    )
    full = {
        f"test/{key}.csv": table([[n, *VAL[1][1:]] for n in range(100 + len(key))], header)
        for key in load_subjects("cmmlu")
    }
    assert read_questions(archive(tmp_path, full), splits=("test",)).shortfalls == ()


def test_the_hubs_parquet_and_the_loaded_data_set(tmp_path):
    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    row = dict(zip(HEADER, VAL[0], strict=True)) | {"id": 0, "explanation": ""}
    (tmp_path / "hub" / "law").mkdir(parents=True)
    for split in ("dev", "val", "test"):
        rows = [row | ({"answer": ""} if split == "test" else {}), row | {"id": 1}]
        target = tmp_path / "hub" / "law" / f"{split}-00000-of-00001.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), target)
    found = read_questions(tmp_path / "hub")
    assert found.kind == "hub" and found.questions[0].options == ("None", "1", "NA", "null")
    assert found.select(split="test")[0].answer is None and found.questions[0].id == "0"

    loaded = from_hub({"law": {"val": Dataset.from_list([row])}})
    assert loaded.questions[0].options == ("None", "1", "NA", "null")
    with pytest.raises(QuestionError, match=r"column 'A' is null[\s\S]*law, val, row 1"):
        from_hub({"law": {"val": [row | {"A": None}]}})
    with pytest.raises(QuestionError, match="no column 'question'"):
        from_hub({"law": {"val": [{"id": 0}]}})
    target.write_bytes(target.read_bytes()[:100])
    with pytest.raises(QuestionError, match=r"parquet file is damaged[\s\S]*download it again"):
        read_questions(tmp_path / "hub")


def val(rows, header=HEADER) -> dict[str, bytes]:
    return {"val/law_val.csv": table(rows, header)}


good = VAL[1]
BROKEN = [
    (val([good[:-1]], HEADER[:-1]), r"no column 'answer'", r"law_val.csv, header", "the columns there are"),
    (val([good[:2] + good[3:]], HEADER[:2] + HEADER[3:]), "no column 'A'", "header", "rename one"),
    (val([good], [*HEADER[:-1], "A"]), "no column 'answer'", "header", "rename"),
    (val([[*good, "x"]], [*HEADER, "A"]), "column 'A' stands twice", "header", "remove one"),
    (val([VAL[0], [*good[:-1], "E"]]), "answer is 'E'", r"row 2 \(line 4\)", "one capital letter"),
    (val([[*good[:-1], "a"]]), "answer is 'a'", "row 1", "one capital letter"),
    (val([[*good[:-1], "AB"]]), "answer is 'AB'", "row 1", "one capital letter"),
    (val([[*good[:-1], ""]]), "the answer is empty", "row 1", "write A, B, C or D"),
    (val([[*good[:4], " ", *good[5:]]]), "option C is empty", "row 1", "write it"),
    (val([["0", " ", *good[2:]]]), "question is empty", "row 1", "remove the row"),
    (val([["", *good[1:]]]), "the id is empty", "row 1", "number the rows"),
    (val([good, VAL[0], good]), "id '1' stands twice", r"row 3.*first in .*row 1", "copied"),
    (val([good, good[:-1]]), "6 cells and the header 7", "row 2", "double quotes"),
    (val([[*good, "x"]]), "8 cells and the header 7", "row 1", "double quotes"),
    (
        {"val/law_val.csv": table([good]) + b'2,"open\nand never closed,'},
        "not a table",
        "row 2",
        "close the double",
    ),
    ({"val/law_val.csv": table([good]) + b"2,\x00,"}, "NUL|not a table", "row 2", "copy|double"),
    ({"val/law_val.csv": b""}, "is empty", "law_val.csv", "copy the file again"),
    ({"val/law_val.csv": table([]).decode().encode("utf-16")}, "UTF-16", "law_val.csv", "UTF-8"),
    ({"val/lav_val.csv": table([good])}, "no subject 'lav'", "lav_val.csv", r"did you mean law \(法学\)"),
    ({**val([good]), "val/notes.csv": b"x"}, "not named as a file of questions", "notes.csv", "move it"),
    ({**val([good]), "old/law_val.csv": table([good])}, "two files for val", "law_val.csv", "keep one"),
    ({"dev/law_dev.csv": table(VAL)}, "no column 'explanation'", "header", "rename"),
    ({"readme.txt": b"x"}, "no files of questions", "set", "official zip"),
    ({"ceval-exam.zip": b"x"}, "no files of questions", "set", "ceval-exam.zip"),
]


@pytest.mark.parametrize(("files", "what", "where", "remedy"), BROKEN)
def test_each_fault_names_file_row_and_remedy(tmp_path, files, what, where, remedy):
    with pytest.raises((QuestionError, SubjectError), match=what) as caught:
        read_questions(folder(tmp_path, files))
    assert re.search(where, caught.value.where or ""), caught.value.where
    assert re.search(remedy, caught.value.remedy or ""), caught.value.remedy


def test_gbk_is_named(tmp_path):
    text = "id,question,A,B,C,D,answer\n" + "0,中国的首都是我们的大家都知道的地方,北京,上海,天津,重庆,A\n" * 9
    with pytest.raises(QuestionError, match=r"looks like GBK[\s\S]*line 2, byte 29[\s\S]*iconv -f gb18030"):
        read_questions(folder(tmp_path, {"val/law_val.csv": text.encode("gbk")}))


def test_a_truncated_zip(tmp_path):
    path = archive(tmp_path, FILES)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(QuestionError, match=r"not a whole zip archive[\s\S]*set.zip[\s\S]*download it again"):
        read_questions(path)


def test_a_zip_with_a_damaged_member(tmp_path):
    path = archive(tmp_path, {"val/law_val.csv": FILES["val/law_val.csv"] * 20})
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(QuestionError, match=r"law_val.csv is damaged in set.zip[\s\S]*download"):
        read_questions(path)


@pytest.mark.parametrize(
    "name", ["../val/law_val.csv", "/val/law_val.csv", "val/../../law_val.csv", "C:/law_val.csv"]
)
def test_a_zip_that_climbs_out(tmp_path, name):
    with pytest.raises(QuestionError, match=r"leads out of its folder[\s\S]*set.zip[\s\S]*do not use"):
        read_questions(archive(tmp_path, {**FILES, name: table(VAL)}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.zip"]


def test_a_zip_with_a_link(tmp_path):
    path = archive(tmp_path, FILES)
    with zipfile.ZipFile(path, "a") as stream:
        link = zipfile.ZipInfo("val/logic_val.csv")
        link.external_attr = 0o120777 << 16
        stream.writestr(link, "/etc/passwd")
    with pytest.raises(QuestionError, match="not an ordinary file"):
        read_questions(path)


def test_a_zip_that_unfolds_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("chinese_llama_lab.ceval.containers.MEMBER_BYTES", 1 << 20)
    with pytest.raises(QuestionError, match="unfolds to more than 1 MiB"):
        read_questions(archive(tmp_path, {"val/law_val.csv": b"0" * (2 << 20)}))


def test_paths_and_kinds_that_do_not_exist(tmp_path):
    with pytest.raises(QuestionError, match="does not exist"):
        read_questions(tmp_path / "nothing")
    with pytest.raises(QuestionError, match=r"no kind 'csv'[\s\S]*ceval, hub, cmmlu, ceval-lab"):
        read_questions(folder(tmp_path, FILES), "csv")
    with pytest.raises(QuestionError, match=r"there is no set\.json"):
        read_questions(folder(tmp_path, FILES), "ceval-lab", splits=["val"])
    with pytest.raises(QuestionError, match="no questions of dev"):
        read_questions(folder(tmp_path / "b", val([good])), splits=["dev"])
    (tmp_path / "plain.txt").write_bytes(table(VAL))
    with pytest.raises(QuestionError, match="not a whole zip"):
        read_questions(tmp_path / "plain.txt")


def refused(path: Path) -> tuple[str, str, str]:
    """What was wrong, where, and what to do."""
    with pytest.raises(QuestionError) as caught:
        read_questions(path)
    return str(caught.value), str(caught.value.where), str(caught.value.remedy)


def test_one_csv_is_no_damaged_archive(tmp_path, monkeypatch):
    inside = folder(tmp_path, FILES) / "val" / "law_val.csv"
    what, where, remedy = refused(inside)
    assert "law_val.csv is one CSV" in what and "archive" not in what and where == str(inside)
    assert remedy == f"give its folder: {tmp_path / 'set'}"  # dev/, where the shots are, is there too
    check(read_questions(remedy.removeprefix("give its folder: ")))
    beside = tmp_path / "flat" / "LAW.CSV"
    beside.parent.mkdir()
    beside.write_bytes(table(VAL))
    assert refused(beside)[2] == f"give its folder: {beside.parent}"
    monkeypatch.chdir(inside.parent)
    assert refused(Path("law_val.csv"))[2] == f"give its folder: {tmp_path / 'set'}"


def test_one_split_of_cmmlu(tmp_path, monkeypatch):
    rows = table(VAL, ["", "Question", "A", "B", "C", "D", "Answer"])
    above = folder(tmp_path, {"test/agronomy.csv": rows, "dev/agronomy.csv": rows})
    what, where, remedy = refused(above / "test")
    assert "agronomy.csv" in what and "CMMLU" in what and where == str(above / "test" / "agronomy.csv")
    assert remedy == f"give the folder above dev/ and test/: {above}"
    assert read_questions(remedy.split(": ")[1]).kind == "cmmlu"
    monkeypatch.chdir(above / "test")
    assert refused(Path("."))[2] == remedy
    assert refused(archive(tmp_path, {"agronomy.csv": rows}))[2] == "give the folder above dev/ and test/"


def test_set_json(tmp_path):
    stated = b'{"subjects": ["law", "logic"], "questions_per_subject": {"val": 2}}'
    found = read_questions(folder(tmp_path, {**val(VAL), "set.json": stated}))
    assert found.kind == "ceval-lab" and found.shortfalls == ("val: 2 of 4 questions: nothing for logic",)
    for broken in (b"{", b"[]", b'{"subjects": ["law"]}', b'{"subjects": 1, "questions_per_subject": {}}'):
        with pytest.raises(QuestionError, match=r"does not say which subjects[\s\S]*restore it"):
            read_questions(folder(tmp_path, {**val(VAL), "set.json": broken}))


def test_a_question_refuses_what_is_not_text():
    with pytest.raises(QuestionError, match=r"option B is float, not text: nan[\s\S]*as text"):
        Question("law", "val", "0", "问", ("甲", float("nan"), "丙", "丁"), "A")
    with pytest.raises(QuestionError, match="no split 'train'"):
        Question("law", "train", "0", "问", ("甲", "乙", "丙", "丁"), "A")
    with pytest.raises(QuestionError, match="there are 3 options"):
        Question("law", "val", "0", "问", ("甲", "乙", "丙"), "A")


def test_the_subjects_against_the_published_table(gold):
    import json

    published = json.loads((gold / "ceval_subject_mapping.json").read_text(encoding="utf-8"))
    ours = {key: [one.english, one.chinese, one.category] for key, one in load_subjects().items()}
    assert ours == published and list(ours) == list(published)


def test_subjects():
    ceval, cmmlu = load_subjects(), load_subjects("cmmlu")
    assert (len(ceval), len(cmmlu)) == (52, 67) and set(HARD) <= set(ceval)
    for split, total in (("dev", 260), ("val", 1346), ("test", 12342)):
        assert sum(subject.counts[split] for subject in ceval.values()) == total
    for name in ("high_school_physics", "High School Physics", "高中物理", " HIGH_SCHOOL_PHYSICS "):
        assert find_subject(name).key == "high_school_physics"
    for wrong, near in (
        ("高等数雪", "高等数学"),
        ("highschool physics", "high_school_physics"),
        ("laws", "law"),
        ("Physics", "college_physics .* or high_school_physics"),
        ("law school", "law "),
        ("probability", "probability_and_statistics"),
    ):
        with pytest.raises(SubjectError, match=f"did you mean .*{near}"):
            find_subject(wrong)
    with pytest.raises(SubjectError, match=r"no subject 'zzzz'[\s\S]*52 in all"):
        find_subject("zzzz")
    with pytest.raises(SubjectError, match="no table of subjects for 'mmlu'"):
        load_subjects("mmlu")


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_zip_with_any_bytes_changed_is_read_or_refused(tmp_path, method):
    """A Chinese name too, which zipfile decodes without catching anything."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", method) as stream:
        for name, data in FILES.items():
            stream.writestr(f"正式/{name}", data)
    whole = path.read_bytes()
    choose = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(choose.randint(1, 3)):
            damaged[choose.randrange(len(damaged))] ^= choose.randint(1, 255)
        path.write_bytes(damaged)
        try:
            read_questions(path, kind="ceval")
        except (QuestionError, SubjectError) as error:
            assert error.where and error.remedy
            refused += 1
    assert refused > 50


def test_a_zip_with_backslashes_is_not_called_an_attack(tmp_path):
    path = archive(tmp_path, {"val/law_val.csv": table(VAL)})
    path.write_bytes(path.read_bytes().replace(b"val/law", b"val\\law"))
    with pytest.raises(QuestionError, match=r"backslashes in its path[\s\S]*unpack it"):
        read_questions(path)
    path.write_bytes(path.read_bytes().replace(b"val\\law_val", b"..\\a\\..\\alv"))
    with pytest.raises(QuestionError, match="leads out of its folder"):
        read_questions(path)


def test_a_nul_byte_is_named_with_its_line(tmp_path):
    data = table([*VAL, ["2", "第\0题", "甲", "乙", "丙", "丁", "A"]])
    with pytest.raises(QuestionError, match=r"NUL[\s\S]*law_val.csv, row 3"):
        read_questions(folder(tmp_path, {"val/law_val.csv": data}))
