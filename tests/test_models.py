"""Base models: the bundled one in under a second, and folders and hub ids that do not work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import chinese_llama_lab
from chinese_llama_lab.errors import ModelError
from chinese_llama_lab.sources import models
from chinese_llama_lab.sources.models import converted_model, load_base


@pytest.fixture(scope="module")
def base():
    return load_base("smollm2")


@pytest.fixture(scope="module")
def small(tmp_path_factory, base) -> Path:
    """A model of a few kilobytes with SmolLM2's tokenizer, as `save_pretrained` writes it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(small, tmp_path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in small.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_smollm2_is_the_model_it_should_be(base):
    assert sum(p.numel() for p in base.model.parameters()) == 134_515_008
    assert base.model.dtype == torch.float32 and not base.model.training
    assert len(base.tokenizer) == base.model.config.vocab_size == 49152


def test_smollm2_knows_english(base):
    ids = base.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        word = base.tokenizer.decode(base.model(ids).logits[0, -1].argmax())
    assert word == " Paris"


def test_a_second_load_takes_less_than_a_second(base):
    start = time.perf_counter()
    load_base("smollm2")
    assert time.perf_counter() - start < 1.0 + 1.0  # twice the promise: other tests may run beside this one


def test_the_kept_copy_is_safetensors_and_tied(base):
    folder = converted_model("smollm2")
    assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert base.model.get_input_embeddings().weight is base.model.get_output_embeddings().weight


def test_dtype_and_device_are_arguments(small):
    assert load_base(str(small), dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(ModelError, match="no dtype 'int4'"):
        load_base(str(small), dtype="int4")
    with pytest.raises(ModelError, match="could not be moved to"):
        load_base(str(small), device="cuda:99")


def test_a_folder_gives_its_own_weights_back(small):
    from safetensors.torch import load_file

    model, tokenizer = load_base(str(small))
    saved = load_file(small / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.get_input_embeddings().weight, saved)
    assert tokenizer("好").input_ids


def cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("keep", [None, 0.0, 0.001, 0.5])
def test_a_damaged_folder_is_refused_with_a_remedy(copy, file, keep):
    if keep is None:
        (copy / file).unlink()
    else:
        cut(copy / file, keep)
    with pytest.raises(ModelError) as caught:
        load_base(str(copy))
    assert str(copy) in str(caught.value) and caught.value.remedy


def test_weights_that_lack_a_tensor_are_refused(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights.pop("model.layers.0.mlp.up_proj.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors, such as model\.layers\.0\.mlp\.up_proj\.weight"):
        load_base(str(copy))


def test_an_impossible_config_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    config["num_attention_heads"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load_base(str(copy))


def test_pickled_weights_are_never_read(copy):
    from safetensors.torch import load_file

    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        load_base(str(copy))


def test_code_in_a_folder_is_never_run(copy, tmp_path):
    mark = tmp_path / "was-run"
    (copy / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
    config["model_type"] = "evil"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load_base(str(copy))
    assert not mark.exists()


@pytest.mark.parametrize("name", ["smollm", "/no/such/folder", "./no/such", "a/b/c"])
def test_names_that_are_nothing(name):
    with pytest.raises(ModelError, match="no base model called") as caught:
        load_base(name)
    assert "smollm2" in caught.value.remedy


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_base(str(tmp_path))


def test_a_hub_id_without_a_network_answers_quickly(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(ModelError, match="does not answer") as caught:
        load_base("nobody/such-a-model-does-not-exist")
    assert time.perf_counter() - start < 5
    assert "HF_ENDPOINT" in caught.value.remedy and "smollm2" in caught.value.remedy


KILLED = """
import os, signal
from chinese_llama_lab.sources import models
def convert(gguf, out):
    (out / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
models.source_file = lambda *_: None
models._convert_gguf = convert
models.converted_model("smollm2")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_kill_during_conversion_leaves_nothing_for_good(empty_cache, monkeypatch):
    package = str(Path(chinese_llama_lab.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "PYTHONPATH": package})
    assert done.returncode == -signal.SIGKILL
    derived = empty_cache / "derived"
    assert [path.name for path in derived.iterdir() if path.name.endswith(".tmp")]
    monkeypatch.setattr(models, "source_file", lambda *_: None)
    monkeypatch.setattr(models, "_convert_gguf", lambda gguf, out: (out / "config.json").write_text("{}"))
    folder = converted_model("smollm2")
    assert os.listdir(derived) == [folder.name]
    assert os.listdir(folder) == ["config.json"]


def test_a_full_disk_during_conversion_is_said_and_leaves_nothing(empty_cache, monkeypatch):
    def full(gguf, out):
        (out / "half").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "source_file", lambda *_: None)
    monkeypatch.setattr(models, "_convert_gguf", full)
    with pytest.raises(ModelError, match="No space left") as caught:
        converted_model("smollm2")
    assert "LAB_CACHE_DIR" in caught.value.remedy
    assert os.listdir(empty_cache / "derived") == []
