"""The code books: derived here, equal to bitsandbytes' constants."""

from __future__ import annotations

import pytest
import torch

from chinese_llama_lab.quantization.codebooks import (
    code_of,
    dynamic_code,
    dynamic_lookup,
    fp4_code,
    int4_code,
    nf4_code,
    sorted_midpoints,
)
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.scales import quantize_scales

from .conftest import assert_same_bits


def test_the_books_of_bitsandbytes():
    from bitsandbytes.functional import create_dynamic_map, get_4bit_type

    assert_same_bits(nf4_code(), get_4bit_type("nf4", "cpu"))
    assert_same_bits(fp4_code(), get_4bit_type("fp4", "cpu"))
    assert_same_bits(dynamic_code(), create_dynamic_map())


def test_nf4_is_made_of_equal_steps_of_probability():
    code = nf4_code().double()
    assert len(code) == 16 and code[0] == -1 and code[7] == 0 and code[15] == 1
    # Undo the scaling by the outermost quantile, and take the distribution function instead.
    outermost = torch.special.ndtri(torch.tensor(0.9677083, dtype=torch.float64))
    probability = torch.special.ndtr(code * outermost)
    assert torch.allclose(probability[:8].diff(), torch.tensor(0.4677083 / 7, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(probability[7:].diff(), torch.tensor(0.4677083 / 8, dtype=torch.float64), atol=1e-6)


def test_int4():
    assert [round(7 * value, 5) for value in int4_code().tolist()] == list(range(-7, 8))


def test_changing_a_book_changes_no_other():
    for make in (nf4_code, fp4_code, int4_code, dynamic_code):
        make().zero_()
        assert make().abs().max() == 1


def test_midpoints_of_an_unsorted_book():
    midpoints, order = sorted_midpoints(torch.tensor([0.0, 1.0, -1.0, 0.5]))
    assert midpoints.tolist() == [-0.5, 0.25, 0.75] and order.tolist() == [2, 0, 3, 1]


def test_the_dynamic_map_by_hand():
    code = dynamic_code()
    # The decade from 0.1 to 1 is cut into 64 parts: the first middle is 0.1 + 0.9 / 128.
    assert torch.isclose(code[255 - 64], torch.tensor(0.1 + 0.9 / 128))
    assert code[255] == 1 and code[127] == 0 and torch.isclose(code[128], torch.tensor(0.55e-6))
    assert len(code.unique()) == 256 and torch.equal(code, code.sort().values)
    lookup = dynamic_lookup()
    assert len(lookup) == 65_536 and lookup[0] == 0 and lookup[-1] == 255
    assert bool((lookup.int().diff() >= 0).all())


def test_the_lookup_of_eight_bits_is_bitsandbytes():
    from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

    generator = torch.Generator().manual_seed(0)
    for count in (1, 255, 256, 257, 1_000_003):
        scales = torch.rand(count, generator=generator) ** 4 + 1e-3
        ours = quantize_scales(scales)
        codes, state = quantize_blockwise(scales - scales.mean(), blocksize=256)
        assert_same_bits(ours.codes, codes)
        assert_same_bits(ours.absmax, state.absmax)
        assert_same_bits(ours.dequantize(), dequantize_blockwise(codes, state) + scales.mean())
    # The nearest code is another one now and then, which is why the table is rebuilt.
    blocks = (scales - scales.mean())[: 1_000_000 // 256 * 256].view(-1, 256)
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    nearest = torch.bucketize(scaled, sorted_midpoints(dynamic_code())[0])
    share = (nearest.view(-1) != codes[: nearest.numel()]).double().mean()
    assert 0.0001 < share < 0.01


def test_double_quantization_by_hand():
    # Mean 2; −1 and 1 are left, over a maximum of 1. The map's least value is 0.1 + 0.9 · 127 / 128 below 0.
    scales = quantize_scales(torch.tensor([1.0, 3.0]))
    assert scales.codes.tolist() == [0, 255] and scales.absmax.tolist() == [1] and scales.offset == 2
    assert scales.dequantize().tolist() == pytest.approx([2 - (0.1 + 0.9 * 127 / 128), 3])
    assert scales.bytes == 2 + 4 + 4
    equal = quantize_scales(torch.full((300,), 0.5))
    assert equal.dequantize().tolist() == [0.5] * 300


def test_bad_input():
    with pytest.raises(QuantizationError, match="no code book for 'int8'"):
        code_of("int8")
    with pytest.raises(QuantizationError, match=r"mean of w's block maxima is beyond float32"):
        quantize_scales(torch.full((4,), 3e38), "w")
