"""Merging: against peft, against the unmerged model, and everything that must be refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from chinese_llama_lab.adapters import AdapterError, merge_adapters
from chinese_llama_lab.training.lora import add_lora
from chinese_llama_lab.training.recipe import Recipe
from chinese_llama_lab.vocabulary.consistency import check_consistency

from .conftest import make_model, make_tokenizer

RECIPE = Recipe(name="t", task="pretrain", rank=4, alpha=8, dropout=0.0)
IDS = make_tokenizer(5)("中国的首都是北京, capital. 一丁丂七丄", return_tensors="pt")["input_ids"]


def save_base(folder, *, tied=False, rows=264, shard="5GB", **options):
    model = make_model(rows, tied=tied, **options)
    model.save_pretrained(folder, max_shard_size=shard)
    make_tokenizer(rows - 259).save_pretrained(folder)
    return folder


def save_adapter(base, folder, recipe=RECIPE, *, tokens=range(259, 264), seed=1, tokenizer=True):
    """An adapter with random values everywhere; returns (folder, logits of the unmerged model)."""
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = add_lora(model, recipe, tokens)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    if tokenizer:
        make_tokenizer(model.config.vocab_size - 259).save_pretrained(folder)
    adapted.eval()
    with torch.no_grad():
        return folder, adapted(IDS.clamp(max=model.config.vocab_size - 1)).logits


def logits(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"embeddings": "frozen"},
        {"embeddings": "published"},
        {"rslora": True},
        {"dora": True},
        {"dora": True, "rslora": True, "targets": ("q_proj", "up_proj")},
        {"rank": 0},
    ],
    ids=str,
)
def test_merged_equals_unmerged(tmp_path, changes, tied):
    base = save_base(tmp_path / "base", tied=tied, shard="20KB")
    adapter, expected = save_adapter(base, tmp_path / "adapter", RECIPE.replace(**changes))
    report = merge_adapters(base, [adapter], tmp_path / "out", dtype="float32")
    got = logits(report.out)
    assert torch.allclose(got, expected, atol=1e-4) and torch.equal(got.argmax(-1), expected.argmax(-1))
    assert not torch.allclose(got, logits(base), atol=1e-3) and report.unchanged == ()
    model, tokenizer = (c.from_pretrained(report.out) for c in (AutoModelForCausalLM, AutoTokenizer))
    check_consistency(model, tokenizer)
    assert report.tied == tied == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert report.rows == 264 and sorted(p.name for p in base.glob("*.safetensors")) == sorted(
        p.name for p in report.out.glob("*.safetensors")
    )
    assert len(list(base.glob("*.safetensors"))) > 3


def test_peft_merges_to_the_same(tmp_path):
    base = save_base(tmp_path / "base")
    adapter, _ = save_adapter(base, tmp_path / "adapter", RECIPE.replace(dora=True))
    merge_adapters(base, [adapter], tmp_path / "out", dtype="float32")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    theirs = loaded.merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.allclose(tensor, theirs[name], atol=1e-5), name


def test_a_chain_in_order(tmp_path):
    base = save_base(tmp_path / "base", tied=True)
    first, _ = save_adapter(base, tmp_path / "first", RECIPE.replace(dora=True))
    middle = merge_adapters(base, [first], tmp_path / "middle", dtype="float32").out
    second, expected = save_adapter(middle, tmp_path / "second", RECIPE.replace(dora=True, rank=2), seed=2)
    report = merge_adapters(base, [first, second], tmp_path / "both", dtype="float32")
    assert torch.allclose(logits(report.out), expected, atol=1e-4)
    backwards = merge_adapters(base, [second, first], tmp_path / "wrong", dtype="float32")
    assert not torch.allclose(logits(backwards.out), expected, atol=1e-4)
    assert len(report.made_of["adapters"]) == 2 and report.changed == (15, 15)


def test_llama_to_chinese_llama_to_alpaca_grows(tmp_path):
    """Whole matrices with more rows than the base, then one row more: as 32,000 → 49,953 → 49,954."""
    base = save_base(tmp_path / "base", rows=259)
    published = RECIPE.replace(embeddings="published")
    grown = tmp_path / "grown"
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(263)
    model.save_pretrained(grown)
    make_tokenizer(4).save_pretrained(grown)
    first, _ = save_adapter(grown, tmp_path / "first", published, tokens=())
    middle = merge_adapters(base, [first], tmp_path / "middle", dtype="float32").out
    model = AutoModelForCausalLM.from_pretrained(middle)
    assert model.config.vocab_size == 263
    model.resize_token_embeddings(264)
    model.save_pretrained(tmp_path / "middle2")
    make_tokenizer(5).save_pretrained(tmp_path / "middle2")
    second, expected = save_adapter(tmp_path / "middle2", tmp_path / "second", published, tokens=(), seed=2)
    report = merge_adapters(base, [first, second], tmp_path / "out", dtype="float32")
    assert report.rows == 264 and torch.allclose(logits(report.out), expected, atol=1e-4)
    assert len(AutoTokenizer.from_pretrained(report.out)) == 264
    with pytest.raises(AdapterError, match=r"263.*264|was made for another base"):
        merge_adapters(base, [second, first], tmp_path / "wrong")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_into_every_dtype(tmp_path, dtype):
    base = save_base(tmp_path / "base", tied=True)
    adapter, expected = save_adapter(base, tmp_path / "adapter")
    merge_adapters(base, [adapter], tmp_path / "out", dtype=dtype)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {getattr(torch, dtype)}
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == dtype and "torch_dtype" not in config
    assert torch.allclose(logits(tmp_path / "out", dtype=torch.float32), expected, atol=2e-2)


def test_what_goes_along(tmp_path):
    base = save_base(tmp_path / "base")
    adapter, _ = save_adapter(base, tmp_path / "adapter", tokenizer=False)
    report = merge_adapters(base, [adapter], tmp_path / "out")
    names = {path.name for path in report.out.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    made_of = json.loads((report.out / "made_of.json").read_text(encoding="utf-8"))
    assert made_of == report.made_of
    assert made_of["base"].keys() == {"config.json", "model.safetensors"}
    assert all(len(digest) == 64 for digest in made_of["base"].values())


def test_a_merge_that_does_nothing_says_so(tmp_path):
    base = save_base(tmp_path / "base")
    model = add_lora(AutoModelForCausalLM.from_pretrained(base), RECIPE.replace(embeddings="frozen"))
    model.save_pretrained(tmp_path / "zero", save_embedding_layers=False)
    assert merge_adapters(base, [tmp_path / "zero"], tmp_path / "out", dtype="float32").unchanged == ("zero",)


def test_a_run_folder_is_an_adapter(tmp_path):
    base = save_base(tmp_path / "base")
    (tmp_path / "run").mkdir()
    save_adapter(base, tmp_path / "run" / "adapter")
    merge_adapters(base, [tmp_path / "run"], tmp_path / "out")


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def key(tensors, part):
    return next(name for name in tensors if part in name)


def set_config(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(key(t, "q_proj.lora_B")), "lora_B of .*q_proj.weight is missing"),
        (lambda t: [t.pop(key(t, f"0.mlp.up_proj.lora_{p}")) for p in "AB"], "1 of 14 updates are missing"),
        (lambda t: t.pop(key(t, "embed_tokens")), "new rows of embed_tokens are missing"),
        (
            lambda t: t[key(t, "k_proj.lora_A")].fill_(float("nan")),
            "k_proj.lora_A.weight holds NaN or infinity",
        ),
        (lambda t: t[key(t, "lm_head")].fill_(float("inf")), "holds NaN or infinity"),
        (lambda t: t.update({"base_model.model.odd.bias": torch.ones(2)}), "odd.bias, and this cannot"),
        (
            lambda t: t.update({key(t, "v_proj.lora_B"): torch.ones(8, 4)}),
            r"v_proj.weight has shape 16 × 32 in the base, and its update \[8, 4\]",
        ),
        (lambda t: t.clear(), "it holds nothing"),
    ],
)
def test_a_broken_adapter_is_refused(tmp_path, change, message):
    base = save_base(tmp_path / "base")
    adapter, _ = save_adapter(base, tmp_path / "adapter")
    edit(adapter / "adapter_model.safetensors", change)
    with pytest.raises(AdapterError, match=message):
        merge_adapters(base, [adapter], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_another_base_or_vocabulary_is_refused(tmp_path):
    base = save_base(tmp_path / "base")
    adapter, _ = save_adapter(base, tmp_path / "adapter")
    small = save_base(tmp_path / "small", rows=259)
    with pytest.raises(AdapterError, match="trains token 263, and the base has 259 rows"):
        merge_adapters(small, [adapter], tmp_path / "out")
    frozen, _ = save_adapter(base, tmp_path / "frozen", RECIPE.replace(embeddings="frozen"))
    with pytest.raises(AdapterError, match="264 tokens and the merged model 259 rows"):
        merge_adapters(small, [frozen], tmp_path / "out")
    (frozen / "run.json").write_text('{"rows": 264}', encoding="utf-8")
    with pytest.raises(AdapterError, match="trained on a base with 264 rows, and this one has 259"):
        merge_adapters(small, [frozen], tmp_path / "out")
    deep = save_base(tmp_path / "deep", layers=3)
    with pytest.raises(AdapterError, match="7 of 21 updates are missing"):
        merge_adapters(deep, [adapter], tmp_path / "out")
    with pytest.raises(AdapterError, match=r"the base has no model.layers.2"):
        third, _ = save_adapter(deep, tmp_path / "third")
        merge_adapters(base, [third], tmp_path / "out")
    text = (adapter / "tokenizer.json").read_text(encoding="utf-8")
    (adapter / "tokenizer.json").write_text(
        text.replace('"content": "</s>"', '"content": "</t>"'), encoding="utf-8"
    )
    shutil.copytree(base, tmp_path / "base2")
    other, _ = save_adapter(tmp_path / "base2", tmp_path / "other", tokenizer=False)
    shutil.copytree(small, tmp_path / "tok", ignore=lambda d, n: [x for x in n if "model" in x])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(small / name, other / name)
    with pytest.raises(AdapterError, match="another vocabulary: it has 259 tokens, and there were 264"):
        merge_adapters(base, [other], tmp_path / "out")


def test_quantized_pickled_or_damaged_is_refused(tmp_path):
    base = save_base(tmp_path / "base")
    adapter, _ = save_adapter(base, tmp_path / "adapter")
    quantized = shutil.copytree(base, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (quantized / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"quantized \(bitsandbytes\)(.|\n)*then quantize"):
        merge_adapters(quantized, [adapter], tmp_path / "out")
    pickled = shutil.copytree(base, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(AdapterError, match="pickled weights"):
        merge_adapters(pickled, [adapter], tmp_path / "out")
    shards = save_base(tmp_path / "shards", shard="20KB")
    next(shards.glob("*.safetensors")).unlink()
    with pytest.raises(AdapterError, match="lacks 1 shards"):
        merge_adapters(shards, [adapter], tmp_path / "out")
    bin_adapter = shutil.copytree(adapter, tmp_path / "bin")
    (bin_adapter / "adapter_model.safetensors").rename(bin_adapter / "adapter_model.bin")
    with pytest.raises(AdapterError, match="a pickle"):
        merge_adapters(base, [bin_adapter], tmp_path / "out")
    data = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(data[:-50])
    with pytest.raises(AdapterError, match="is damaged"):
        merge_adapters(base, [adapter], tmp_path / "out")


def test_other_refusals(tmp_path):
    base = save_base(tmp_path / "base")
    adapter, _ = save_adapter(base, tmp_path / "adapter")
    for arguments, message in (
        ((base, [], tmp_path / "out"), "no adapter"),
        ((base, [adapter], base), "exists already"),
        ((tmp_path / "none", [adapter], tmp_path / "out"), "no config.json"),
        ((base, [tmp_path / "none"], tmp_path / "out"), "no adapter_config.json"),
    ):
        with pytest.raises(AdapterError, match=message):
            merge_adapters(*arguments)
    with pytest.raises(AdapterError, match="no dtype"):
        merge_adapters(base, [adapter], tmp_path / "out", dtype="int8")
    set_config(adapter, bias="all")
    with pytest.raises(AdapterError, match="uses bias = 'all'"):
        merge_adapters(base, [adapter], tmp_path / "out")
    set_config(adapter, bias="none", peft_type="IA3")
    with pytest.raises(AdapterError, match="is IA3, not LORA"):
        merge_adapters(base, [adapter], tmp_path / "out")


def test_a_value_that_float16_cannot_hold(tmp_path):
    base = save_base(tmp_path / "base")
    adapter, _ = save_adapter(base, tmp_path / "adapter")
    edit(adapter / "adapter_model.safetensors", lambda t: t[key(t, "q_proj.lora_B")].fill_(1e6))
    with pytest.raises(AdapterError, match="does not fit float16"):
        merge_adapters(base, [adapter], tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_a_tied_pair_trained_apart_must_be_untied_on_purpose(tmp_path):
    base = save_base(tmp_path / "base", tied=True, shard="20KB")
    adapter, _ = save_adapter(base, tmp_path / "adapter", RECIPE.replace(embeddings="published"))
    edit(adapter / "adapter_model.safetensors", lambda t: t[key(t, "lm_head")].mul_(2))
    with pytest.raises(AdapterError, match="apart from the embedding"):
        merge_adapters(base, [adapter], tmp_path / "out")
    report = merge_adapters(base, [adapter], tmp_path / "out", dtype="float32", untie=True)
    model = AutoModelForCausalLM.from_pretrained(report.out)
    assert not report.tied and torch.allclose(model.lm_head.weight, model.model.embed_tokens.weight * 2)


MEASURE = """
import sys, threading, time, psutil
from pathlib import Path
import torch
from safetensors import safe_open
from transformers import AutoTokenizer
import chinese_llama_lab.adapters as adapters
# Files are mapped, and their pages can be dropped at any time: what the merge itself holds is not shared.
process, peak = psutil.Process(), 0
def held():
    memory = process.memory_info()
    return memory.rss - memory.shared
