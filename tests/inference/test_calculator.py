"""The calculator says what `estimate` says, whichever way its dials are turned."""

from __future__ import annotations

import pytest

from chinese_llama_lab.inference.calculator import Calculator, as_html, case_rows, component_rows, grouped
from chinese_llama_lab.inference.errors import EstimateError
from chinese_llama_lab.inference.estimate import estimate
from chinese_llama_lab.inference.memory import Memory

CASES = {
    "bf16": estimate("llama-2-7b", block=2048),
    "nf4": estimate("llama-2-7b", quantization="nf4"),
    "published": estimate("llama-2-7b", "lora", embeddings="published"),
    "rows": estimate("chinese-llama-7b", "lora", embeddings="new-rows", new_tokens=17953),
    "full": estimate("llama-2-7b", "full", master_weights=True),
}


@pytest.mark.parametrize("name", CASES)
def test_groups_leave_nothing_out(name):
    groups = grouped(CASES[name])
    assert sum(groups.values()) == pytest.approx(CASES[name].total)
    assert "other" not in groups, "a component of `estimate` has no group"


def test_a_component_that_is_not_known_is_shown_as_other():
    assert grouped(Memory("m", {"KV cache": 2.0, "a new part": 3.0})) == {"KV cache": 2.0, "other": 3.0}


def test_rows_of_components_add_up_and_name_both_units():
    rows = component_rows(CASES["nf4"])
    assert list(rows[0]) == ["component", "GB", "GiB", "share"]
    *parts, total = rows
    assert total == {
        "component": "total",
        "GB": f"{CASES['nf4'].gb:.3f}",
        "GiB": f"{CASES['nf4'].gib:.3f}",
        "share": "100.0%",
    }
    assert sum(float(row["GB"]) for row in parts) == pytest.approx(CASES["nf4"].gb, abs=0.01)
    assert component_rows(Memory("nothing", {}))[-1]["share"] == ""


def test_rows_of_cases_have_the_same_columns():
    rows = case_rows(CASES)
    assert len({tuple(row) for row in rows}) == 1
    for row, memory in zip(rows, CASES.values(), strict=True):
        values = [float(value) for key, value in row.items() if key not in ("GiB", "total", "total in GB")]
        assert sum(values) == pytest.approx(memory.gib, abs=0.06)
        assert row["total"] == f"{memory.gib:.2f}" and row["total in GB"] == f"{memory.gb:.2f}"


def test_turning_a_dial_changes_the_answer_to_what_estimate_says():
    calculator = Calculator(model="llama-2-7b")
    assert calculator.memory == estimate("llama-2-7b")
    before = calculator.answer.value
    calculator.dials["task"].value = "qlora"
    calculator.dials["rank"].value = 64
    calculator.dials["block"].value = 2048
    calculator.dials["batch"].value = 4
    expected = estimate("llama-2-7b", "qlora", rank=64, block=2048, batch=4, gradient_checkpointing=True)
    assert calculator.memory == expected
    assert calculator.answer.value == as_html(expected) != before
    calculator.dials["gradient_checkpointing"].value = False
    assert calculator.memory.total > expected.total


def test_new_tokens_lengthen_the_vocabulary_and_can_be_trained_alone():
    calculator = Calculator(model="llama-7b", task="lora", new_tokens=17953, embeddings="new-rows")
    expected = estimate(
        "llama-7b",
        "lora",
        vocabulary=49953,
        embeddings="new-rows",
        new_tokens=17953,
        gradient_checkpointing=True,
    )
    assert calculator.memory == expected


def test_dials_that_do_not_matter_are_switched_off():
    calculator = Calculator(task="inference", rank=64)
    off = {name for name, dial in calculator.dials.items() if dial.disabled}
    assert off == {"rank", "embeddings", "gradient_checkpointing"}
    assert calculator.memory == estimate("llama-2-7b")
    calculator.dials["task"].value = "full"
    off = {name for name, dial in calculator.dials.items() if dial.disabled}
    assert off == {"rank", "embeddings"}


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({"task": "full", "quantization": "nf4"}, "quantized weights have no gradient"),
        ({"task": "lora", "embeddings": "new-rows"}, "number of new rows"),
    ],
)
def test_what_cannot_be_is_answered_with_the_reason_and_mended_by_the_next_turn(start, said):
    calculator = Calculator(**start)
    assert calculator.memory is None and said in calculator.answer.value
    calculator.dials["task"].value = "inference"
    assert calculator.memory is not None and "<table>" in calculator.answer.value


@pytest.mark.parametrize(
    "start",
    [
        {"model": "gpt-5"},
        {"rank": 7},
        {"block": 0},
        {"new_tokens": -1},
        {"gradient_checkpointing": "perhaps"},
        {"colour": 1},
    ],
)
def test_a_dial_that_is_not_there_or_has_no_such_position_is_refused(start):
    with pytest.raises(EstimateError, match=next(iter(start))):
        Calculator(**start)


def test_names_are_escaped():
    assert "<i>" not in as_html(Memory("<i>", {"<b>": 1.0}))
    assert "&lt;i&gt;" in as_html(Memory("<i>", {"<b>": 1.0}))


def test_the_box_shows_every_dial_and_the_answer():
    calculator = Calculator()
    dials, answer = calculator.box.children
    assert tuple(dials.children) == tuple(calculator.dials.values()) and answer is calculator.answer
    assert "24 GiB: ✔ fits" in answer.value and "6 GiB: ✘ no" in answer.value
