"""The estimate against published measurements, and the article's figures."""

from __future__ import annotations

import pytest

from chinese_llama_lab.inference.residuals import TOLERATED, residuals
from chinese_llama_lab.inference.verdicts import vram_verdicts

# Every figure of the recipe's list, as printed by its source.
RECIPE = [
    *(21.30, 14.14, 13.84, 38.12, 23.14, 22.55, 13.52, 4.57, 4.26),
    *(16.2, 7.4, 13.98, 15.57, 9.13, 9.29, 8.5, 4.6),
    *(18, 9, 6, 9, 19, 32, 22.29, 22.55, 38.87),
]


@pytest.fixture(scope="module")
def table():
    return residuals()


def test_every_figure_of_the_recipe_has_a_row(table):
    values = [row.figure.value for row in table.rows]
    for value in RECIPE:
        assert values.count(value) >= RECIPE.count(value), value
    assert len({row.figure.source for row in table.rows}) >= 6


def test_the_median_is_within_ten_per_cent_and_outliers_are_explained(table):
    assert table.median <= 0.10
    assert {row.figure.what for row in table.far} == {
        "Llama-2-7B, QLoRA, model loaded",
        "Llama-2-7B, QLoRA, training",
    }
    for row in table.rows:
        assert row.figure.assumed and row.figure.unit in ("GB", "GiB")
        assert bool(row.figure.explanation) == (abs(row.error) > TOLERATED), row.figure.what


def test_a_source_s_rows_share_their_settings(table):
    """No row is tuned: within a source options differ only in what the row names."""
    named = {
        "quantization",
        "quantize_head",
        "keeps_inputs",
        "block",
        "batch",
        "rank",
        "targets",
        "attention",
    }
    named |= {"compile", "loss", "loss_rows", "gradient_checkpointing", "offload_checkpoints", "quantized"}
    named |= {"optimizer_dtype"}  # full against LoRA
    by_source = {}
    for row in table.rows:
        if row.figure.task != "inference":
            rest = {k: v for k, v in row.figure.options.items() if k not in named}
            by_source.setdefault(row.figure.source, []).append(rest)
    for source, rests in by_source.items():
        assert all(rest == rests[0] for rest in rests), source


def test_rows_are_shown_with_their_units(table):
    text = repr(table)
    assert "GiB" in text and "median error" in text and len(text.splitlines()) == len(table.rows) + 2
    assert table.rows[0].row()["unit"] == "GB"
    first = table.rows[0]
    assert first.estimated == pytest.approx(first.figure.value * (1 + first.error))


def test_each_figure_of_the_article_has_a_verdict_with_arithmetic():
    verdicts = vram_verdicts()
    text = "\n".join(map(str, verdicts))
    for figure in ("6.2 GB", "6.8 GB", "10.1 GB", "10.9 GB", "6 GB", "24 GB"):
        assert any(figure in verdict.claim for verdict in verdicts), figure
    assert all(verdict.arithmetic for verdict in verdicts) and "GiB" in text


def test_the_article_s_first_figure_by_hand():
    """3.64 + 0.82 of weights, 0.09 dequantized, 0.5 of context; then 512 KiB a token and the prompt."""
    fixed = (6_476_005_376 * 4.5 / 8 + 2 * 49953 * 4096 * 2 + 266_240 * 2 + 11008 * 4096 * 2 + 0.5e9) / 1e9
    fixed += 49953 * 6 / 1e9  # logits of the last position
    a_token = 512 * 1024 + 2 * (3 * 4096 + 3 * 11008)
    tokens = (6.2 - fixed) * 1e9 / a_token
    assert f"{fixed:.2f} GB" in vram_verdicts()[0].arithmetic
    assert f"at {tokens:,.0f} tokens" in vram_verdicts()[0].arithmetic
