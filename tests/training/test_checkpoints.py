from __future__ import annotations

import json
import signal
import threading

import pytest

from chinese_llama_lab.training import checkpoints as cp
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.stopping import StopSignal


def write(out, step, text="weights"):
    part = cp.checkpoints_dir(out) / ".part"
    part.mkdir(parents=True)
    (part / "adapter.safetensors").write_text(text, encoding="utf-8")
    (part / "optimizer.pt").write_bytes(b"\0" * 100)
    cp.seal(part, cp.checkpoint_path(out, step), step=step)


def test_sealed_and_found(tmp_path):
    for step in (2, 10, 9):
        write(tmp_path, step)
    assert [cp.checkpoint_step(p) for p in cp.checkpoints(tmp_path)] == [2, 9, 10]
    manifest = json.loads((cp.checkpoint_path(tmp_path, 10) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["step"] == 10 and manifest["pieces"]["optimizer.pt"]["bytes"] == 100
    assert cp.newest_whole(tmp_path) == (cp.checkpoint_path(tmp_path, 10), [])
    cp.remove_old(tmp_path, 1)
    assert [cp.checkpoint_step(p) for p in cp.checkpoints(tmp_path)] == [10]
    assert cp.newest_whole(tmp_path / "none") == (None, [])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda p: (p / "optimizer.pt").write_bytes(b"\0" * 50), "has 50 bytes instead of 100"),
        (lambda p: (p / "optimizer.pt").write_bytes(b"\1" * 100), "sha256 differs"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda p: (p / "manifest.json").write_text("{", encoding="utf-8"), "cannot be read"),
    ],
)
def test_a_damaged_one_is_refused_by_name_and_the_one_before_taken(tmp_path, damage, message):
    write(tmp_path, 1)
    write(tmp_path, 2)
    damage(cp.checkpoint_path(tmp_path, 2))
    assert cp.last_good(tmp_path) == cp.checkpoint_path(tmp_path, 1)
    found, refused = cp.newest_whole(tmp_path)
    assert found == cp.checkpoint_path(tmp_path, 1)
    assert len(refused) == 1 and "step-000002" in refused[0] and message in refused[0]
    assert (cp.checkpoints_dir(tmp_path) / "damaged-step-000002").is_dir()
    write(tmp_path, 2)
    assert cp.newest_whole(tmp_path) == (cp.checkpoint_path(tmp_path, 2), [])


def test_what_a_kill_left_is_removed(tmp_path):
    write(tmp_path, 4)
    (cp.part_path(tmp_path, 6) / "checkpoint-6").mkdir(parents=True)
    cp.remove_parts(tmp_path)
    assert [path.name for path in cp.checkpoints_dir(tmp_path).iterdir()] == ["step-000004"]


def test_a_second_signal_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with StopSignal() as stop:
        assert not stop.asked
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_is_installed():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with StopSignal() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.asked))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_only_whole_files_are_trusted(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(TrainingError, match="step-000001 is damaged"):
        (cp.checkpoint_path(tmp_path, 1) / "adapter.safetensors").unlink()
        cp.check_whole(cp.checkpoint_path(tmp_path, 1))
