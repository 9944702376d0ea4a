"""NF4 and FP4 give the bits that bitsandbytes gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chinese_llama_lab.quantization.blockwise import (
    dequantize,
    dequantize_nf4,
    quantize,
    quantize_nf4,
)
from chinese_llama_lab.quantization.checks import BLOCK_SIZES
from chinese_llama_lab.quantization.chunks import CHUNK

from .conftest import DTYPES, assert_equals_bitsandbytes, assert_same_bits, assert_same_values, reference

SHAPES = [
    (1,),
    (5,),
    (64,),
    (65,),
    (4097,),
    (1, 1),
    (3, 1),
    (7, 9, 11),
    (2, 3, 64),
    (33, 77),
    (100, 48),
    (96, 576),
    (1, CHUNK + 1),
    (257, 4096),
    (),
]


def normal(shape, dtype, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_and_block_size(shape, dtype, double):
    weights = normal(shape, dtype)
    for block_size in BLOCK_SIZES:
        quantized = quantize_nf4(weights, block_size, double)
        assert_equals_bitsandbytes(quantized, dequantize_nf4(quantized), weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 128), (33, 77), (50, 66), (1000, 1000)], ids=str)
def test_values_as_bitsandbytes_gives_them_for_the_shape_itself(shape, dtype):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weights = normal(shape, dtype)
    for kind in ("nf4", "fp4"):
        for double in (False, True):
            packed, state = quantize_4bit(weights, quant_type=kind, compress_statistics=double)
            values = dequantize(quantize(weights, kind, 64, double))
            assert_same_values(kind, values, dequantize_4bit(packed, state))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fp4(dtype):
    for shape in ((5,), (33, 77), (96, 576), (1, CHUNK + 1)):
        for double in (False, True):
            weights = normal(shape, dtype)
            quantized = quantize(weights, "fp4", 128, double)
            assert_equals_bitsandbytes(quantized, dequantize(quantized), weights)


@settings(max_examples=80, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    block_size=st.sampled_from(BLOCK_SIZES),
    double=st.booleans(),
    kind=st.sampled_from(["nf4", "fp4"]),
    exponent=st.integers(-6, 4),
    seed=st.integers(0, 2**31),
)
def test_heavy_tails_and_zeros(shape, dtype, block_size, double, kind, exponent, seed):
    weights = normal(shape, torch.float32, seed)
    weights = (weights**3 * 10.0**exponent).to(dtype)
    weights[..., seed % weights.shape[-1]] = 0
    quantized = quantize(weights, kind, block_size, double)
    assert_equals_bitsandbytes(quantized, dequantize(quantized), weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_finite_number_of_sixteen_bits(dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    shuffled = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]
    for block_size in (64, 4096):
        quantized = quantize_nf4(shuffled, block_size)
        assert_equals_bitsandbytes(quantized, dequantize_nf4(quantized), shuffled)


def test_on_and_beside_every_midpoint():
    from bitsandbytes.functional import get_4bit_type

    for kind in ("nf4", "fp4"):
        code = get_4bit_type(kind, "cpu").sort().values
        middle = (code[:-1] + code[1:]) / 2
        infinity = torch.tensor(torch.inf)
        near = torch.cat([middle, middle.nextafter(infinity), middle.nextafter(-infinity)])
        generator = torch.Generator().manual_seed(0)
        blocks = torch.cat([near, torch.ones(64 - len(near))]) * torch.rand(500, 1, generator=generator) * 3
        for weights in (blocks, *(row[:50] for row in blocks)):  # and as a short block alone
            quantized = quantize(weights, kind)
            assert_equals_bitsandbytes(quantized, dequantize(quantized), weights)


@pytest.mark.parametrize("double", [False, True])
def test_zero_blocks_and_extreme_magnitudes(double):
    zeros = torch.zeros(3, 70)
    assert_equals_bitsandbytes(quantize_nf4(zeros, 64, double), zeros, zeros)
    tiny = torch.rand(10, 66, generator=torch.Generator().manual_seed(0)) * 1e-39
    mixed = torch.cat([torch.zeros(1, 66), tiny, torch.ones(1, 66), tiny * 1e30, -torch.zeros(1, 66)])
    large = torch.rand(5, 64) * 1e37
    for weights in (tiny, mixed, large, tiny.to(torch.bfloat16)):
        quantized = quantize_nf4(weights, 64, double)
        assert_equals_bitsandbytes(quantized, dequantize_nf4(quantized), weights)


@pytest.mark.parametrize("double", [False, True])
def test_views_give_what_their_copies_give(double):
    base = normal((130, 96), torch.float32)
    views = [base.t(), base[::2], base[:, 1:], base[:, ::3], base.expand(2, 130, 96), base.flip(0)[3:]]
    for view in views:
        assert not view.is_contiguous() or view.storage_offset() or view is views[-1]
        quantized, copied = (
            quantize_nf4(view, 64, double),
            quantize_nf4(view.clone().contiguous(), 64, double),
        )
        assert_same_bits(quantized.codes, copied.codes)
        assert_equals_bitsandbytes(quantized, dequantize_nf4(quantized), view)
    transposed = dequantize_nf4(quantize_nf4(base.t()))
    assert transposed.is_contiguous() and transposed.shape == (96, 130)
    assert not torch.equal(transposed, dequantize_nf4(quantize_nf4(base)).t())  # other blocks


@pytest.mark.parametrize("inference", [False, True])
def test_several_threads_give_what_one_gives(inference):
    weights = normal((40 * CHUNK + 77,), torch.bfloat16)
    alone = quantize_nf4(weights, 128, True)
    torch.set_num_threads(3)
    with torch.inference_mode(inference):
        together = quantize_nf4(weights, 128, True)
        values = dequantize_nf4(together)
    assert_same_bits(together.codes, alone.codes)
    assert_same_bits(together.scales(), alone.scales())
    assert_same_bits(values, dequantize_nf4(alone))


def test_parameters_and_the_weights_are_left_alone():
    parameter = torch.nn.Parameter(normal((8, 64), torch.float32))
    before = parameter.detach().clone()
    quantized = quantize_nf4(parameter)
    assert torch.equal(parameter, before)
    assert not quantized.absmax.requires_grad and not dequantize_nf4(quantized).requires_grad


def test_bitsandbytes_itself_is_right_only_where_rows_divide():
    """Why `check_rows` is there, and why values are compared as one row above."""
    from bitsandbytes.functional import dequantize_4bit

    weights = normal((300, 160), torch.float32)
    packed, state, flat = reference(weights)
    by_row = dequantize_4bit(packed.view(-1, 1), state)
    if torch.equal(by_row, flat):
        pytest.skip("bitsandbytes has no AVX-512 kernel for this processor, or was repaired")
    assert (by_row - weights).norm() > 2 * (flat - weights).norm()
    assert torch.equal(dequantize_nf4(quantize_nf4(weights)), flat)
