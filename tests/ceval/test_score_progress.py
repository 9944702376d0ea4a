"""The bar says which subject, how fast and how many were right."""

from __future__ import annotations

import pytest

from chinese_llama_lab.ceval.progress import Progress
from chinese_llama_lab.ceval.score import score

from .test_score import DEV, MIXED


def rows(*pairs):
    return [{"answer": answer, "predicted": predicted} for answer, predicted in pairs]


def test_running_accuracy(capsys):
    with Progress(6, True, rows(("A", "A"))) as bar:
        bar.subject("law")
        bar.add(rows(("A", "A"), ("B", "C"), (None, "C"), ("D", None)))
        assert (bar.right, bar.judged) == (2, 4)
        bar._bar.refresh()
    shown = capsys.readouterr().err
    assert "law" in shown and "5/6" in shown and "50.0% right" in shown and "question" in shown


@pytest.mark.parametrize("progress", [True, False])
def test_a_run_shows_it_where_asked(model, tokenizer, capsys, progress):
    score(model, tokenizer, MIXED, dev=DEV, shots=1, progress=progress)
    shown = capsys.readouterr().err
    assert ("14/14" in shown and "computer_network" in shown and "% right" in shown) is progress
    assert progress or not shown
