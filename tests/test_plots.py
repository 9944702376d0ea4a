"""Plots: Chinese glyphs that render, markers that tell texts apart, numbers that are the results'."""

from __future__ import annotations

import io
import warnings

import matplotlib
import pytest

matplotlib.use("Agg")

from matplotlib import pyplot

from chinese_llama_lab import plots
from chinese_llama_lab.plots import (
    PALETTE,
    has_chinese_font,
    plot_bars,
    plot_fertility,
    plot_lines,
    plot_stacks,
    use_style,
)
from chinese_llama_lab.tokenization.fertility import Fertility


def result(tokenizer: str, text: str, tokens: int = 150, interval=(1.4, 1.6)) -> Fertility:
    return Fertility(tokenizer, text, 10, 0, 100, 300, tokens, interval, 0.95, 0.1, 0.1, 0.0)


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        use_style()
        yield
    pyplot.close("all")


def drawn(figure, kind: str = "png") -> bytes:
    """The picture; any warning, such as one about a missing glyph, is an error."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_chinese_glyphs_render_without_a_warning(kind):
    figure, axes = plot_fertility(
        [result("通义千问", "人民日报：新闻")], title="每个汉字要几个词元？１９９８年，「龘」"
    )
    axes.set_xlabel("词元数 / 字符数 → × é ½ −1")
    assert len(drawn(figure, kind)) > 1000
    assert has_chinese_font()


def test_a_missing_glyph_would_be_noticed():
    figure, axes = pyplot.subplots()
    axes.set_title("\U0001f999")
    with pytest.raises(UserWarning, match="missing from font"):
        drawn(figure)


def test_the_style_can_be_set_twice_and_the_font_is_added_once():
    from matplotlib import font_manager

    use_style()
    use_style()
    names = [entry.fname for entry in font_manager.fontManager.ttflist if entry.name == plots.CHINESE_FONT]
    assert len(names) == len(set(names)) >= 1


def test_fertility_puts_every_figure_with_its_interval_in_its_row():
    measured = [
        result("LLaMA", "news", 150, (1.4, 1.6)),
        result("Qwen", "news", 66, (0.6, 0.7)),
        result("LLaMA", "novel", 170, (1.65, 1.8)),
        result("Qwen", "novel", 90, (0.8, 1.0)),
    ]
    figure, axes = plot_fertility(measured, title="The takeaway", labels={"novel": "三国演义"})
    assert axes.get_title(loc="left") == "The takeaway"
    assert "tokens per character" in axes.get_xlabel()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Qwen", "LLaMA"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["news", "三国演义"]
    for container, values in zip(axes.containers, ([1.5, 0.66], [1.7, 0.9]), strict=True):
        assert container.lines[0].get_xdata().tolist() == values
    ends = axes.containers[0].lines[2][0].get_segments()
    assert [[round(x, 6) for x, _ in segment] for segment in ends] == [[1.4, 1.6], [0.6, 0.7]]
    drawn(figure)


def test_texts_differ_by_marker_and_by_colour():
    figure, axes = plot_fertility([result("A", f"text {n}") for n in range(5)], title="t")
    lines = [container.lines[0] for container in axes.containers]
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 5
    assert len(set(PALETTE)) == 8
    drawn(figure)


def test_an_interval_that_does_not_hold_the_figure_is_drawn_all_the_same():
    figure, _ = plot_fertility(
        [result("A", "t", 150, (1.51, 1.6)), result("B", "t", 150, (1.0, 1.49))], title="t"
    )
    drawn(figure)


@pytest.mark.parametrize("name", ["price in $ and $", "a_b^c", "50 %", "C:\\new\\$x$"])
def test_names_with_signs_of_mathematics_are_drawn(name):
    figure, _ = plot_fertility([result(name, name)], title=name)
    drawn(figure)


def test_bars_and_lines():
    figure, axes = plot_bars(
        {"LLaMA": {"一级": 0.1, "二级": 0.2}, "Qwen": {"一级": 1.0}}, title="t", xlabel="share", reference=0.5
    )
    assert [round(bar.get_width(), 3) for bar in axes.containers[0]] == [0.1, 1.0]
    assert axes.get_xlabel() == "share" and axes.yaxis_inverted()
    drawn(figure)
    figure, axes = plot_lines({"a": ([1, 2], [3, 4])}, title="t", xlabel="x", ylabel="y", xscale="log")
    assert axes.lines[0].get_ydata().tolist() == [3, 4] and axes.get_xscale() == "log"
    drawn(figure)


def test_stacked_bars_begin_where_the_part_before_them_ends():
    values = {"推理": {"weights": 3.0, "cache": 1.0}, "training": {"weights": 3.0, "Adam": 5.0, "cache": 2.0}}
    figure, axes = plot_stacks(values, title="内存", xlabel="GiB", references={"24 GiB": 6.0})
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["weights", "cache", "Adam"]
    found = {}
    for label, bars in zip(("weights", "cache", "Adam"), axes.containers, strict=True):
        found[label] = [(bar.get_x(), bar.get_width()) for bar in bars]
    assert found == {
        "weights": [(0, 3), (0, 3)],
        "cache": [(3, 1), (3, 2)],
        "Adam": [(4, 0), (5, 5)],
    }
    assert [line.get_xdata()[0] for line in axes.lines] == [6.0]
    assert len(drawn(figure)) > 1000


def test_parts_beyond_the_palette_are_told_apart_by_a_pattern():
    parts = {f"part {place}": 1.0 for place in range(len(PALETTE) + 1)}
    _, axes = plot_stacks({"row": parts}, title="t", xlabel="x")
    first, last = axes.containers[0][0], axes.containers[-1][0]
    assert first.get_facecolor() == last.get_facecolor() and first.get_hatch() != last.get_hatch()
