"""QLoRA: adapters trained on a base in 4 bits, and merged into the base that is not quantized."""

from __future__ import annotations

import signal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from chinese_llama_lab.adapters import AdapterError, merge_adapters
from chinese_llama_lab.quantization.errors import QuantizationError
from chinese_llama_lab.quantization.load import load_quantized, quantization_config, save_quantized
from chinese_llama_lab.quantization.packing import has_4bit_kernel, is_packed, layers_4bit
from chinese_llama_lab.training.errors import TrainingStopped
from chinese_llama_lab.training.finetune import finetune
from chinese_llama_lab.training.instructions import Instruction
from chinese_llama_lab.training.pretrain import pretrain
from chinese_llama_lab.training.recipe import Recipe

from .conftest import CHINESE, make_tokenizer

RECIPE = Recipe(
    name="test",
    task="pretrain",
    precision="fp32",
    quantization="nf4",
    rank=4,
    alpha=8,
    dropout=0.1,
    block=32,
    micro_batch=2,
    batch=4,
    steps=8,
    learning_rate=1e-2,
    log_every=2,
    save_every=2,
)
KINDS = ("nf4", "nf4-double")
NEW = range(259, 264)
IDS = make_tokenizer(5)("一丁丂 北京大学 Peking University", return_tensors="pt")["input_ids"]
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
pytestmark = pytest.mark.filterwarnings("ignore::chinese_llama_lab.quantization.load.SlowKernelWarning")
needs_kernel = pytest.mark.skipif(
    not has_4bit_kernel(), reason="this processor has no AVX512-BF16: nothing is ever packed"
)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request, tmp_path_factory):
    """Rows of 64 and 128, which divide into blocks."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=request.param,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(5).save_pretrained(folder)
    return folder


def loaded(base, recipe, **options):
    return load_quantized(base, recipe.quantization, compute_dtype=DTYPES[recipe.precision], **options)


def run(base, out, recipe=RECIPE, *, model=None, **options):
    model = loaded(base, recipe).model if model is None else model
    options.setdefault("new_tokens", NEW)
    return pretrain(model, make_tokenizer(5), CHINESE * 10, recipe, out, progress=False, **options)


def weights(report):
    return load_file(report.adapter / "adapter_model.safetensors")


def same(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


@torch.no_grad()
def scores(model):
    return model.eval()(IDS).logits.float()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_pretrain(base, tmp_path, kind, precision):
    recipe = RECIPE.replace(quantization=kind, precision=precision)
    frozen = {name: layer.weight.data.clone() for name, layer in layers_4bit(loaded(base, recipe).model)}
    report = run(base, tmp_path / "run", recipe, held_out={"zh": CHINESE})
    (_, before), (_, after) = report.evaluations("zh_bits")
    assert report.losses[-1] < report.losses[0] - 0.15 and after < before
    trained = weights(report)
    assert trained and all(float(t.abs().max()) > 0 for name, t in trained.items() if "lora_B" in name)
    layers = dict(layers_4bit(report.model.get_base_model()))
    assert len(layers) == len(frozen) == 14
    for name, codes in frozen.items():
        layer = next(layer for other, layer in layers.items() if other.replace(".base_layer", "") == name)
        assert torch.equal(layer.weight.data, codes) and not layer.weight.requires_grad
    assert report.trained.parameters >= sum(2 * codes.numel() for codes in frozen.values())


def test_finetune(base, tmp_path):
    recipe = RECIPE.replace(task="finetune", quantization="nf4-double", block=160)
    rows = [Instruction("写一个字", "", "北"), Instruction("Name a city.", "", "北京")] * 8
    model, tokenizer = loaded(base, recipe)
    report = finetune(model, tokenizer, rows, recipe, tmp_path / "run", progress=False)
    assert report.losses[-1] < report.losses[0] - 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_bit_identical(base, tmp_path, kind):
    recipe = RECIPE.replace(quantization=kind)

    def stop(row):
        if row["step"] == 4 and "loss" in row:
            signal.raise_signal(signal.SIGINT)

    held_out = {"zh": CHINESE}
    whole = run(base, tmp_path / "whole", recipe, held_out=held_out)
    with pytest.raises(TrainingStopped):
        run(base, tmp_path / "cut", recipe, held_out=held_out, watch=stop)
    again = run(base, tmp_path / "cut", recipe, held_out=held_out, resume=True)
    assert again.resumed_from and same(whole, again) and whole.losses[-1] == again.losses[-1]
    # A saved base is the base.
    model = loaded(save_quantized(loaded(base, recipe), tmp_path / "saved"), recipe).model
    assert same(whole, run(base, tmp_path / "again", recipe, model=model, held_out=held_out))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_was_used_before(base, tmp_path, kind):
    """bitsandbytes' fast kernel packs a model at its first answer, and has no backward."""
    recipe = RECIPE.replace(quantization=kind, precision="bf16")
    used = loaded(base, recipe).model
    scores(used)
    if has_4bit_kernel():
        assert all(is_packed(layer) for _, layer in layers_4bit(used))
    one = run(base, tmp_path / "used", recipe, model=used)
    assert same(one, run(base, tmp_path / "fresh", recipe))
    assert same(one, run(base, tmp_path / "slow", recipe, model=loaded(base, recipe, fast=False).model))


