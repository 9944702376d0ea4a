"""What `measure_speed` reports, against clocks and texts whose answers are known."""

from __future__ import annotations

import ctypes
import math
import sys

import pytest
import torch

from chinese_llama_lab import results
from chinese_llama_lab.inference import speed as module
from chinese_llama_lab.inference.bandwidth import SpeedError, step_bytes
from chinese_llama_lab.inference.engines import Loop
from chinese_llama_lab.inference.speed import (
    Speed,
    SpeedRow,
    Times,
    characters_per_token,
    measure_speed,
    peak_memory,
)
from tests.inference.test_decode import make_model
from tests.threads import one_thread  # noqa: F401 - a fixture
from tests.training.conftest import make_tokenizer

TEXT = "今天天气很好,我们去公园散步。"


def big_enough(**options):
    """A model with rows for the bytes tokenizer."""
    model = make_model(**options)
    model.resize_token_embeddings(300, mean_resizing=False)
    return model


QUICK = {"prompt_tokens": 6, "new_tokens": 5, "repeats": 2, "warm_up": 1, "text": TEXT}


def test_times_by_hand():
    times = Times((2.0, 4.0, 1.0), tokens=8)
    assert (times.median, times.rate, times.slowest, times.fastest) == (2.0, 4.0, 2.0, 8.0)


def test_a_row_by_hand():
    row = SpeedRow("m", "fast", 2, 10, 5, Times((2.0,), 20), Times((1.0, 4.0), 8), 1.5, 2**30, 16.0)
    assert row.decode.rate == 3.2
    assert row.characters_per_second == pytest.approx(4.8)
    assert row.share == pytest.approx(0.2)
    assert row.row()["peak_gib"] == 1.0 and row.row()["prefill"] == 10.0
    assert SpeedRow("m", "fast", 2, 10, 5, row.prefill, row.decode, 1.5, 1, None).share is None


def test_characters_of_the_reference_text():
    assert characters_per_token(make_tokenizer(), TEXT) == len(TEXT) / len(TEXT.encode())
    # A vocabulary that has the text's first character as a token needs two tokens fewer.
    longer = make_tokenizer()
    longer.add_tokens(["今"])
    assert characters_per_token(longer, TEXT) == len(TEXT) / (len(TEXT.encode()) - 2)
    with pytest.raises(SpeedError, match="gives no tokens"):
        characters_per_token(make_tokenizer(), "")


@pytest.mark.parametrize("engine", ["generate", "forward", "static", "fast"])
def test_each_engine_is_measured(engine):
    found = measure_speed(
        big_enough(), make_tokenizer(), batches=(1, 3), engine_name=engine, bandwidth=1e9, **QUICK
    )
    assert [row.batch for row in found.measured] == [1, 3]
    for row in found.measured:
        assert len(row.prefill.seconds) == len(row.decode.seconds) == 2
        assert row.prefill.tokens == 6 * row.batch and row.decode.tokens == 4 * row.batch
        assert all(0 < s < 60 for s in (*row.prefill.seconds, *row.decode.seconds))
        read = step_bytes(big_enough(), context=8, batch=row.batch)
        assert row.limit == pytest.approx(row.batch * 1e9 / read.total)
        assert row.characters_per_second == pytest.approx(row.decode.rate * len(TEXT) / len(TEXT.encode()))


def test_other_families_and_bfloat16():
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = GPT2Config(vocab_size=300, n_embd=8, n_layer=2, n_head=2, n_positions=32)
    model = GPT2LMHeadModel(settings).to(torch.bfloat16).eval()
    row = measure_speed(model, make_tokenizer(), **QUICK).measured[0]
    assert row.decode.rate > 0 and row.limit is None and row.row()["limit"] == ""
    with pytest.raises(SpeedError, match="'gpt2'"):
        measure_speed(model, make_tokenizer(), engine_name="fast", **QUICK)


class Sleeper:
    """An engine whose prefill takes one second of a fake clock and each step a quarter."""

    def __init__(self, clock):
        self.clock, self.starts, self.steps = clock, 0, 0

    def start(self, ids, new_tokens):
        self.starts += 1
        self.clock[0] += 1.0
        return ids[:, -1]

    def step(self, tokens):
        self.steps += 1
        self.clock[0] += 0.25
        return tokens


def test_prefill_and_decoding_are_timed_apart(monkeypatch):
    clock = [0.0]
    sleeper = Sleeper(clock)
    monkeypatch.setattr(module, "engine", lambda model, name: sleeper)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    options = QUICK | {"repeats": 3, "warm_up": 2}
    row = measure_speed(big_enough(), make_tokenizer(), batches=(2,), engine_name="fast", **options).measured[
        0
    ]
    assert row.prefill.seconds == (1.0, 1.0, 1.0) and row.prefill.rate == 12
    assert row.decode.seconds == (1.0, 1.0, 1.0) and row.decode.rate == 8
    assert (sleeper.starts, sleeper.steps) == (5, 20)  # the warm-up ran, and was not counted


