"""The derived sums against the tensors that autograd holds for a transformers model with peft's LoRA."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from chinese_llama_lab.inference.activations import kept, kept_by_layer, logits_bytes
from chinese_llama_lab.inference.errors import EstimateError
from chinese_llama_lab.inference.settings import MODULES, settings
from chinese_llama_lab.inference.shapes import shape_of
from chinese_llama_lab.inference.weights import lora_parameters
from chinese_llama_lab.training.lean_layers import lean_layers

BATCH, BLOCK = 2, 64
CALL_SIZE = {"batch": BATCH, "block": BLOCK}


def config(layers, kv_heads=4, attention="sdpa"):
    from transformers import LlamaConfig

    found = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
    )
    found._attn_implementation = attention
    return found


def held(layers, *, kv_heads=4, attention="sdpa", checkpointing=False, lean=False, masked=False, **lora):
    """Bytes of distinct storages, other than parameters, that the decoder's graph holds."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(config(layers, kv_heads, attention)).to(torch.bfloat16)
    decoder = model.model
    if lora:
        wide = lora.pop("lora_dtype") == "float32"
        model = get_peft_model(model, LoraConfig(**lora), autocast_adapter_dtype=wide)
    model.enable_input_require_grads()
    if checkpointing:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that none is freed
        return tensor

    mask = torch.ones(BATCH, 1, BLOCK, BLOCK, dtype=torch.bool).tril() if masked else None
    with (
        lean_layers(model) if lean else nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        decoder(torch.randint(0, 97, (BATCH, BLOCK)), attention_mask=mask, use_cache=False)
    return sum(size for size, _ in found.values())


def a_layer(**options):
    """Bytes a token that the third layer adds."""
    return (held(3, **options) - held(2, **options)) / (BATCH * BLOCK)


def derived(task, kv_heads=4, **options):
    shape = shape_of(config(1, kv_heads))
    return sum(kept_by_layer(shape, settings(task, **CALL_SIZE, **options)).values())


@pytest.mark.parametrize("attention", ["flash", "eager"])
def test_full_training(attention):
    measured = a_layer(attention={"flash": "sdpa", "eager": "eager"}[attention])
    assert derived("full", attention=attention) == pytest.approx(measured, rel=0.003)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), MODULES, ("down_proj",)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora(targets, dtype):
    measured = a_layer(r=2, target_modules=list(targets), lora_dtype=dtype)
    assert derived("lora", rank=2, targets=targets, lora_dtype=dtype) == pytest.approx(measured, rel=0.003)


def test_lora_with_dropout():
    measured = a_layer(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.05, lora_dtype="float32")
    ours = derived("lora", rank=2, targets=("q_proj", "v_proj"), dropout=0.05)
    # On a CPU dropout keeps a float32 mask, on a GPU a byte an element.
    assert ours + 2 * 3 * 64 == pytest.approx(measured, rel=0.003)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_lean_layers_and_attention(masked, kv_heads):
    """This package's own: beside what counts a token, bfloat16 copies of the adapter's float32 weights."""
    measured = a_layer(
        r=2,
        target_modules=list(MODULES),
        lora_dtype="float32",
        lean=True,
        masked=masked,
        kv_heads=kv_heads,
    )
    options = {"rank": 2, "layers": "lean", "attention": "lean", "masked": masked}
    shape = shape_of(config(1, kv_heads))
    copies = 2 * lora_parameters(shape, settings("lora", rank=2)) / (BATCH * BLOCK)
    assert derived("lora", kv_heads, **options) + copies == pytest.approx(measured, rel=0.003)


@pytest.mark.parametrize("masked", [False, True])
def test_lean_layers(masked, monkeypatch):
    """With torch's attention, as on a GPU."""
    monkeypatch.setattr("chinese_llama_lab.training.lean_layers.lean_attention", lambda config: nullcontext())
    measured = a_layer(r=2, target_modules=list(MODULES), lora_dtype="float32", lean=True, masked=masked)
    ours = derived("lora", rank=2, layers="lean", masked=masked)
    copies = 2 * lora_parameters(shape_of(config(1)), settings("lora", rank=2)) / (BATCH * BLOCK)
    assert ours + copies == pytest.approx(measured, rel=0.003)
    shape, run = shape_of(config(1)), {**CALL_SIZE, "rank": 2, "loss": "lean", "masked": masked}
    lean, plain = (kept(shape, settings("lora", layers=how, **run))["kept"] for how in ("lean", "plain"))
    assert plain - lean == pytest.approx(
        BATCH * BLOCK * (derived("lora", rank=2, masked=masked) - ours - copies)
    )


def test_lean_layers_over_quantized_weights_have_lean_norms_alone():
    shape = shape_of(config(1))
    lean, plain = (
        kept_by_layer(shape, settings("qlora", layers=how, **CALL_SIZE)) for how in ("lean", "plain")
    )
    assert plain.pop("norms") - lean.pop("norms") == 2 * 64 * 2 and lean == plain


def test_lean_layers_are_for_lora_everywhere_without_dropout():
    for wrong in ({"targets": ["q_proj"]}, {"dropout": 0.1}):
        with pytest.raises(EstimateError, match="layers"):
            settings("lora", layers="lean", **wrong)


def test_keys_and_values_are_counted_as_if_repeated():
    """Without a mask transformers leaves them as they are under GQA: the sum is then so much too high."""
    assert derived("full", kv_heads=2) - a_layer(kv_heads=2) == pytest.approx(2 * 2 * (64 - 32), abs=8)


def test_checkpointing_keeps_a_layers_input_alone():
    measured = (held(4, checkpointing=True) - held(2, checkpointing=True)) / 2
    shape = shape_of(config(1))
    one = kept(shape, settings("full", **CALL_SIZE, gradient_checkpointing=True))["kept"]
    two = kept(shape_of(config(2)), settings("full", **CALL_SIZE, gradient_checkpointing=True))["kept"]
    assert two - one == BATCH * BLOCK * 64 * 2
    assert two - one == pytest.approx(measured, rel=0.01)


def test_offloaded_checkpoints_take_nothing_for_a_layer():
    one, two = (
        kept(shape_of(config(n)), settings("full", gradient_checkpointing=True, offload_checkpoints=True))[
            "kept"
        ]
        for n in (1, 2)
    )
    assert one == two


def test_logits_by_hand():
    shape = shape_of("llama-2-7b")
    assert logits_bytes(shape, settings("lora", block=10, batch=3)) == 30 * 32000 * (2 + 4 + 4 + 4)
    assert logits_bytes(shape, settings("lora", block=10, batch=3, loss="shifted")) == 30 * 32000 * 18
    assert logits_bytes(shape, settings("lora", block=1000, loss="lean")) == 128 * 32000 * (2 + 4 + 4)
    chunked = logits_bytes(shape, settings("lora", block=1000, loss="chunked", loss_rows=100))
    assert chunked == 32000 * (1000 * (2 + 4) + 100 * 8)


def test_the_float32_loss_holds_no_more_than_is_counted():
    """What autograd keeps of `logits.float()` and cross-entropy: the log-probabilities."""
    found = {}

    def keep(tensor):
        found[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    logits = torch.randn(32, 97, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.nn.functional.cross_entropy(logits.float(), torch.zeros(32, dtype=torch.long))
    large = [size for size, tensor in found.values() if tensor.numel() == 32 * 97]
    assert large == [32 * 97 * 4]
