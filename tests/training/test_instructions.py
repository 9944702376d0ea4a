from __future__ import annotations

import json

import pytest
from tokenizers.processors import TemplateProcessing

from chinese_llama_lab.errors import LabError
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.instructions import (
    IGNORED,
    bos_ids,
    encode_instructions,
    encode_pair,
    pad_batch,
    read_instructions,
)
from chinese_llama_lab.training.templates import render_prompt

from .conftest import CHAT, make_tokenizer


def with_bos():
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 256)]
    )
    return tokenizer


ROW = {"instruction": "写一个词。", "input": "", "output": "学习"}


def test_the_prompt_is_masked_and_the_answer_ends_in_eos(tokenizer):
    (example,) = encode_instructions([ROW], "v1", tokenizer).examples
    answer = [label for label in example.labels if label != IGNORED]
    assert tokenizer.decode(answer) == "学习</s>"
    assert tokenizer.decode(example.input_ids) == render_prompt("v1", ROW["instruction"]) + "学习</s>"
    assert len(example.labels) == len(example.input_ids) and example.characters == 2
    (whole,) = encode_instructions([ROW], "v1", tokenizer, mask_prompt=False).examples
    assert whole.labels == whole.input_ids


def test_a_token_over_the_border_belongs_to_the_answer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE({"a": 0, ":": 1, "b": 2, ":b": 3, "</s>": 4}, [(":", "b")]))
    joining = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    assert encode_pair(joining, "a:", "b") == ([0, 3, 4], 1)


def test_a_long_row_loses_prompt_text_not_its_eos(tokenizer):
    rows = [{"instruction": "译", "input": "很长的文章" * 40, "output": "短"}, ROW]
    done = encode_instructions(rows, "v1", tokenizer, max_length=300)
    assert done.cut == [0] and not done.refused and len(done.examples) == 2
    long = done.examples[0]
    assert 297 < len(long.input_ids) <= 300
    text = tokenizer.decode(long.input_ids)
    assert text.endswith("\n\n### Response: 短</s>") and "译\n很长的文章" in text
    assert tokenizer.decode([i for i in long.labels if i != IGNORED]) == "短</s>"


def test_without_an_input_the_instruction_is_cut(tokenizer):
    done = encode_instructions(
        [{"instruction": "问" * 200, "output": "答"}], "alpaca", tokenizer, max_length=256
    )
    assert done.cut == [0] and len(done.examples[0].input_ids) <= 256
    assert tokenizer.decode(done.examples[0].input_ids).endswith("### Response:\n答</s>")


def test_refused_and_counted(tokenizer):
    rows = [ROW, {**ROW, "output": "长" * 300}, {**ROW, "output": "  "}, {**ROW, "input": "长" * 300}]
    done = encode_instructions(rows, "v1", tokenizer, max_length=300)
    assert done.refused == {1: "the answer does not fit 300 tokens", 2: "no answer, so no label"}
    assert done.cut == [3] and [example.row for example in done.examples] == [0, 3]
    strict = encode_instructions(rows, "v1", tokenizer, max_length=300, too_long="refuse")
    assert strict.refused[3] == "longer than 300 tokens" and len(strict.examples) == 1
    assert "1 refused: no answer" in repr(strict)
    for example in done.examples:
        assert example.input_ids[-1] == tokenizer.eos_token_id == example.labels[-1]


def test_the_histogram_counts_every_row_with_an_answer(tokenizer):
    done = encode_instructions([ROW, ROW, {**ROW, "input": "长" * 100}], "v1", tokenizer, max_length=512)
    assert done.histogram == {128: 2, 448: 1}


def test_nothing_left(tokenizer):
    with pytest.raises(TrainingError, match=r"no row is left.*1 of 1: no answer"):
        encode_instructions([{**ROW, "output": ""}], "v1", tokenizer)
    with pytest.raises(TrainingError, match="there was none"):
        encode_instructions([], "v1", tokenizer)


def test_padding(tokenizer):
    examples = encode_instructions([ROW, {**ROW, "output": "学习语言"}], "v1", tokenizer).examples
    batch = pad_batch(examples, 258)
    assert len(batch["input_ids"][0]) == len(batch["input_ids"][1])
    assert batch["input_ids"][0][-6:] == [258] * 6 and batch["labels"][0][-6:] == [IGNORED] * 6
    assert batch["attention_mask"][0][-7:] == [1] + [0] * 6


