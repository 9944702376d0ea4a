"""Plots: one style, one palette, Chinese glyphs. Functions here draw results and compute nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chinese_llama_lab.sources.fetch import source_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from chinese_llama_lab.tokenization.fertility import Fertility

# Okabe and Ito's palette, which colour-blind readers can tell apart (Color Universal Design, 2008).
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
CHINESE_FONT = "Noto Sans SC"


def use_style() -> None:
    """Set matplotlib's defaults for the course and register the Chinese font (fetched if it is not here)."""
    import matplotlib
    from cycler import cycler
    from matplotlib import font_manager

    path = str(source_file("font-zh"))
    if not any(entry.fname == path for entry in font_manager.fontManager.ttflist):
        font_manager.fontManager.addfont(path)
    matplotlib.rcParams.update(
        {
            # DejaVu first: its Latin is wider spaced on screens; glyphs it lacks come from the Chinese font.
            "font.family": ["DejaVu Sans", CHINESE_FONT],
            "axes.prop_cycle": cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "figure.dpi": 80,
            "figure.figsize": (8.0, 4.5),
            "legend.frameon": False,
            "savefig.bbox": "tight",
        }
    )


def has_chinese_font() -> bool:
    """Whether matplotlib knows the course's Chinese font in this process."""
    from matplotlib import font_manager

    return any(entry.name == CHINESE_FONT for entry in font_manager.fontManager.ttflist)


def plot_fertility(
    measured: Sequence[Fertility], *, title: str, labels: Mapping[str, str] | None = None
) -> tuple[Figure, Axes]:
    """Tokens per character of each tokenizer (rows, best at the bottom) on each text (markers).

    Args:
        measured: results of `compare` on one or more texts.
        title: the takeaway.
        labels: text name → what the legend calls it.
    """
    import matplotlib.pyplot as plt

    texts = list(dict.fromkeys(result.text for result in measured))
    mean = {
        name: sum(r.tokens_per_character for r in measured if r.tokenizer == name)
        / sum(r.tokenizer == name for r in measured)
        for name in dict.fromkeys(result.tokenizer for result in measured)
    }
    order = sorted(mean, key=lambda name: mean[name])
    figure, axes = plt.subplots(figsize=(8.5, 1.4 + 0.42 * len(order)), layout="constrained")
    for place, text in enumerate(texts):
        results = [result for result in measured if result.text == text]
        rows = [order.index(r.tokenizer) + (place - (len(texts) - 1) / 2) * 0.13 for r in results]
        values = [r.tokens_per_character for r in results]
        errors = [
            # A percentile interval of few documents need not hold the figure itself.
            [max(0.0, r.tokens_per_character - r.interval[0]) for r in results],
            [max(0.0, r.interval[1] - r.tokens_per_character) for r in results],
        ]
        axes.errorbar(
            values,
            rows,
            xerr=errors,
            fmt=MARKERS[place % len(MARKERS)],
            color=PALETTE[place % len(PALETTE)],
            markersize=5,
            linewidth=1,
            label=_literal((labels or {}).get(text, text)),
        )
    axes.axvline(1.0, color="#555555", linewidth=0.9, linestyle="--")
    axes.set_yticks(range(len(order)), [_literal(name) for name in order])
    axes.set_xlabel("tokens per character (lower is cheaper); the dashed line is one token a character")
    axes.set_xlim(left=0)
    axes.set_title(title)
    axes.legend(loc="lower right", fontsize=8)
    return figure, axes


def _literal(name: str) -> str:
    """A file's name as matplotlib shows it unchanged: `$` begins a formula, and `_` hides from the legend."""
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")


def _bars(axes: Axes, values: Mapping[str, Mapping[str, float]], reference: float | None) -> None:
    """Grouped horizontal bars, first row on top."""
    series = list(dict.fromkeys(name for row in values.values() for name in row))
    height = 0.8 / len(series)
    for place, name in enumerate(series):
        offsets = [row + (place - (len(series) - 1) / 2) * height for row in range(len(values))]
        heights = [row.get(name, 0.0) for row in values.values()]
        axes.barh(offsets, heights, height=height, color=PALETTE[place % len(PALETTE)], label=name)
    if reference is not None:
        axes.axvline(reference, color="#555555", linewidth=0.9, linestyle="--")
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.4, -0.6)


