"""What is wrong with files, arguments or a tokenizer `ceval` says, with place and remedy; scores stay."""

from __future__ import annotations

import shutil
import zipfile

import pytest

from chinese_llama_lab import cli
from chinese_llama_lab.ceval.runs import ROWS, read_run

from .conftest import make_model, make_tokenizer

HEAD = "id,question,A,B,C,D,answer"
ROW = '{},"1+{}=\n?",1,None,NA,4,{}'


def table(rows, *, dev=False, head=HEAD):
    lines = [head + (",explanation" if dev else "")]
    lines += [row + (",因为" if dev else "") for row in rows]
    return "\n".join(lines) + "\n"


def rows(count):
    return [ROW.format(n, n, "ABCD"[n % 4]) for n in range(count)]


@pytest.fixture
def questions(tmp_path):
    """Two subjects in C-Eval's own layout."""
    folder = tmp_path / "exam"
    for split, count in (("dev", 5), ("val", 6)):
        (folder / split).mkdir(parents=True)
        for subject in ("law", "logic"):
            text = table(rows(count), dev=split == "dev")
            (folder / split / f"{subject}_{split}.csv").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def ceval(questions, model_folder, tmp_path, capsys):
    """→ (exit code, what was printed, what was said of errors)."""

    def call(*options, questions=questions, model=model_folder, out="run"):
        place = ["--questions", str(questions), "--model", str(model), "--out", str(tmp_path / out)]
        code = cli.main(["ceval", *place, "--device", "cpu", *map(str, options)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def refused(answer, *parts):
    code, _, said = answer
    assert code == 1 and "Traceback" not in said, said
    assert "where: " in said and "what to do: " in said, said
    for part in parts:
        assert part in said, said


def zipped(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.csv")):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


def test_good_files_and_what_is_missing_from_them(ceval, questions, tmp_path):
    code, said, _ = ceval()
    assert code == 0 and "incomplete: val: 12 of 1,346 questions" in said
    assert "by question" in said and "always A" in said and "chance" in said
    code, _, _ = ceval(questions=zipped(questions, tmp_path / "exam.zip"), out="zip")
    first, second = read_run(tmp_path / "run"), read_run(tmp_path / "zip")
    assert code == 0 and first.rows == second.rows and len(first.rows) == 12


FILES = {
    "a missing column": (
        lambda text: text.replace(",D,answer", ",answer", 1),
        ("there is no column 'D'", "law_val.csv, header", "the columns there are"),
    ),
    "an answer that is no letter": (
        lambda text: text.replace("NA,4,C", "NA,4,E"),
        ("the answer is 'E'", "law_val.csv, row 3 (line 6)", "A, B, C or D"),
    ),
    "no answer": (
        lambda text: text.replace("NA,4,C", "NA,4,"),
        ("the answer is empty", "law_val.csv, row 3"),
    ),
    "an empty option": (
        lambda text: text.replace("None,NA,4,B", "None,,4,B"),
        ("option C is empty", "law_val.csv, row 2 (line 4)", "write it"),
    ),
    "one id twice": (
        lambda text: text.replace('\n3,"', '\n1,"'),
        ("id '1' stands twice", "law_val.csv, row 4", "first in", "row 2"),
    ),
    "a row with a cell too many": (
        lambda text: text.replace("NA,4,C", "NA,4,C,C"),
        ("the row has 8 cells", "law_val.csv, row 3"),
    ),
    "a quote that is never closed": (
        lambda text: text.replace('=\n?",1,None,NA,4,B', "=\n?,1,None,NA,4,B", 1),
        ("law_val.csv, row 2",),
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_damaged_files(ceval, questions, tmp_path, what):
    damage, parts = FILES[what]
    file = questions / "val" / "law_val.csv"
    before = file.read_text(encoding="utf-8")
    file.write_text(damage(before), encoding="utf-8")
    assert file.read_text(encoding="utf-8") != before
    refused(ceval(), *parts)
    assert not (tmp_path / "run").exists()


def test_encodings(ceval, questions, tmp_path):
    file = questions / "val" / "law_val.csv"
    text = file.read_text(encoding="utf-8")
    assert ceval(out="plain")[0] == 0
    file.write_text(text, encoding="utf-8-sig")
    assert ceval(out="mark")[0] == 0
    assert read_run(tmp_path / "mark").rows == read_run(tmp_path / "plain").rows
    chinese = text.replace("1+2", "下列关于法律的说法，正确的是哪一项")
    file.write_bytes(chinese.encode("gbk"))
    refused(ceval(), "is not UTF-8; it looks like GBK", "law_val.csv, line 6", "iconv -f gb18030")
    file.write_text(text, encoding="utf-16")
    refused(ceval(), "UTF-16", "law_val.csv")


def test_archives(ceval, questions, tmp_path):
    whole = zipped(questions, tmp_path / "exam.zip")
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole.read_bytes()[:-60])
    refused(ceval(questions=cut), "cut.zip is not a whole zip archive", "download it again")
    data = bytearray(whole.read_bytes())
    data[60:90] = bytes(30)
    (tmp_path / "hole.zip").write_bytes(data)
    refused(ceval(questions=tmp_path / "hole.zip"), "is damaged in hole.zip", "download the archive again")
    for name in ("../law_val.csv", "/val/law_val.csv", "val\\..\\law_val.csv", "C:/val/law_val.csv"):
        shutil.copy(whole, tmp_path / "climbs.zip")
        with zipfile.ZipFile(tmp_path / "climbs.zip", "a") as archive:
            archive.writestr(zipfile.ZipInfo(name), "id")
        refused(ceval(questions=tmp_path / "climbs.zip"), "leads out of its folder", "climbs.zip")
    assert not (tmp_path / "run").exists()
    code, _, said = ceval(questions=tmp_path / "nowhere")
    assert code == 1 and "nowhere does not exist\n  what to do: give a folder" in said


def test_too_few_demonstrations(ceval, questions, tmp_path):
    file = questions / "dev" / "logic_dev.csv"
    file.write_text(table(rows(3), dev=True), encoding="utf-8")
    refused(
        ceval(), "logic has 3 dev questions, and 5 shots were asked for", "logic_val.csv, row 1", "3 shots"
    )
    file.unlink()
    refused(ceval(), "logic has 0 dev questions", "add dev/logic_dev.csv")
    assert not (tmp_path / "run").exists()
    assert ceval("--shots", 0)[0] == 0
    assert ceval("--subjects", "law", out="law")[0] == 0


def test_subjects(ceval, questions):
    refused(ceval("--subjects", "logics"), "no subject 'logics'", "--subjects", "did you mean logic")
    refused(ceval("--subjects", "民法"), "no subject '民法'")
    refused(ceval("--subjects", "accountant"), "no questions of accountant", "there are logic, law")
    shutil.copy(questions / "val" / "law_val.csv", questions / "val" / "lawn_val.csv")
    refused(ceval(), "no subject 'lawn'", "lawn_val.csv", "did you mean law")


def test_no_questions_of_the_split(ceval, questions):
    refused(ceval("--split", "test"), "there are no test questions", "--split")


def test_a_tokenizer_without_a_token_for_a_letter(ceval, tmp_path):
    model = tmp_path / "model"
    apart = make_tokenizer()  # ` A` takes two tokens
    make_model(len(apart), 8192).save_pretrained(model)
    apart.save_pretrained(model)
    refused(
        ceval("--form", "spaced", model=model),
        "the letter A takes 2 tokens",
        "form spaced",
        "use form='bare', or score by generation",
    )
    assert not (tmp_path / "run").exists()


def test_scores_already_computed_stay(ceval, questions, tmp_path):
    """A run of which the files are damaged while it waits goes on when they are whole again."""
    assert ceval()[0] == 0
    file, run = questions / "val" / "law_val.csv", tmp_path / "run" / ROWS
    whole, text = run.read_bytes(), file.read_text(encoding="utf-8")
    half = b"".join(whole.splitlines(keepends=True)[:5])
    run.write_bytes(half)
    file.write_text(text.replace("NA,4,C", "NA,4,E"), encoding="utf-8")
    refused(ceval("--resume"), "the answer is 'E'")
    file.write_text(text.replace("NA,4,C", "NA,4,D"), encoding="utf-8")
    refused(ceval("--resume"), "holds another run: it differs in questions_sha256")
    refused(ceval(), "holds a run already", "--resume")
    assert run.read_bytes() == half
    file.write_text(text, encoding="utf-8")
    assert ceval("--resume")[0] == 0 and run.read_bytes() == whole


def test_a_stop_says_how_to_go_on(ceval, tmp_path, monkeypatch):
    from chinese_llama_lab.ceval.reading import Reader

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read", stopped)
        code, _, said = ceval()
    assert code == 130 and "--resume" in said and str(tmp_path / "run") in said
    assert ceval("--resume")[0] == 0


def test_wrong_usage(capsys):
    for arguments in (["ceval"], ["ceval", "--model", "smollm2"], ["ceval-probe", "mood"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert "usage: " in capsys.readouterr().err
