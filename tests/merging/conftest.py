"""Bases and adapters of two layers, with random values wherever an adapter trains."""

from __future__ import annotations

import json
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from training.conftest import make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from chinese_llama_lab.training.lora import add_lora
from chinese_llama_lab.training.recipe import Recipe
from tests.threads import one_thread  # noqa: F401 - a fixture

RECIPE = Recipe(name="t", task="pretrain", rank=4, alpha=8, dropout=0.0)
TEXT = (
    "北京大学创办于1898年,初名京师大学堂,是中国近现代第一所国立综合性大学。It was founded in Beijing "
    "as the Imperial University. 一丁丂七丄"
)
IDS = make_tokenizer(5)(TEXT, return_tensors="pt")["input_ids"]


def save_base(folder, *, tied=False, rows=264, shard="5GB", **options):
    model = make_model(rows, tied=tied, **options)
    model.save_pretrained(folder, max_shard_size=shard)
    make_tokenizer(rows - 259).save_pretrained(folder)
    return folder


def fill(adapted, seed=1):
    """Random values in everything that is trained; DoRA's magnitudes stay near what they were."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad or ".lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return adapted.eval()


def scores(model, ids=IDS):
    """Logits at every position."""
    rows = model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        return model(ids.clamp(max=rows - 1)).logits


def save_adapter(base, folder, recipe=RECIPE, *, tokens=range(259, 264), seed=1, tokenizer=True):
    """An adapter as `pretrain` makes it; returns (folder, logits of the unmerged model)."""
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = fill(add_lora(model, recipe, tokens), seed)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    if tokenizer:
        make_tokenizer(model.config.vocab_size - 259).save_pretrained(folder)
    return folder, scores(adapted)


def save_with_peft(base, folder, *, embedding_layers=False, seed=1, **options):
    """An adapter of any `LoraConfig`; returns (folder, unmerged logits, peft's merged weights), reloaded."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **options)
        )
        fill(adapted, seed).save_pretrained(folder, save_embedding_layers=embedding_layers)
        again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
        unmerged = scores(again)
        return folder, unmerged, again.merge_and_unload().state_dict()


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def tensors_of(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def edit(folder, change, name="adapter_model.safetensors"):
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, {"format": "pt"})


def key(tensors, part):
    return next(name for name in tensors if part in name)


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
