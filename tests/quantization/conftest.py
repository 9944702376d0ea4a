"""bitsandbytes as the reference."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """One thread: on busy cores, threads that wait for each other cost more than small tensors do.

    And no compiling: bitsandbytes compiles a function anew for every odd shape, which takes seconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.compiler.set_stance("force_eager"):
        yield
    torch.set_num_threads(threads)


def reference(weights, kind="nf4", block_size=64, double=False):
    """(packed [bytes], state, values) of bitsandbytes.

    Values are asked for as one long row: its AVX-512 kernel counts blocks from the start of each row, and
    takes the scales of other blocks where a row is not a whole number of blocks.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weights, quant_type=kind, blocksize=block_size, compress_statistics=double)
    flat = copy.copy(state)
    flat.shape = torch.Size([weights.numel()])
    values = dequantize_4bit(packed.view(-1, 1), flat)
    return packed.view(-1), state, values.reshape(weights.shape)


def assert_same_bits(one, other):
    """Equal to the bit: a zero has a sign."""
    assert one.dtype == other.dtype and one.shape == other.shape
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[one.element_size()]
    assert torch.equal(one.contiguous().view(integer), other.contiguous().view(integer))


def assert_same_values(kind, one, other):
    """Equal to the bit; but FP4's code 8 is zero or minus zero, as bitsandbytes' kernels please."""
    if kind == "fp4":
        one, other = one + 0.0, other + 0.0
    assert_same_bits(one, other)


def assert_equals_bitsandbytes(quantized, values, weights):
    """Codes, scales, and values of `quantized` are bitsandbytes' to the bit."""
    packed, state, expected = reference(weights, quantized.kind, quantized.block_size, quantized.double)
    assert_same_bits(quantized.codes, packed)
    if quantized.double:
        assert_same_bits(quantized.absmax.codes, state.absmax)
        assert_same_bits(quantized.absmax.absmax, state.state2.absmax)
        assert_same_bits(quantized.absmax.offset.view(1), state.offset.view(1))
    else:
        assert_same_bits(quantized.absmax, state.absmax)
    assert_same_values(quantized.kind, values, expected)