before = held()
def watch():
    global peak
    while True:
        peak = max(peak, held() - before)
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
folder = Path(sys.argv[1])
adapters.merge_adapters(folder / "base", [folder / "adapter"], folder / "out", dtype="bfloat16")
rss = process.memory_info().rss
print(peak, rss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="shared pages are counted on Linux alone")
def test_memory_on_a_sharded_model_of_two_gigabytes(tmp_path):
    """2.1 GB in five shards, merged in less than one shard."""
    base, width, layers = tmp_path / "base", 2048, 20
    LlamaConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers).save_pretrained(
        base
    )
    weight_map, adapter = {}, {}
    for shard in range(5):
        tensors = {}
        for layer in range(shard * 4, shard * 4 + 4):
            prefix = f"model.layers.{layer}.mlp."
            for name in ("up_proj", "gate_proj"):
                tensors[f"{prefix}{name}.weight"] = torch.full((4 * width, width), 0.5, dtype=torch.bfloat16)
            tensors[f"{prefix}down_proj.weight"] = torch.full((width, 4 * width), 0.5, dtype=torch.bfloat16)
            adapter[f"base_model.model.{prefix}up_proj.lora_A.weight"] = torch.ones(8, width)
            adapter[f"base_model.model.{prefix}up_proj.lora_B.weight"] = torch.ones(4 * width, 8)
        name = f"model-{shard + 1:05d}-of-00005.safetensors"
        save_file(tensors, base / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / "adapter").mkdir()
    save_file(adapter, tmp_path / "adapter" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["up_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    sizes = [path.stat().st_size for path in base.glob("*.safetensors")]
    assert sum(sizes) > 2e9
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak, rss = map(int, done.stdout.split())
    print(
        f"peak {peak / 2**20:.0f} MiB, rss {rss / 2**20:.0f} MiB, largest shard {max(sizes) / 2**20:.0f} MiB"
    )
    assert peak < max(sizes)
    merged = load_file(tmp_path / "out" / "model-00001-of-00005.safetensors")
    assert torch.equal(
        merged["model.layers.0.mlp.up_proj.weight"], torch.full((4 * width, width), 8.5).bfloat16()
    )
    assert float(merged["model.layers.0.mlp.gate_proj.weight"].max()) == 0.5
