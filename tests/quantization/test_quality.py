"""The comparison of kinds: every figure of a row, made anew from its parts."""

from __future__ import annotations

import math

import pytest
import torch

from chinese_llama_lab.quantization import quality
from chinese_llama_lab.quantization.agreement import greedy_agreement, logit_divergence
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.load import load_quantized
from chinese_llama_lab.quantization.quality import KINDS, compare_kinds, dequantized, iterate_kinds
from chinese_llama_lab.quantization.texts import blocks_of, encoded
from chinese_llama_lab.training.metrics import bits_per_character
from tests.quantization.quality_models import saved

ZH = ["今天天气很好,我们去公园散步。", "他昨天买了三本书。", ""]
EN = ["We walk in the park when the weather is good. " * 4]
PROMPTS = ["北京", "Paris is", "上海市"]
OPTIONS = {"new_tokens": 20, "block": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module")
def rows(folder):
    return compare_kinds(folder, KINDS, ZH, EN, PROMPTS, compute_dtype="bfloat16", **OPTIONS)


def test_the_reference_against_itself(rows):
    row = rows[0]
    assert (row["kind"], row["compute_dtype"], row["scored"]) == ("fp32", "float32", "as loaded")
    assert (row["zh_kl"], row["zh_kl_99"], row["zh_same"], row["zh_kl_bits"]) == (0, 0, 1, 0)
    assert row["greedy_share"] == 1 and row["greedy_equal"] == row["greedy_tokens"]


@pytest.mark.parametrize("kind", ["bf16", "int8", "nf4-double"])
def test_a_row_is_made_of_its_parts(folder, rows, kind):
    row = next(row for row in rows if row["kind"] == kind)
    reference, tokenizer = load_quantized(folder, "fp32")
    model = load_quantized(folder, kind, compute_dtype="bfloat16", fast=False).model
    for language, texts in (("zh", ZH), ("en", EN)):
        found = logit_divergence(reference, model, blocks_of(tokenizer, texts, 64))
        scored = bits_per_character(model, tokenizer, texts, window=64)
        assert row[f"{language}_kl"] == pytest.approx(found.mean)
        assert row[f"{language}_kl_99"] == pytest.approx(found.percentile_99)
        assert row[f"{language}_same"] == found.same_first_choice
        assert row[f"{language}_bits"] == pytest.approx(scored.bits_per_character)
        assert row[f"{language}_perplexity"] == pytest.approx(scored.perplexity)
        characters = sum(map(len, texts))
        assert row[f"{language}_kl_bits"] == pytest.approx(found.nats / math.log(2) / characters)
    agreed = greedy_agreement(reference, model, [encoded(tokenizer, p) for p in PROMPTS], 20)
    assert row["greedy_share"] == agreed.share
    assert row["greedy_equal"] == agreed.mean_equal_before


def test_kinds_differ_as_they_should(rows):
    assert [row["kind"] for row in rows] == list(KINDS)
    assert len({tuple(row) for row in rows}) == 1  # `results.save` wants the same columns
    by = {row["kind"]: row for row in rows}
    for language in ("zh", "en"):
        order = [by[kind][f"{language}_kl"] for kind in ("fp32", "bf16", "nf4")]
        assert order == sorted(order)
    assert by["nf4"]["scored"] == "restored weights" and by["int8"]["scored"] == "as loaded"
    assert by["nf4"]["compute_dtype"] == "bfloat16"
    # 32 bits, 16, 4.5 in the linear layers (64 bytes of code book a layer), with 2 bytes for the rest.
    linear, rest = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128), 259 * 64 + 5 * 64
    buffers = by["fp32"]["bytes"] - 4 * (linear + rest)
    assert 0 <= buffers < 100
    assert by["bf16"]["bytes"] - buffers == 2 * (linear + rest)
    assert by["nf4"]["bytes"] - buffers == linear * 4.5 / 8 + 14 * 64 + 2 * rest


def test_rows_come_one_by_one_with_one_model_beside_the_reference(folder, monkeypatch):
    import gc
    import weakref

    from chinese_llama_lab.quantization import load

    loaded, alive = [], []
    original = load.load_quantized

    def watched(*arguments, **options):
        gc.collect()
        alive.append(sum(model() is not None for model in loaded))
        base = original(*arguments, **options)
        loaded.append(weakref.ref(base.model))
        return base

    monkeypatch.setattr(load, "load_quantized", watched)
    steps = iterate_kinds(folder, ["bf16", "nf4", "fp32"], ZH, EN, PROMPTS, **OPTIONS)
    assert next(steps)["kind"] == "bf16" and len(loaded) == 2
    assert [row["kind"] for row in steps] == ["nf4", "fp32"]
    assert alive == [0, 1, 1]  # when the next one is loaded, the reference alone is there
    seen = []
    found = compare_kinds(folder, ["fp32"], ZH, EN, PROMPTS, watch=seen.append, **OPTIONS)
    assert seen == found


def test_4_bit_layers_themselves(folder):
    rows = [
        compare_kinds(folder, ["nf4"], ZH, EN, PROMPTS, compute_dtype="float32", restore=restore, **OPTIONS)[
            0
        ]
        for restore in (True, False)
    ]
    assert [row.pop("scored") for row in rows] == ["restored weights", "4-bit layers"]
    assert rows[0] == rows[1]  # in float32 there is no other kernel


def test_dequantized_after_the_fast_kernel(folder):
    """A model of `load_quantized` keeps its scales: it may have been used before."""
    block = torch.arange(100).view(1, -1)
    fresh = dequantized(load_quantized(folder, "nf4", compute_dtype="bfloat16", fast=False).model)
    used = load_quantized(folder, "nf4", compute_dtype="bfloat16").model
    with torch.inference_mode():
        used(block)
        assert torch.equal(dequantized(used)(block).logits, fresh(block).logits)


def test_bad_input(folder):
    for zh, en, prompts, name in (
        ([], EN, PROMPTS, "zh"),
        (ZH, [""], PROMPTS, "en"),
        (ZH, EN, [], "prompts"),
    ):
        with pytest.raises(QuantizationError, match=f"{name}: there is no text"):
            compare_kinds(folder, ["fp32"], zh, en, prompts)
    with pytest.raises(QuantizationError, match="prompt 1 is empty"):
        compare_kinds(folder, ["fp32"], ZH, EN, ["a", ""], **OPTIONS)
    with pytest.raises(QuantizationError, match="no kind 'nf5'"):
        compare_kinds(folder, ["nf5"], ZH, EN, PROMPTS, **OPTIONS)


def test_all_measures_are_offered():
    assert all(callable(getattr(quality, name)) for name in quality.__all__ if name != "KINDS")
