"""`benchmarks/zh_fit_scales.py` and `zh_candidates.py`: they score text that no table reports."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from chinese_llama_lab.paths import data_dir

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("texts", ["CHINESE", "ENGLISH"])
def test_no_piece_is_reported(monkeypatch, texts):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    fit, reporting = importlib.import_module("zh_fit_scales"), importlib.import_module("zh_model")
    wanted = getattr(fit, texts)
    chosen = fit.unreported(wanted)
    assert sum(map(len, chosen)) >= sum(wanted.values()) and len(set(chosen)) == len(chosen)
    for name in wanted:
        reported = [piece for d in reporting.pieces_of(name, reporting.CHARACTERS) for piece in d]
        assert reported and not set(reported) & set(chosen)


def test_the_shipped_scales_are_one_for_each_block():
    scales = json.loads((data_dir() / "adapters/smollm2-zh/scales.json").read_text(encoding="utf-8"))
    assert set(scales) == {f"{layer}.{block}" for layer in range(30) for block in ("self_attn", "mlp")}
    assert all(0 < scale < 2 for scale in scales.values())


def test_candidates_are_told_when_a_folder_holds_no_adapter(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    candidates = importlib.import_module("zh_candidates")
    monkeypatch.setattr("sys.argv", ["zh_candidates.py", f"mean={tmp_path}"])
    with pytest.raises(SystemExit, match=f"mean: {tmp_path} holds no adapter; give NAME=FOLDER"):
        candidates.main()