@needs_kernel
def test_one_that_bitsandbytes_packed_is_refused(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantization_config("nf4", "bfloat16"), dtype=torch.bfloat16
    )
    scores(model)
    with pytest.raises(QuantizationError, match=r"has packed the weights(.|\n)*load_quantized"):
        run(base, tmp_path / "run", RECIPE.replace(precision="bf16"), model=model)
    model.state_dict()  # which unpacks it, wrongly
    with pytest.raises(QuantizationError, match="has packed the weights"):
        run(base, tmp_path / "run", RECIPE.replace(precision="bf16"), model=model)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_merged_into_the_unquantized_base(base, tmp_path, kind):
    recipe = RECIPE.replace(quantization=kind)
    report = run(base, tmp_path / "run", recipe)
    merged = merge_adapters(base, [tmp_path / "run"], tmp_path / "merged", dtype="float32").out
    plain = AutoModelForCausalLM.from_pretrained(base)
    before = scores(plain)
    expected = scores(PeftModel.from_pretrained(plain, report.adapter))
    found = scores(AutoModelForCausalLM.from_pretrained(merged))
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-2)
    # As trained, on rounded weights, it answers alike; rounded again after the merge, too.
    served = float((scores(report.model) - expected).norm() / expected.norm())
    again = float((scores(load_quantized(merged, kind).model) - expected).norm() / expected.norm())
    assert 0 < served < 0.3 and 0 < again < 0.3

    saved = save_quantized(loaded(base, recipe), tmp_path / "saved")
    with pytest.raises(AdapterError, match=r"base is quantized \(bitsandbytes\)(.|\n)*merge into the 16-bit"):
        merge_adapters(saved, [tmp_path / "run"], tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_from_the_shell(base, tmp_path, capsys):
    from .test_commands import SMALL, call

    text = tmp_path / "zh.txt"
    text.write_text("\n".join(CHINESE * 5), encoding="utf-8")
    given = [*SMALL, "--text", text, "--set=precision='fp32'"]
    nf4 = "--set=quantization='nf4-double'"
    assert call("pretrain", "--model", base, *given, nf4, "--out", tmp_path / "run") == 0
    saved = save_quantized(load_quantized(base, "nf4", compute_dtype="float32"), tmp_path / "saved")
    with pytest.raises(QuantizationError, match=r"as nf4 already, and nf4-double was asked for"):
        call("pretrain", "--model", saved, *given, nf4, "--out", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    assert call("merge-adapters", base, tmp_path / "run", "--dtype=float32", "--out", tmp_path / "m") == 0
