"""Packing by hand, sizes, memory, other kinds, the way to bitsandbytes, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from chinese_llama_lab.quantization.blockwise import (
    Quantized,
    dequantize,
    dequantize_nf4,
    quantize,
    quantize_nf4,
)
from chinese_llama_lab.quantization.checks import BLOCK_SIZES, check_rows
from chinese_llama_lab.quantization.codebooks import KINDS, code_of
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.scales import QuantizedScales

from .conftest import assert_same_bits, assert_same_values


def test_packing_by_hand():
    # −1 is code 0, 0 is 7, 1 is 15; 0.5 lies between 0.4407 (12) and 0.5626 (13), nearer to the first.
    quantized = quantize_nf4(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]))
    assert [hex(byte) for byte in quantized.codes.tolist()] == ["0x7", "0xfc"]
    assert quantized.absmax.tolist() == [2.0]
    assert dequantize_nf4(quantized).tolist() == [[-2.0, 0.0], [2.0, 2 * 0.44070982933044434]]
    # An odd one out is packed with the code of zero.
    assert [hex(byte) for byte in quantize_nf4(torch.tensor([-1.0, 0.0, 1.0])).codes.tolist()] == [
        "0x7",
        "0xf7",
    ]


def test_each_block_has_its_own_scale():
    weights = torch.cat([torch.full((64,), 0.5), torch.full((64,), -8.0), torch.full((3,), 3.0)])
    quantized = quantize_nf4(weights)
    assert quantized.absmax.tolist() == [0.5, 8.0, 3.0]
    assert torch.equal(dequantize_nf4(quantized), weights)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int4"])
def test_values_of_the_book_come_back(kind):
    values = code_of(kind).repeat(10)
    for scale in (1.0, 0.25, 1024.0):
        weights = values * scale
        assert torch.equal(dequantize(quantize(weights, kind, 32)), weights)


def test_quantizing_again_changes_nothing():
    weights = torch.randn(77, 130, generator=torch.Generator().manual_seed(0))
    for kind in KINDS:
        once = dequantize(quantize(weights, kind))
        assert torch.allclose(dequantize(quantize(once, kind)), once, rtol=1e-6, atol=0)


def test_int8_by_hand():
    quantized = quantize(torch.tensor([127.0, -127.0, 1.0, 0.4, 0.6]), "int8")
    assert quantized.codes.dtype == torch.int8 and quantized.codes.tolist() == [127, -127, 1, 0, 1]
    assert dequantize(quantized).tolist() == pytest.approx([127, -127, 1, 0, 1])
    assert quantized.bytes == 5 + 4
    zeros = torch.zeros(2, 100)
    assert torch.equal(dequantize(quantize(zeros, "int8")), zeros)


def test_int4_by_hand():
    quantized = quantize(torch.tensor([-7.0, 7.0, 0.4, 0.6]), "int4")
    assert [hex(byte) for byte in quantized.codes.tolist()] == ["0xe", "0x78"]


def test_no_weight_is_farther_than_half_a_step():
    weights = torch.randn(50, 100, generator=torch.Generator().manual_seed(0))
    for kind, half in (("int8", 1 / 254), ("int4", 1 / 14), ("nf4", (1 - 0.6961928) / 2), ("fp4", 1 / 6)):
        quantized = quantize(weights, kind)
        error = (dequantize(quantized) - weights).abs().view(-1)
        limit = quantized.scales().repeat_interleave(64)[: len(error)] * half
        assert bool((error <= limit * 1.0001).all())
        assert bool((error > limit * 0.9).any())


def test_int8_beside_bitsandbytes_rows():
    from bitsandbytes.functional import int8_vectorwise_quant

    weights = torch.randn(300, 128, generator=torch.Generator().manual_seed(0)).to(torch.float16)
    codes, scales, _ = int8_vectorwise_quant(weights)
    quantized = quantize(weights, "int8", 128)
    assert_same_bits(quantized.absmax, scales)
    differing = (quantized.codes.view(300, 128) - codes).abs()
    # It multiplies in float16, so a code next to a half may be the neighbour.
    assert int(differing.max()) <= 1 and float((differing > 0).double().mean()) < 0.02


@pytest.mark.parametrize(
    ("kind", "double", "bits"), [("nf4", False, 4.5), ("nf4", True, 4.127), ("int8", False, 8.5)]
)
def test_bits_of_a_weight(kind, double, bits):
    quantized = quantize(torch.ones(1024, 1024), kind, 64, double)
    assert round(quantized.bits_per_weight, 3) == bits
    stored = [quantized.codes]
    scales = quantized.absmax
    stored += (
        [scales.codes, scales.absmax, scales.offset] if isinstance(scales, QuantizedScales) else [scales]
    )
    assert quantized.bytes == sum(t.numel() * t.element_size() for t in stored)
    assert f"{bits:.3f} bits a weight" in repr(quantized) and "tensor(" not in repr(quantized)


class Watch(TorchDispatchMode):
    """Sizes of the storages that operations made, in bytes, by address."""

    def __init__(self, known):
        super().__init__()
        self.known, self.made = known.untyped_storage().data_ptr(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.known:
                self.made.append(tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_matrix_needs_little_beside_itself(kind):
    weights = torch.randn(2048, 3072)
    with Watch(weights) as quantizing:
        quantized = quantize(weights, kind, 64, double=True)
    assert {size for size in quantizing.made if size > 2**18} == {
        len(quantized.codes),
        4 * len(quantized.scales()),
    }
    with Watch(quantized.codes) as restoring:
        dequantize(quantized)
    # Beside the weights: the scales and each thread's buffers, under a MiB each.
    assert {size for size in restoring.made if size > 2**20} == {4 * weights.numel()}


def test_result_in_another_dtype():
    weights = torch.randn(10, 70)
    quantized = quantize_nf4(weights)
    for dtype in (torch.float16, torch.bfloat16):
        assert_same_bits(dequantize_nf4(quantized, dtype), dequantize_nf4(quantized).to(dtype))
    with pytest.raises(QuantizationError, match=r"weights of torch\.int8 are not made"):
        dequantize_nf4(quantized, torch.int8)


@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_takes_it(double):
    import bitsandbytes.functional as functional
    from bitsandbytes import matmul_4bit

    generator = torch.Generator().manual_seed(0)
    weights, inputs = torch.randn(96, 128, generator=generator), torch.randn(3, 128, generator=generator)
    for kind in ("nf4", "fp4"):
        quantized = quantize(weights, kind, 64, double)
        packed, state = quantized.to_bitsandbytes()
        values = dequantize(quantized)
        assert_same_values(kind, functional.dequantize_4bit(packed, state), values)
        assert torch.allclose(matmul_4bit(inputs, packed, state), inputs @ values.t(), atol=1e-4)
        saved = functional.QuantState.from_dict(dict(state.as_dict(packed=True)), torch.device("cpu"))
        assert_same_values(kind, functional.dequantize_4bit(packed, saved), values)
    with pytest.raises(QuantizationError, match="no blocks of int8"):
        quantize(weights, "int8").to_bitsandbytes()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_first_nan_or_infinity_is_named(bad, dtype):
    weights = torch.randn(20, 33).to(dtype)
    weights[3, 17] = weights[19, 32] = bad
    for kind in KINDS:
        with pytest.raises(QuantizationError, match=r"(?s)holds (nan|inf|-inf) \(2 of 660.*q_proj\[3, 17\]"):
            quantize(weights, kind, name="q_proj")
    with pytest.raises(QuantizationError, match=r"(?s)spoil 1 block\).*\[65\]"):
        quantize_nf4(torch.tensor([1.0] * 65 + [bad, 1.0]))
    with pytest.raises(QuantizationError, match=r"tensor\[32, 19\]|tensor\[17, 3\]"):
        quantize_nf4(weights.t())


def test_bad_input():
    def refused(message, *arguments, **options):
        with pytest.raises(QuantizationError, match=message):
            quantize(*arguments, **options)

    refused(r"w of shape \[0, 4\] is empty", torch.ones(0, 4), name="w")
    refused(r"holds torch\.int64; weights are float32", torch.arange(4))
    refused(r"holds torch\.uint8(.|\n)*quantized already", torch.ones(4, dtype=torch.uint8))
    refused(r"holds torch\.float64(.|\n)*\.float\(\)", torch.ones(4, dtype=torch.float64))
    refused(r"holds torch\.bool", torch.ones(4, dtype=torch.bool))
    refused(r"holds torch\.complex64", torch.ones(4, dtype=torch.complex64))
    refused("is a list, not a tensor", [1.0, 2.0])
    refused("on the meta device", torch.ones(4, device="meta"))
    refused(r"of layout torch\.sparse_coo", torch.eye(4).to_sparse())
    refused("no kind 'nf3'", torch.ones(4), "nf3")
    for size in (0, -64, 1, 63, 96, 8192, 64.0, "64", None, True):
        refused(r"blocks of .* are not allowed(.|\n)*32, 64, 128", torch.ones(4), "nf4", size)
    with pytest.raises(QuantizationError, match="quantized as int8, not nf4"):
        dequantize_nf4(quantize(torch.ones(4), "int8"))


def test_a_damaged_quantized_tensor_is_refused():
    good = quantize_nf4(torch.ones(4, 64))
    doubled = quantize_nf4(torch.ones(4, 64), double=True)
    for change in (
        {"codes": good.codes[:-1]},
        {"codes": good.codes.to(torch.int8)},
        {"codes": good.codes.view(-1, 1)},
        {"absmax": good.absmax[:-1]},
        {"shape": torch.Size([4, 65])},
        {"block_size": 128},
        {"kind": "int8"},
    ):
        with pytest.raises(
            QuantizationError, match=r"do not make a tensor of shape(.|\n)*quantize the weights"
        ):
            dataclasses.replace(good, **change)
    with pytest.raises(QuantizationError, match="are not scales in 8 bits"):
        dataclasses.replace(doubled.absmax, absmax=torch.ones(2))
    with pytest.raises(QuantizationError, match="blocks of 100 weights are not allowed"):
        Quantized(good.codes, good.absmax, good.shape, good.dtype, 100, "nf4")


def test_rows_that_do_not_divide():
    check_rows((10, 576), 64, "q_proj")
    with pytest.raises(
        QuantizationError, match=r"(?s)q_proj has rows of 576.*blocks of 128.*blocks of 32 or 64"
    ):
        check_rows((10, 576), 128, "q_proj")
    with pytest.raises(QuantizationError, match=r"(?s)rows of 33.*leave it in 16 bits"):
        check_rows((10, 33), 64, "odd")
    assert [size for size in BLOCK_SIZES if 11_008 % size == 0] == [32, 64, 128, 256]
