"""Loading through bitsandbytes: the same call for every kind, and back from a folder to the bit."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from chinese_llama_lab.quantization.blockwise import quantize
from chinese_llama_lab.quantization.described import described
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.kinds import FOUR_BIT, LOADABLE, PLAIN
from chinese_llama_lab.quantization.load import load_quantized, quantization_config, save_quantized
from chinese_llama_lab.quantization.packing import has_4bit_kernel, is_packed, layers_4bit, use_fast_kernel

from .conftest import assert_same_bits
from .quality_models import saved, tiny

IDS = torch.arange(24).view(2, 12) * 7
QUANTIZED = ("int8", *FOUR_BIT)
pytestmark = pytest.mark.filterwarnings("ignore::chinese_llama_lab.quantization.load.SlowKernelWarning")
needs_kernel = pytest.mark.skipif(
    not has_4bit_kernel(), reason="this processor has no AVX512-BF16: nothing is ever packed"
)


@torch.no_grad()
def scores(model):
    return model(IDS).logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("tied"), tied=True)


def tensors(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", LOADABLE)
def test_one_call_for_every_kind(folder, kind):
    model, tokenizer = load_quantized(folder, kind, compute_dtype="float32")
    assert not model.training and len(tokenizer) == 259
    exact = scores(tiny())
    far = float((scores(model).float() - exact).norm() / exact.norm())
    # A step of fp16 is an eighth of one of bf16; how much of it adds up depends on the processor's kernels.
    limits = {"fp32": 0, "bf16": 0.02, "fp16": 0.004, "int8": 0.05, "fp4": 0.6, "fp4-double": 0.6}
    assert far <= limits.get(kind, 0.4) and (kind == "fp32" or far > 0)
    kinds = {part.part: part.held_as for part in described(model).parts}
    rest = PLAIN.get(kind, "float32")
    assert kinds == {
        "embedding": rest,
        "attention": kind if kind in QUANTIZED else rest,
        "mlp": kind if kind in QUANTIZED else rest,
        "norms": rest,
        "head": rest,
        "other": "buffers",
    }


@pytest.mark.parametrize("kind", FOUR_BIT)
def test_the_weights_are_those_of_this_course(folder, kind):
    book, double = FOUR_BIT[kind]
    model = load_quantized(folder, kind, compute_dtype="bfloat16").model
    for name, layer in layers_4bit(model):
        weights = tiny().get_submodule(name).weight.detach().bfloat16()
        ours = quantize(weights, book, 64, double)
        state = layer.weight.quant_state
        assert torch.equal(layer.weight.data.view(-1), ours.codes)
        scales = state.absmax if not double else state.state2.absmax
        assert_same_bits(scales, ours.absmax.absmax if double else ours.absmax)
        assert state.blocksize == 64 and layer.compute_dtype == torch.bfloat16
    assert sum(1 for _ in layers_4bit(model)) == 14


@pytest.mark.parametrize("head", [None, True], ids=["head", "quantized head"])
@pytest.mark.parametrize("base", ["folder", "tied"])
@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_saved_and_loaded_is_the_same_to_the_bit(request, tmp_path, base, kind, compute, head):
    """After a forward in eval mode, too: bitsandbytes' own saving damages a model that was used."""
    given = request.getfixturevalue(base)
    options = {"compute_dtype": compute, "quantize_head": head}
    first = load_quantized(given, kind, **options)
    unused = save_quantized(first, tmp_path / "unused")
    expected = scores(first.model)
    used = save_quantized(first, tmp_path / "used")
    assert torch.equal(scores(first.model), expected)
    one, other = tensors(unused), tensors(used)
    assert one.keys() == other.keys()
    for name in one:
        assert_same_bits(one[name].view(torch.uint8), other[name].view(torch.uint8))
    again = load_quantized(used, kind, compute_dtype=compute)
    assert repr(described(again.model)) == repr(described(load_quantized(given, kind, **options).model))
    assert torch.equal(scores(again.model), expected) and expected.dtype == getattr(torch, compute)
    assert again.tokenizer("ab").input_ids == first.tokenizer("ab").input_ids


