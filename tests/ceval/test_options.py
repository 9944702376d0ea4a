"""Which device a process takes, with no GPU in sight."""

from __future__ import annotations

import pytest
import torch

from chinese_llama_lab.ceval.options import device_of


@pytest.fixture
def launched(monkeypatch):
    """As `accelerate launch` leaves the environment; without arguments as nobody launched."""

    def set_up(count=None, local=None, gpu=True):
        for name, value in (("WORLD_SIZE", count), ("LOCAL_RANK", local)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)

    return set_up


@pytest.mark.parametrize("local", [0, 1, 3])
def test_each_of_several_processes_takes_its_own_gpu(launched, local):
    launched(4, local)
    assert device_of("cuda") == device_of(None) == f"cuda:{local}"


@pytest.mark.parametrize("given", ["cpu", "cuda:0", "cuda:2"])
def test_what_is_named_exactly_stays(launched, given):
    launched(4, 1)
    assert device_of(given) == given


@pytest.mark.parametrize("environment", [(None, None), (1, 0), (1, None), (2, None)])
def test_one_process_is_told_nothing_else(launched, environment):
    launched(*environment)
    assert device_of("cuda") == "cuda"


def test_without_a_gpu_cuda_is_no_cpu(launched):
    launched(2, 1, gpu=False)
    assert device_of(None) == "cpu" and device_of("cuda") == "cuda:1"


def test_the_model_goes_there(launched, monkeypatch):
    from argparse import Namespace

    from chinese_llama_lab.ceval.options import model_of
    from chinese_llama_lab.quantization import load

    launched(2, 1)
    monkeypatch.setattr(load, "load_quantized", lambda *_, device, fast: (device, None))
    assert model_of(Namespace(model="m", kind="fp32", adapter=None, device="cuda"))[0] == "cuda:1"
