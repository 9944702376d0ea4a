"""Curves that are drawn while a run goes on."""

from __future__ import annotations

import io

import matplotlib.image
import pytest

from chinese_llama_lab import live
from chinese_llama_lab.live import LiveCurves

ROWS = [
    {"step": 0, "zh_bits": 8.9, "en_bits": 1.4},
    {"step": 5, "loss": 7.0},
    {"step": 10, "loss": 6.0},
    {"step": 10, "zh_bits": 7.5, "en_bits": 1.5},
]


class Image:
    def __init__(self):
        self.values = []

    def __setattr__(self, name, value):
        if name == "value":
            self.values.append(value)
        else:
            super().__setattr__(name, value)


def test_outside_a_notebook_rows_are_kept_and_nothing_is_drawn():
    curves = LiveCurves("a run")
    for row in ROWS:
        curves(row)
    assert curves.rows == ROWS and curves._image is None


def test_in_a_notebook_the_picture_is_replaced(monkeypatch):
    image = Image()
    monkeypatch.setattr(live, "_image", lambda: image)
    curves = LiveCurves("a run", every=0.0)
    for row in ROWS:
        curves(row)
    assert len(image.values) == len(ROWS) and len(set(image.values)) == len(ROWS)
    assert matplotlib.image.imread(io.BytesIO(image.values[-1]), format="png").shape[0] > 100
    patient = LiveCurves("a run", every=1000.0)
    for row in ROWS:
        patient(row)
    assert len(image.values) == len(ROWS) + 1


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS[1:2]])
def test_any_beginning_can_be_drawn(rows):
    curves = LiveCurves()
    curves.rows = list(rows)
    assert curves.png().startswith(b"\x89PNG")