def test_generate_is_timed_from_its_first_token(monkeypatch):
    """A forward that takes 3 s for a prompt and 0.5 s for a token, on a fake clock."""
    clock = [0.0]
    model = big_enough()
    real = model.forward

    def slow(*arguments, **options):
        clock[0] += 3.0 if options["input_ids"].shape[1] > 1 else 0.5
        return real(*arguments, **options)

    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(model, "forward", slow)
    row = measure_speed(model, make_tokenizer(), **QUICK).measured[0]
    assert row.prefill.seconds == (3.0, 3.0)
    assert row.decode.seconds == (2.0, 2.0)


@pytest.mark.parametrize("engine", ["generate", "fast"])
def test_eos_does_not_stop_the_clock(engine):
    model = big_enough()
    model.generation_config.eos_token_id = list(range(300))  # whatever comes is an end
    row = measure_speed(model, make_tokenizer(), engine_name=engine, **QUICK).measured[0]
    assert row.decode.tokens == 4 and min(row.decode.seconds) > 0
    assert model.generation_config.eos_token_id == list(range(300))


def test_the_prompt(monkeypatch):
    seen = []
    real = Loop.start

    def watched(self, ids, new_tokens):
        seen.append(ids.tolist())
        return real(self, ids, new_tokens)

    monkeypatch.setattr(Loop, "start", watched)
    options = QUICK | {"repeats": 1, "warm_up": 0, "engine_name": "forward"}
    tokenizer = make_tokenizer()
    measure_speed(big_enough(), tokenizer, prompt="ab", **options)
    measure_speed(big_enough(), tokenizer, **(options | {"prompt_tokens": 5, "text": "xyz"}))
    ab, xyz = (tokenizer.encode(t, add_special_tokens=False) for t in ("ab", "xyz"))
    assert seen == [[ab], [[*xyz, *xyz[:2]]]]


def test_modes_come_back():
    model = big_enough().train()
    measure_speed(model, make_tokenizer(), **QUICK)
    assert model.training


def test_peak_memory_sees_what_was_freed():
    with peak_memory("cpu") as quiet:
        pass
    with peak_memory("cpu") as loud:
        block = torch.ones(2**26)  # 256 MiB
        del block
    assert loud[0] - quiet[0] > 200 * 2**20


def test_peak_memory_does_not_count_what_was_freed_before():
    """256 MiB that are freed but held by malloc: a last block above them keeps the heap from shrinking."""
    if not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("only glibc can be asked to give memory back")
    blocks = [bytearray(2**16 - 1) for _ in range(2**12)]
    with peak_memory("cpu") as full:
        pass
    last = blocks.pop()
    blocks.clear()
    with peak_memory("cpu") as freed:
        pass
    assert full[0] - freed[0] > 200 * 2**20
    assert len(last) == 2**16 - 1


def test_rows_are_saved_and_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_RESULTS_DIR", str(tmp_path))
    found = measure_speed(big_enough(), make_tokenizer(), batches=(1, 2), name="tiny", **QUICK)
    saved = results.save("speed_test", found.rows)
    assert [row["batch"] for row in saved.rows] == ["1", "2"]
    lines = repr(found).splitlines()
    assert len(lines) == 3 and "characters_per_second" in lines[0] and "tiny" in lines[1]
    assert "<table>" in found._repr_html_()
    assert all(
        math.isfinite(v) for row in Speed(found.measured).rows for v in row.values() if type(v) is float
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"new_tokens": 1},
        {"prompt_tokens": 0},
        {"batches": ()},
        {"batches": (1, 0)},
        {"repeats": 0},
        {"warm_up": -1},
    ],
)
def test_impossible_sizes(wrong):
    with pytest.raises(SpeedError, match=next(iter(wrong))):
        measure_speed(big_enough(), make_tokenizer(), **(QUICK | wrong))


def test_other_bad_input():
    tokenizer = make_tokenizer()
    with pytest.raises(SpeedError, match="no engine 'quick'"):
        measure_speed(big_enough(), tokenizer, engine_name="quick", **QUICK)
    with pytest.raises(SpeedError, match="context of 64"):
        measure_speed(big_enough(), tokenizer, **(QUICK | {"prompt_tokens": 60}))
    for options in ({"text": ""}, {"prompt": ""}):
        with pytest.raises(SpeedError, match="gives no tokens"):
            measure_speed(big_enough(), tokenizer, **(QUICK | options))
