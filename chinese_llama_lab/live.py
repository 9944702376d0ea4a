"""Curves that are drawn while a run goes on, in a notebook; anywhere else, nothing is drawn.

The picture is an ipywidgets image whose bytes are replaced: outputs that are cleared or updated in place make
nbval compare what was never meant to stay. A saved notebook keeps no widget, so that a cell after the run
draws the final plot.
"""

from __future__ import annotations

import io
import time
from typing import Any

from chinese_llama_lab.plots import PALETTE


class LiveCurves:
    """Call it with every row of a run's log: `pretrain(..., watch=LiveCurves("title"))`.

    Args:
        title: above the picture.
        every: seconds between two drawings at least; one takes about a tenth of a second.

    Attributes: rows: what was seen.
    """

    def __init__(self, title: str = "", *, every: float = 3.0) -> None:
        self.rows: list[dict[str, Any]] = []
        self._title, self._every = title, every
        self._drawn = 0.0
        self._image = _image()

    def __call__(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self._image is not None and time.monotonic() - self._drawn >= self._every:
            self._image.value = self.png()
            self._drawn = time.monotonic()

    def png(self) -> bytes:
        """The picture of the rows so far: loss on the left, bits per character on the right."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.0, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        loss = [(row["step"], row["loss"]) for row in self.rows if "loss" in row]
        left.plot([step for step, _ in loss], [value for _, value in loss], color=PALETTE[0])
        left.set(xlabel="step", ylabel="loss (nats per token)", title=self._title)
        keys = dict.fromkeys(key for row in self.rows for key in row if key.endswith("_bits"))
        for place, key in enumerate(keys):
            points = [(row["step"], row[key]) for row in self.rows if key in row]
            label = key.removesuffix("_bits")
            right.plot(*zip(*points, strict=True), marker="o", color=PALETTE[place], label=label)
        right.set(xlabel="step", ylabel="bits per character")
        if keys:
            right.legend(fontsize=8)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=80)
        return stream.getvalue()


def _image() -> Any:
    """A displayed image widget where there is a notebook, else None."""
    try:
        from IPython import get_ipython
    except ImportError:  # pragma: no cover - IPython comes with JupyterLab
        return None
    shell = get_ipython()  # type: ignore[no-untyped-call]
    if shell is None or not hasattr(shell, "kernel"):
        return None
    import ipywidgets
    from IPython.display import display

    image = ipywidgets.Image(format="png")
    display(image)  # type: ignore[no-untyped-call]
    return image
