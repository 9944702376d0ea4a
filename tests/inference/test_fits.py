"""What fits, which knob helps, and the command."""

from __future__ import annotations

import argparse

import pytest

from chinese_llama_lab.inference.commands import add_commands
from chinese_llama_lab.inference.errors import EstimateError
from chinese_llama_lab.inference.estimate import estimate
from chinese_llama_lab.inference.fits import ASKED, SETUPS, fits, gpu_bytes, knobs, longest_block, verdict
from chinese_llama_lab.inference.memory import GIB, Memory


def call(*arguments):
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True))
    options = parser.parse_args([str(argument) for argument in arguments])
    return options.handler(options)


def test_a_gpu_sold_as_24_gb_has_24_gib():
    assert gpu_bytes(24) == gpu_bytes("24 GB") == gpu_bytes("24GiB") == 24 * GIB


@pytest.mark.parametrize("size", [7, 0, -24, "many", "", 24.5, True, None])
def test_an_unknown_gpu_size_is_refused_with_the_known_ones(size):
    with pytest.raises(EstimateError, match="6, 8, 10, 11, 12, 16, 20, 24"):
        gpu_bytes(size)


def test_verdicts_at_their_edges():
    assert verdict(Memory("m", {"a": 24 * GIB + 1}), 24) == "no"
    assert verdict(Memory("m", {"a": 24 * GIB}), 24) == "tight"
    assert verdict(Memory("m", {"a": 24 * GIB * 0.9}), 24) == "fits"


def test_the_table_of_sizes():
    table = fits("llama-2-7b")
    assert table.gpus == ASKED and set(table.rows) == set(SETUPS)
    order = {"no": 0, "tight": 1, "fits": 2}
    for memory, verdicts in table.rows.values():  # what fits on a GPU fits on every larger one
        assert [order[v] for v in verdicts] == sorted(order[v] for v in verdicts)
        assert memory.total > 0
    by = {name: dict(zip(ASKED, verdicts, strict=True)) for name, (_, verdicts) in table.rows.items()}
    assert by["inference, NF4, 2,048 tokens"][8] == "fits"
    assert by["inference, bf16, 2,048 tokens"][12] == "no" and by["LoRA r 8, bf16, 1 × 512"][24] == "fits"
    assert by["full, bf16 and float32 Adam and master, 1 × 512"][80] == "no"
    assert "24 GiB" in repr(table) and "needs GB" in repr(table)
    assert fits("llama-2-7b", 24, vocabulary=55296).gpus == (24,)


def test_the_longest_block_is_the_last_that_fits():
    options = {"quantization": "nf4-double", "batch": 2}
    longest = longest_block("llama-2-7b", 12, **options)
    assert estimate("llama-2-7b", block=longest, **options).total <= gpu_bytes(12)
    assert estimate("llama-2-7b", block=longest + 1, **options).total > gpu_bytes(12)
    assert longest_block("llama-33b", 6) == 0


def test_knobs_are_true_and_in_order():
    options = {"embeddings": "published", "new_tokens": 17953, "block": 1024, "batch": 4, "vocabulary": 49953}
    found = knobs("llama-7b", "lora", **options)
    assert [knob.saved for knob in found] == sorted((knob.saved for knob in found), reverse=True)
    now = estimate("llama-7b", "lora", **options).total
    assert all(knob.saved == now - knob.memory.total > 0 for knob in found)
    changes = [knob.change for knob in found]
    assert changes[0] == "gradient_checkpointing = True"
    assert {"embeddings = new-rows", "quantization = nf4-double", "loss = lean"} <= set(changes)


@pytest.mark.parametrize("task", ["inference", "lora", "qlora", "full"])
def test_every_task_has_a_knob(task):
    assert knobs("llama-3-8b", task)
    assert all(knob.memory.total > 0 for knob in knobs("smollm2", task, block=1, rank=1))


def test_the_command(capsys):
    assert (
        call("estimate", "llama-2-7b", "--task=qlora", "--block=1024", "--gpu=6", "--gpu=24", "--knobs") == 0
    )
    said = capsys.readouterr().out
    assert "quantization constants" in said and "GiB" in said and "24 GiB: fits" in said
    assert "gradient_checkpointing = True" in said
    assert call("estimate", "llama-2-7b", "--fits", "--set=block=4096") == 0
    assert "80 GiB" in capsys.readouterr().out
    assert call("estimate", "--residuals", "--article", "--models") == 0
    said = capsys.readouterr().out
    assert "median error" in said and "torchao" in said and "6.2 GB" in said and "tinyllama" in said


def test_set_takes_text_numbers_and_lists(capsys):
    call("estimate", "smollm2", "--task", "lora", "--set", 'targets=["q_proj"]', "--set", "loss=lean")
    listed = capsys.readouterr().out
    assert f"{30 * 8 * (576 + 576) * 4 / 1e9:.3f}" in listed


@pytest.mark.parametrize(
    "arguments",
    [(), ("llama-9t",), ("smollm2", "--gpu=7"), ("smollm2", "--set=block"), ("smollm2", "--set=blok=1")],
)
def test_the_command_refuses(arguments):
    with pytest.raises(EstimateError):
        call("estimate", *arguments)


def test_a_change_that_goes_with_another_option_alone_is_left_out():
    lean = knobs("llama-7b", "lora", layers="lean")
    assert lean and not any("targets" in knob.change for knob in lean)
    full = knobs("llama-7b", "full", quantization="none")
    assert {"task = lora", "task = qlora"} <= {knob.change for knob in full}


def test_setups_that_cannot_have_an_option_are_left_out():
    table = fits("llama-7b", 24, quantization="nf4")
    assert table.rows and not any(name.startswith("full") for name in table.rows)
    with pytest.raises(EstimateError, match="no option 'blok'"):
        fits("llama-7b", 24, blok=5)


@pytest.mark.parametrize("task", ["inference", "lora", "qlora", "full"])
def test_a_task_has_its_own_setups_alone(task, capsys):
    own = [name for name, (kind, _) in SETUPS.items() if kind == task]
    assert own and list(fits("smollm2", 24, task=task).rows) == own
    assert call("estimate", "smollm2", "--fits", "--task", task) == 0
    said = capsys.readouterr().out
    assert all((name in said) == (name in own) for name in SETUPS)


def test_fits_refuses_what_it_would_not_heed():
    with pytest.raises(EstimateError, match=r"task = 'infer'\n.*\n.*inference, qlora, lora, full"):
        fits("smollm2", task="infer")
    with pytest.raises(EstimateError, match="--knobs changes one estimate"):
        call("estimate", "smollm2", "--fits", "--knobs")


def test_the_command_takes_the_names_that_other_commands_take(capsys):
    assert call("estimate", "smollm2", "--quantization=fp4", "--dtype=bf16") == 0
    short = capsys.readouterr().out
    assert call("estimate", "smollm2", "--quantization=nf4", "--dtype=bfloat16") == 0
    assert short.replace("fp4", "nf4") == capsys.readouterr().out
