"""What loading refuses or warns of, with the layer's name and a remedy."""

from __future__ import annotations

import json
import sys
import warnings

import pytest
import torch
from bitsandbytes import cextension, functional
from safetensors.torch import load_file, save_file
from training.conftest import make_model, make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from chinese_llama_lab.errors import LabError, ModelError
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.kinds import FOUR_BIT, PLAIN
from chinese_llama_lab.quantization.load import (
    SlowKernelWarning,
    load_quantized,
    quantization_config,
    save_quantized,
)
from chinese_llama_lab.quantization.packing import layers_4bit

from .quality_models import saved, tiny
from .test_load import IDS, scores

quiet = pytest.mark.filterwarnings("ignore::chinese_llama_lab.quantization.load.SlowKernelWarning")


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "base")


def shaped(folder, hidden, inner, **options):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, **options}
    config = LlamaConfig(vocab_size=264, hidden_size=hidden, intermediate_size=inner, **sizes)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    make_tokenizer(5).save_pretrained(folder)
    return folder, model


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


class TestSettings:
    def test_what_there_is_not(self, folder):
        with pytest.raises(
            QuantizationError, match=r"no kind 'int4'(.|\n)*fp32, bf16, fp16, int8, nf4, nf4-d"
        ):
            load_quantized(folder, "int4")
        with pytest.raises(QuantizationError, match=r"computed in 'bf16'(.|\n)*float32, bfloat16, float16"):
            load_quantized(folder, "nf4", compute_dtype="bf16")
        with pytest.raises(QuantizationError, match="bf16 is not quantized"):
            quantization_config("bf16")
        with pytest.raises(QuantizationError, match="nf4 has no threshold"):
            load_quantized(folder, "nf4", threshold=6.0)
        for threshold in (-1, float("nan")):
            with pytest.raises(QuantizationError, match="the threshold is"):
                load_quantized(folder, "int8", threshold=threshold)
        with pytest.raises(QuantizationError, match=r"no linear layer 'dwn_proj'(.|\n)*down_proj, gate_proj"):
            load_quantized(folder, "nf4", skip=["dwn_proj"])
        with pytest.raises(QuantizationError, match="no layer was quantized"):
            load_quantized(folder, "nf4", skip=["model"])
        with pytest.raises(ModelError, match="no base model called 'smollm9'"):
            load_quantized("smollm9", "nf4")

    def test_devices(self, folder, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ModelError, match="no CUDA GPU here"):
            load_quantized(folder, "nf4", device="cuda")
        with pytest.raises(ModelError, match="nothing can be loaded on 'gpu'"):
            load_quantized(folder, "int8", device="gpu")

    def test_a_quantized_model_on_the_cpu_stays_there_beside_a_gpu(self, folder, monkeypatch):
        """transformers puts a quantized model on the GPU unless it is told where to go."""
        from chinese_llama_lab.sources import models

        asked = {}
        real = models.load_base
        monkeypatch.setattr(models, "load_base", lambda *a, **o: (asked.update(o), real(*a, **o))[1])
        load_quantized(folder, "nf4", fast=False)
        assert asked["device_map"] == {"": "cpu"}

    @quiet
    def test_a_folder_of_another_kind(self, folder, tmp_path):
        for kind in ("nf4", "int8"):
            out = save_quantized(load_quantized(folder, kind), tmp_path / kind)
            for other in (*PLAIN, *FOUR_BIT, "int8"):
                if other != kind:
                    said = rf"quantized as {kind} already, and {other} was(.|\n)*ask for {kind}"
                    with pytest.raises(QuantizationError, match=said):
                        load_quantized(out, other)
            load_quantized(out, kind)
            for options, said in (
                ({"quantize_head": True}, "quantize_head=False already, and quantize_head=True"),
                ({"skip": ["o_proj"]}, r"skip=\[\] already, and skip=\['o_proj'\]"),
            ):
                with pytest.raises(QuantizationError, match=said):
                    load_quantized(out, kind, **options)
        out = save_quantized(load_quantized(folder, "nf4", quantize_head=True), tmp_path / "head")
        load_quantized(out, "nf4", quantize_head=True)
        with pytest.raises(QuantizationError, match="quantize_head=True already"):
            load_quantized(out, "nf4", quantize_head=False)

    def test_a_folder_of_another_library(self, folder):
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(
            json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}), encoding="utf-8"
        )
        with pytest.raises(QuantizationError, match="quantized as gptq already, and nf4 was"):
            load_quantized(folder, "nf4")

    def test_a_config_that_is_no_json(self, folder):
        (folder / "config.json").write_text("{", encoding="utf-8")
        with pytest.raises(LabError):
            load_quantized(folder, "nf4")

    @quiet
    def test_saving(self, folder, tmp_path):
        base = load_quantized(folder, "nf4")
        (tmp_path / "there").mkdir()
        with pytest.raises(QuantizationError, match="something of that name"):
            save_quantized(base, tmp_path / "there")
        with pytest.raises(QuantizationError, match="is not quantized"):
            save_quantized(load_quantized(folder, "fp32"), tmp_path / "out")
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
        with pytest.raises(QuantizationError, match="has an adapter"):
            save_quantized(base._replace(model=get_peft_model(base.model, config)), tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestWeights:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("kind", ["nf4", "fp4-double", "int8"])
    def test_what_is_no_number(self, folder, kind, value):
        edit(folder, lambda t: t["model.layers.1.mlp.up_proj.weight"][3].fill_(value))
        said = r"layers.1.mlp.up_proj.weight holds -?(nan|inf).*\(64 of 8,192 weights\)(.|\n)*\[3, 0\]"
        with pytest.raises(QuantizationError, match=said):
            load_quantized(folder, kind)

    def test_in_what_is_not_quantized(self, folder):
        edit(folder, lambda t: t["model.embed_tokens.weight"][5, 6].fill_(float("nan")))
        with pytest.raises(QuantizationError, match=r"embed_tokens.weight holds nan(.|\n)*\[5, 6\]"):
            load_quantized(folder, "nf4")

    def test_int8_goes_through_float16(self, folder):
        edit(folder, lambda t: t["model.layers.0.mlp.up_proj.weight"][0, 0].fill_(7e4))
        load_quantized(folder, "nf4", compute_dtype="float32", fast=False)
        with pytest.raises(QuantizationError, match=r"up_proj.weight holds 70000.0"):
            load_quantized(folder, "int8", compute_dtype="float32")

    @quiet
    def test_in_the_scales_of_a_saved_folder(self, folder, tmp_path):
        for kind, tensor in (("nf4", "absmax"), ("nf4-double", "nested_absmax")):
            out = save_quantized(load_quantized(folder, kind), tmp_path / kind)
            edit(out, lambda t, n=tensor: t[f"model.layers.0.mlp.up_proj.weight.{n}"].fill_(float("nan")))
            with pytest.raises(QuantizationError, match=r"up_proj.weight.absmax holds nan"):
                load_quantized(out, kind)

    def test_checking_ends_with_the_load(self, folder):
        from transformers.integrations import bitsandbytes as conversions

        before = conversions.Bnb4bitQuantize.convert
        edit(folder, lambda t: t["model.layers.0.mlp.up_proj.weight"][0, 0].fill_(float("nan")))
        with pytest.raises(QuantizationError):
            load_quantized(folder, "nf4")
        assert conversions.Bnb4bitQuantize.convert is before


class TestShapes:
    def test_rows_that_bitsandbytes_restores_wrongly(self, tmp_path):
        folder, _ = shaped(tmp_path / "odd", 64, 96)  # 96 is a multiple of 16, and not of 64
        with pytest.raises(
            QuantizationError,
            match=r"layers.0.mlp.down_proj has rows of 96 weights(.|\n)*64(.|\n)*skip=\['down_proj'\]",
        ):
            load_quantized(folder, "nf4")
        model = load_quantized(folder, "nf4", skip=["down_proj"]).model
        assert sum(1 for _ in layers_4bit(model)) == 6 and scores(model).isfinite().all()
        with pytest.raises(QuantizationError, match="has rows of 32 weights"):  # of the other test files
            make_model(264).save_pretrained(tmp_path / "small")
            make_tokenizer(5).save_pretrained(tmp_path / "small")
            load_quantized(tmp_path / "small", "nf4")

    @pytest.mark.parametrize("kind", ["nf4", "nf4-double", "int8"])
    def test_odd_shapes_go_the_slow_way(self, tmp_path, kind):
        """40 rows are no multiple of 32, and rows of 40 or 72 none of 64."""
        folder, exact = shaped(tmp_path / "odd", 40, 72)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = load_quantized(folder, kind, compute_dtype="bfloat16").model
        if kind != "int8" and functional.has_avx512bf16():
            (text,) = [str(w.message) for w in said if w.category is SlowKernelWarning]
            assert "of 7 layers" in text and "q_proj [40, 40]" in text
        out = scores(model).float()
        weights = {name: layer for name, layer in layers_4bit(model)}
        assert len(weights) == (0 if kind == "int8" else 7)
        with torch.no_grad():
            for name, layer in weights.items():
                restored = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                exact.get_submodule(name).weight.copy_(restored)
            expected = exact(IDS).logits
        assert float((out - expected).norm() / expected.norm()) < 0.02


class TestKernels:
    def warned(self, folder, kind, **options):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = load_quantized(folder, kind, **options).model
            scores(model)
        return model, [str(w.message) for w in said if issubclass(w.category, SlowKernelWarning)]

    def test_a_processor_without_avx512_bf16(self, folder, monkeypatch):
        monkeypatch.setattr(functional, "has_avx512bf16", lambda: False)
        model, said = self.warned(folder, "nf4", compute_dtype="bfloat16")
        assert len(said) == 1 and "has no AVX512-BF16" in said[0] and "results are right" in said[0]
        slow, said = self.warned(folder, "nf4", compute_dtype="bfloat16", fast=False)
        assert not said and torch.equal(scores(model), scores(slow))

    def test_one_with_it(self, folder, monkeypatch):
        monkeypatch.setattr(functional, "has_avx512bf16", lambda: True)
        with warnings.catch_warnings():
            warnings.simplefilter("error", SlowKernelWarning)
            load_quantized(folder, "nf4", compute_dtype="bfloat16")
        with pytest.warns(SlowKernelWarning, match="computes in bfloat16, and compute_dtype is float32"):
            load_quantized(folder, "nf4", compute_dtype="float32")

    def test_one_without_avx512(self, folder, monkeypatch):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        assert "has no AVX-512" in self.warned(folder, "int8")[1][0]
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        assert not self.warned(folder, "int8")[1]

    def test_warned_once(self, folder, monkeypatch):
        monkeypatch.setattr(functional, "has_avx512bf16", lambda: False)
        from chinese_llama_lab.quantization import load

        load.__dict__.pop("__warningregistry__", None)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("default")
            for _ in range(3):
                load_quantized(folder, "nf4")
        assert sum(issubclass(w.category, SlowKernelWarning) for w in said) == 1


class TestBitsandbytes:
    def test_without_a_native_library(self, folder, monkeypatch):
        mock = cextension.ErrorHandlerMockBNBNativeLibrary(
            "libbitsandbytes_cpu.so: cannot open shared object"
        )
        monkeypatch.setattr(cextension, "lib", mock)
        with pytest.raises(
            QuantizationError, match=r"no native library for this platform: libbits(.|\n)*python -m"
        ):
            load_quantized(folder, "nf4")
        load_quantized(folder, "bf16")

    def test_not_installed(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(
            QuantizationError, match=r"cannot be imported here(.|\n)*pip install bitsandbytes"
        ):
            load_quantized(folder, "int8")
        assert torch.equal(scores(load_quantized(folder, "fp32").model), scores(tiny()))
