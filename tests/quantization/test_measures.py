"""Measures of the error of quantized weights."""

from __future__ import annotations

import math

import pytest
import torch

from chinese_llama_lab.quantization.blockwise import dequantize, quantize
from chinese_llama_lab.quantization.checks import BLOCK_SIZES
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.measures import outlier_share, sweep, weight_error


@pytest.fixture(scope="module")
def weights():
    return torch.randn(256, 512, generator=torch.Generator().manual_seed(0)) * 0.02


def test_by_hand():
    # INT4 over a maximum of 7 is exact for whole numbers; 0.5 becomes 0 (a midpoint goes to the smaller one).
    error = weight_error(torch.tensor([7.0, -3.0, 0.5]), "int4")
    assert error.largest == pytest.approx(0.5)
    assert error.rms == pytest.approx(0.5 / math.sqrt(49 + 9 + 0.25))
    assert error.snr_db == pytest.approx(20 * math.log10(math.sqrt(58.25) / 0.5))


def test_against_the_definition(weights):
    for kind in ("nf4", "fp4", "int4", "int8"):
        error = weight_error(weights.to(torch.bfloat16), kind, 128, True)
        exact = weights.to(torch.bfloat16).double()
        difference = dequantize(quantize(exact.float(), kind, 128, True)).double() - exact
        assert error.rms == pytest.approx(float(difference.norm() / exact.norm()), rel=1e-6)
        assert error.largest == pytest.approx(float(difference.abs().max()), rel=1e-6)
        assert error.bits_per_weight == quantize(weights, kind, 128, True).bits_per_weight


def test_what_is_exact_has_no_noise():
    error = weight_error(torch.tensor([1.0, -1.0, 0.0]))
    assert (error.rms, error.largest, error.snr_db) == (0, 0, math.inf)


def test_sweep_of_normal_weights(weights):
    errors = sweep(weights, ("nf4", "fp4", "int4"), doubles=(False, True))
    assert len(errors) == 3 * len(BLOCK_SIZES) * 2
    assert [e.block_size for e in errors if e.kind == "nf4" and not e.double] == list(BLOCK_SIZES)
    by = {(e.kind, e.block_size, e.double): e for e in errors}
    for double in (False, True):
        rms = [by["nf4", size, double].rms for size in BLOCK_SIZES]
        assert rms == sorted(rms)  # more weights share a scale
        # What NF4 was made for: normal weights in blocks of 64.
        assert by["nf4", 64, double].rms < min(by[kind, 64, double].rms for kind in ("fp4", "int4"))
    assert 0.08 < by["nf4", 64, False].rms < 0.1
    assert 1 < by["nf4", 64, True].rms / by["nf4", 64, False].rms < 1.02
    assert set(errors[0].row()) == {
        "kind",
        "block_size",
        "double",
        "bits_per_weight",
        "rms",
        "largest",
        "snr_db",
    }


def test_outliers(weights):
    share = outlier_share(torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0)))
    assert 4e-5 < share < 9e-5
    planted = weights.clone()
    planted[0, :13] = 5.0
    assert outlier_share(planted, sigmas=10) == 13 / planted.numel()
    assert outlier_share(torch.ones(10)) == 0
    # One outlier in a block costs all the others their precision.
    assert weight_error(planted).largest > weight_error(weights).largest


def test_bad_input():
    with pytest.raises(QuantizationError, match="w holds zeros alone"):
        weight_error(torch.zeros(4), name="w")
    with pytest.raises(QuantizationError, match="is empty"):
        outlier_share(torch.ones(0))
    with pytest.raises(QuantizationError, match="holds NaN or infinity"):
        outlier_share(torch.tensor([1.0, torch.nan]))
    with pytest.raises(QuantizationError, match="not finite"):
        weight_error(torch.tensor([1.0, torch.nan]))