def plot_bars(
    values: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    xlabel: str,
    reference: float | None = None,
) -> tuple[Figure, Axes]:
    """Grouped horizontal bars: row label → (series label → value)."""
    import matplotlib.pyplot as plt

    series = {name for row in values.values() for name in row}
    size = (8.5, 1.2 + (0.2 + 0.17 * len(series)) * len(values))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    _bars(axes, values, reference)
    axes.set_xlabel(xlabel)
    axes.set_title(title)
    if len(series) > 1:  # beside the bars, never over one
        figure.legend(fontsize=8, loc="outside lower center", ncols=min(4, len(series)))
    return figure, axes


def plot_bar_panels(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    title: str,
    xlabel: str,
    references: Mapping[str, float],
) -> Figure:
    """Panels side by side, each of grouped bars: panel → (row label → (series label → value)).

    Args:
        panels: what to draw.
        title: the takeaway, above all panels.
        xlabel: with its unit, the same for all.
        references: panel → where its dashed line stands.
    """
    import matplotlib.pyplot as plt

    rows = max(len(values) for values in panels.values())
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(9.0, 1.6 + 0.5 * rows), layout="constrained", sharey=True
    )
    for axes, (name, values) in zip(all_axes, panels.items(), strict=True):
        _bars(axes, values, references.get(name))
        axes.set(xlabel=xlabel, title=name)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=min(4, len(labels)))
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def plot_distributions(
    samples: Mapping[str, Sequence[float]], *, title: str, xlabel: str, reference: float, bins: int = 60
) -> tuple[Figure, Axes]:
    """Histograms as lines over common bins, as shares: label → values; a dashed line at `reference`."""
    import matplotlib.pyplot as plt
    import numpy as np

    edges = np.linspace(
        min(np.min(values) for values in samples.values()),
        max(np.quantile(values, 0.999) for values in samples.values()),
        bins + 1,
    )
    figure, axes = plt.subplots(layout="constrained")
    for place, (name, values) in enumerate(samples.items()):
        shares = np.histogram(values, edges)[0] / len(values)
        axes.plot((edges[1:] + edges[:-1]) / 2, shares, label=name, color=PALETTE[place % len(PALETTE)])
    axes.axvline(reference, color="#555555", linewidth=0.9, linestyle="--")
    axes.set(xlabel=xlabel, ylabel="share", title=title)
    axes.legend(fontsize=8)
    return figure, axes


def plot_lines(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    **axes_options: Any,
) -> tuple[Figure, Axes]:
    """Lines with markers: label → (x values, y values). Options go to `axes.set`."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(layout="constrained")
    for place, (name, (x, y)) in enumerate(lines.items()):
        axes.plot(x, y, marker=MARKERS[place % len(MARKERS)], markersize=4, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, **axes_options)
    axes.set_title(title)
    axes.legend(fontsize=8)
    return figure, axes


def plot_stacks(
    values: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    xlabel: str,
    references: Mapping[str, float] | None = None,
) -> tuple[Figure, Axes]:
    """Horizontal bars of parts that add up, first row on top: row label → (part → value).

    Args:
        values: rows may lack parts; the order of parts is that of their first appearance.
        title: the takeaway.
        xlabel: with its unit.
        references: label → where a dashed line stands.
    """
    import matplotlib.pyplot as plt

    parts = list(dict.fromkeys(part for row in values.values() for part in row))
    size = (8.5, 1.8 + 0.42 * len(values))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    left = [0.0] * len(values)
    hatches = ("", "//", "..")  # beyond the palette, a colour comes again with a pattern
    for place, part in enumerate(parts):
        widths = [row.get(part, 0.0) for row in values.values()]
        hatch = hatches[place // len(PALETTE) % len(hatches)]
        colour = PALETTE[place % len(PALETTE)]
        axes.barh(
            range(len(values)), widths, left=left, height=0.7, color=colour, hatch=hatch, edgecolor="white",
            linewidth=0.4, label=part,
        )  # fmt: skip
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for label, value in (references or {}).items():
        axes.axvline(value, color="#555555", linewidth=0.9, linestyle="--")
        axes.annotate(label, (value, -0.55), fontsize=8, color="#555555", ha="right", rotation=90, va="top")
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set(xlabel=xlabel, title=title)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure, axes