def test_a_saved_folder_is_computed_in_what_is_asked_for(folder, tmp_path):
    """transformers loads a quantized folder in the dtypes it was saved with, whatever it is told."""
    for kind in ("nf4", "int8"):
        out = save_quantized(load_quantized(folder, kind, compute_dtype="bfloat16"), tmp_path / kind)
        model = load_quantized(out, kind, compute_dtype="float32").model
        assert scores(model).dtype == torch.float32 == model.dtype
        assert {p.dtype for p in model.parameters()} == {
            torch.float32,
            torch.uint8 if kind == "nf4" else torch.int8,
        }
        assert {layer.compute_dtype for _, layer in layers_4bit(model)} <= {torch.float32}
        twice = save_quantized(load_quantized(out, kind, compute_dtype="float32"), tmp_path / f"{kind}2")
        assert torch.equal(scores(load_quantized(twice, kind, compute_dtype="float32").model), scores(model))


def test_a_head_of_its_own(folder, tied):
    for base in (folder, tied):
        plain = load_quantized(base, "nf4", compute_dtype="float32").model
        model = load_quantized(base, "nf4", compute_dtype="float32", quantize_head=True).model
        weights = plain.get_output_embeddings().weight.detach()
        ours = quantize(weights, "nf4", 64)
        assert torch.equal(model.lm_head.weight.data.view(-1), ours.codes)
        assert torch.equal(model.get_input_embeddings().weight, plain.get_input_embeddings().weight)
        assert described(model)["head"].held_as == "nf4" and not torch.equal(scores(model), scores(plain))
        # Tied, the head was free; apart, it costs 4.5 bits a weight and a code book of 64 bytes.
        extra = described(model).bytes - described(plain).bytes
        quarter = weights.numel() * 4.5 / 8 + 64
        assert extra == (quarter if base == tied else quarter - 4 * weights.numel())


