"""Bytes of a step counted by hand, and a bandwidth that obeys its own definition."""

from __future__ import annotations

import pytest
import torch

from chinese_llama_lab.inference.bandwidth import (
    Bandwidth,
    SpeedError,
    StepBytes,
    memory_bandwidth,
    step_bytes,
)
from tests.inference.test_decode import make_model
from tests.threads import one_thread  # noqa: F401 - a fixture

LAYER = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64 + 2 * 64  # q, o; k, v; the MLP; two norms
TABLE = 211 * 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 5])
def test_bytes_by_hand(dtype, batch):
    size = dtype.itemsize
    tied = step_bytes(make_model(tied=True, dtype=dtype), context=0, batch=batch)
    assert tied == StepBytes((3 * LAYER + 64 + TABLE) * size, 0, batch)
    untied = step_bytes(make_model(dtype=dtype), context=0, batch=batch)
    assert untied.weights == tied.weights + batch * 64 * size  # the row of each sequence
    long = step_bytes(make_model(dtype=dtype), context=10, batch=batch)
    assert long.cache == batch * 10 * 3 * 2 * 2 * 16 * size  # layers, keys and values, kv_heads, width
    assert long.total == untied.weights + long.cache


def test_the_cache_is_what_transformers_holds():
    from transformers import DynamicCache

    model = make_model(kv_heads=1)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.ones(2, 7, dtype=torch.long), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert step_bytes(model, context=7, batch=2).cache == held


@pytest.mark.parametrize("double", [False, True])
def test_four_bits_with_their_scales(double):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="an optional dependency")
    model = make_model()
    before = step_bytes(model, context=0).weights
    small = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compress_statistics=double)
    small.load_state_dict(model.model.layers[0].self_attn.q_proj.state_dict())
    model.model.layers[0].self_attn.q_proj = small.to("cpu")
    scales = 64 * (
        1 if double else 4
    )  # 64 × 64 weights in blocks of 64; a byte each after a second quantization
    after = before - 64 * 64 * 4 + 64 * 64 // 2 + scales + (4 if double else 0)
    assert step_bytes(model, context=0).weights == after


def test_a_model_of_another_family():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2, n_positions=32))
    everything = sum(p.nbytes for p in model.parameters())
    read = step_bytes(model, context=3)
    assert read.weights == everything - 31 * 8 * 4  # of 32 rows of positions, one
    assert read.cache == 3 * 2 * 2 * 8 * 4


def test_the_limit():
    assert StepBytes(weights=600, cache=400, batch=1).limit(10_000) == 10
    assert StepBytes(weights=600, cache=400, batch=4).limit(10_000) == 40


def test_a_measured_bandwidth():
    found = memory_bandwidth(2**22 + 5, repeats=3)
    assert isinstance(found, Bandwidth)
    assert 0 < found.slowest <= found.bytes_per_second <= found.fastest
    assert found.size == 2**22 and found.threads == torch.get_num_threads()
    # No machine reads slower than 0.05 GB/s or, by one thread, faster than 10^4 GB/s: units would be wrong.
    assert 5e7 < found.bytes_per_second < 1e13
    assert "GB/s" in repr(found) and "4 MiB" in repr(found)


def test_impossible_sizes():
    for size, repeats in ((2**20 - 1, 3), (0, 3), (-5, 3), (2**20, 0)):
        with pytest.raises(SpeedError, match="the size is"):
            memory_bandwidth(size, repeats=repeats)
    for batch, context in ((0, 4), (1, -1)):
        with pytest.raises(SpeedError, match="batch is"):
            step_bytes(make_model(), context=context, batch=batch)