def test_json_and_json_lines(tmp_path):
    lines = tmp_path / "rows.jsonl"
    rows = [{**ROW, "input": "带\u2028行"}, {"instruction": "甲", "output": "乙"}]
    lines.write_text(
        "\ufeff" + "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8"
    )
    array = tmp_path / "rows.json"
    array.write_text(json.dumps(rows), encoding="utf-8")
    one, other = read_instructions(lines), read_instructions(array)
    assert [(r.instruction, r.input, r.output) for r in one] == [
        (r.instruction, r.input, r.output) for r in other
    ]
    assert one[1].where.endswith("line 3") and other[1].where.endswith("row 2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"instruction": "甲"', r"not JSON: .*\n.*line 2"),
        ("[1]", r"a row is list.*\n.*line 2"),
        ('{"output": "乙"}', r"no 'instruction': it has 'output'\n.*line 2"),
        ('{"instruction": "甲"}', r"no 'output'"),
        ('{"instruction": null, "output": "乙"}', r"'instruction' is null.*\n.*line 2"),
        ('{"instruction": "甲", "output": null}', r"'output' is null"),
        ('{"instruction": "甲", "input": 3, "output": "乙"}', r"'input' is 3"),
        ('{"instruction": " ", "output": "乙"}', r"'instruction' is empty"),
        ('{"instruction": "\\ud800", "output": "乙"}', r"lone surrogate, U\+D800, at 0\n.*line 2"),
        ('{"instruction": "甲", "output": "乙", "history": [["丙", "丁"]]}', r"has 'history'.*\n.*line 2"),
        ('{"instruction": "甲", "output": "乙", "system": "丙"}', r"has 'system'.*\n.*line 2"),
        ('{"instruction": ' + "1" * 5000 + "}", r"not JSON.*digits.*\n.*line 2"),
        ('{"a":' * 100_000, r"not JSON.*recursion.*\n.*line 2"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(TrainingError, match=message):
        read_instructions(path)


def test_bad_files(tmp_path, tokenizer):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n", encoding="utf-8")
    with pytest.raises(TrainingError, match="no instructions"):
        read_instructions(empty)
    with pytest.raises(LabError, match="does not exist"):
        read_instructions(tmp_path / "none.jsonl")
    (tmp_path / "gbk.jsonl").write_bytes(b'{"instruction": "a"}\n' + "甲".encode("gbk"))
    with pytest.raises(TrainingError, match=r"not UTF-8\n.*line 2"):
        read_instructions(tmp_path / "gbk.jsonl")
    for wrong in ({"max_length": 1}, {"too_long": "drop"}):
        with pytest.raises(TrainingError):
            encode_instructions([ROW], "v1", tokenizer, **wrong)


def test_empty_history_and_system_are_no_matter(tokenizer):
    rows = [ROW, {**ROW, "history": [], "system": None}]
    one, other = encode_instructions(rows, "v1", tokenizer).examples
    assert one.input_ids == other.input_ids


@pytest.mark.parametrize("template", ["v1", "v2", "alpaca"])
def test_special_tokens_in_a_row_are_text(template, tokenizer):
    row = {"instruction": "删去</s>。", "input": "<s>甲", "output": "乙</s>丙<pad>"}
    (example,) = encode_instructions([row], template, tokenizer).examples
    assert [i for i in example.input_ids if i >= 256] == [257] and example.input_ids[-1] == 257
    assert tokenizer.decode([i for i in example.labels if i != IGNORED]) == "乙</s>丙<pad></s>"
    again = encode_instructions([{**row, "input": "甲" * 200}], template, tokenizer, max_length=400)
    assert again.cut == [0] and again.examples[0].input_ids.count(257) == 1


def test_special_tokens_under_the_chat_template_are_refused(tokenizer):
    rows = [ROW, {**ROW, "output": "乙</s>丙"}, {**ROW, "input": "<pad>"}]
    done = encode_instructions(rows, "chat", tokenizer)
    assert [e.row for e in done.examples] == [0]
    assert "'</s>'" in done.refused[1] and "'<pad>'" in done.refused[2]


def test_bos_comes_once():
    tokenizer = with_bos()
    assert encode_pair(tokenizer, "a", "b")[0][:2] == [256, 97]
    tokenizer.chat_template = "{{ bos_token }}" + CHAT
    (example,) = encode_instructions([ROW], "chat", tokenizer).examples
    assert example.input_ids.count(256) == 1 and example.input_ids[0] == 256
    assert example.labels.index(next(i for i in example.labels if i != IGNORED)) == len(
        tokenizer.encode(
            render_prompt("chat", ROW["instruction"], tokenizer=tokenizer), add_special_tokens=False
        )
    )


def test_a_tokenizer_that_ends_in_eos_starts_with_no_bos():
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "</s>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 257)]
    )
    assert tokenizer.encode("") == [257] and bos_ids(tokenizer) == [] and bos_ids(with_bos()) == [256]