def test_bytes_are_those_of_the_tensors(tied):
    found = described(load_quantized(tied, "nf4", compute_dtype="bfloat16").model)
    attention = 2 * (64 * 64 * 2 + 64 * 32 * 2)
    assert found["attention"].weights == attention
    assert found["attention"].bytes == attention * 4.5 / 8 + 8 * 64  # code books: 16 float32 a layer
    assert found["mlp"].bytes == 2 * 3 * (64 * 128 * 4.5 / 8 + 64)
    assert found["embedding"].bytes == 259 * 64 * 2 and found["head"].weights == 0
    assert found["norms"].bytes == 5 * 64 * 2
    assert found.bits_per_weight == pytest.approx(4.5, rel=0.03)
    double = described(load_quantized(tied, "nf4-double", compute_dtype="bfloat16").model)
    q_proj = 64 * 64 // 2 + 64 + 4 + 64 + 1024 + 4  # codes, scales, their scale, two code books, mean
    assert double["attention"].scales >= 4 * (q_proj - 64 * 64 // 2)
    plain = load_quantized(tied, "fp32").model
    assert described(plain).bytes == sum(
        t.numel() * t.element_size() for t in [*plain.parameters(), *plain.buffers()]
    )
    eight = described(load_quantized(tied, "int8", compute_dtype="float32").model)
    assert eight["attention"].bytes == attention + 2 * 4 * (64 + 64 + 32 + 32)


@needs_kernel
class TestFastKernel:
    def test_packed_in_eval_mode_and_back_in_train_mode(self, folder):
        model = load_quantized(folder, "nf4-double", compute_dtype="bfloat16").model
        slow = load_quantized(folder, "nf4-double", compute_dtype="bfloat16", fast=False).model
        before = {name: copy.deepcopy(layer.weight) for name, layer in layers_4bit(model)}
        size = described(model).bytes
        fast = scores(model)
        assert all(is_packed(layer) for _, layer in layers_4bit(model))
        assert described(model).bytes > size  # scales in bfloat16 beside the kept ones
        assert not any(is_packed(layer) for _, layer in layers_4bit(slow)) and scores(slow).isfinite().all()
        assert 0 < float((fast - scores(slow)).float().norm() / fast.float().norm()) < 0.03
        assert torch.equal(scores(model.train()), scores(slow))
        for name, layer in layers_4bit(model):
            state, kept = layer.weight.quant_state, before[name].quant_state
            assert torch.equal(layer.weight.data, before[name].data)
            assert torch.equal(state.absmax, kept.absmax) and torch.equal(state.offset, kept.offset)
            assert torch.equal(state.state2.absmax, kept.state2.absmax) and state.dtype == kept.dtype
        assert torch.equal(scores(model.eval()), fast)  # and packed once more
        assert use_fast_kernel(model, False) == 0 and torch.equal(scores(model), scores(slow))
        assert use_fast_kernel(model, True) == 14 and torch.equal(scores(model), fast)

    def test_gradients_pass_through_in_eval_mode(self, folder):
        """bitsandbytes' own packed layers have no backward, and say nothing."""
        model = load_quantized(folder, "nf4", compute_dtype="bfloat16").model
        slow = load_quantized(folder, "nf4", compute_dtype="bfloat16", fast=False).model
        scores(model)
        found = []
        for each in (model, slow):
            states = each.get_input_embeddings()(IDS).detach().requires_grad_()
            each(inputs_embeds=states).logits.float().square().mean().backward()
            found.append(states.grad)
        assert float(found[0].abs().max()) > 0 and torch.equal(*found)

    def test_float32_is_never_computed_in_bfloat16(self, folder):
        model = load_quantized(folder, "nf4", compute_dtype="float32").model
        slow = load_quantized(folder, "nf4", compute_dtype="float32", fast=False).model
        assert torch.equal(scores(model), scores(slow))

    def test_what_bitsandbytes_packed_itself_is_refused(self, folder, tmp_path):
        from transformers import AutoModelForCausalLM

        base = load_quantized(folder, "nf4", compute_dtype="bfloat16")
        config = quantization_config("nf4", "bfloat16")
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, dtype=torch.bfloat16, device_map={"": "cpu"}
        ).eval()
        scores(model)
        with pytest.raises(QuantizationError, match=r"packed the weights of model.layers.0(.|\n)*load_quant"):
            save_quantized(base._replace(model=model), tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestInt8:
    def test_what_it_computes(self, folder):
        """A scale a row, a scale a token; columns of the input with a large value are left in full."""
        model = load_quantized(folder, "int8", compute_dtype="float32").model
        layer = model.model.layers[0].mlp.up_proj
        torch.manual_seed(0)
        x = torch.randn(5, 64)
        x[2, 7], x[4, 50] = 9.0, -6.0
        weights = tiny().model.layers[0].mlp.up_proj.weight.detach().half().float()
        scales = weights.abs().amax(1, keepdim=True)
        codes = torch.round(weights * (127 / scales))
        outliers = torch.tensor([7, 50])
        inner = x.half().float().clone()
        inner[:, outliers] = torch.where(x[:, outliers].abs() >= 6, 0.0, inner[:, outliers])
        tokens = inner.abs().amax(1, keepdim=True)
        rounded = torch.round(inner * (127 / tokens))
        rounded[:, outliers] = 0
        restored = codes * scales / 127
        expected = rounded * tokens / 127 @ restored.T + x[:, outliers] @ restored[:, outliers].T
        with torch.no_grad():
            assert torch.allclose(layer(x), expected, atol=2e-4, rtol=1e-4)
            assert not torch.allclose(layer(x), x @ restored.T, atol=2e-4, rtol=1e-4)
            assert torch.allclose(layer.train()(x), x @ restored.T, atol=1e-5)

    def test_the_threshold_is_one_of_activations(self, folder, tmp_path):
        model = load_quantized(folder, "int8", compute_dtype="float32", threshold=0).model
        layer = model.model.layers[0].mlp.up_proj
        x = torch.randn(3, 64)
        x[0, 0] = 50.0
        small = load_quantized(folder, "int8", compute_dtype="float32", threshold=1e-6).model
        exact = x @ tiny().model.layers[0].mlp.up_proj.weight.T
        with torch.no_grad():
            rough = float((layer(x) - exact).norm())
            assert float((small.model.layers[0].mlp.up_proj(x) - exact).norm()) < rough / 3
        out = save_quantized(load_quantized(folder, "int8", threshold=3.0), tmp_path / "out")
        again = load_quantized(out, "int8")
        assert again.model.model.layers[0].mlp.up_proj.state.threshold == 3.0
        with pytest.raises(QuantizationError, match=r"threshold=3.0 already, and threshold=6.0"):
            load_quantized(out, "int8", threshold=6)


def test_a_config_says_what_was_asked(folder, tmp_path):
    out = save_quantized(load_quantized(folder, "fp4-double", skip=["down_proj"]), tmp_path / "out")
    said = json.loads((out / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert said["bnb_4bit_quant_type"] == "fp4" and said["bnb_4bit_use_double_quant"]
    model = load_quantized(out, "fp4-double").model
    assert not any("down_proj" in name for name, _ in layers_4bit(model))
    assert sum(1 for _ in layers_4bit(model)) == 12
    assert described(model)["mlp"].held_as.count(",") == 1
