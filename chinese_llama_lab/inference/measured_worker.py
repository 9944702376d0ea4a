"""The process that `measured.measure` starts: `python -m chinese_llama_lab.inference.measured_worker JSON`.

Its last line is a JSON object of bytes: `level`, `loading`, `loaded`, `running` (`measured.Measured`).
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from chinese_llama_lab.inference.measured import OWN_PAGES, Case
from chinese_llama_lab.inference.process_memory import forget_peak, give_back, resident

_STEPS = 3  # the optimizer's moments are there from the first step's end on
_TEXT = "The capital of France is Paris, and the capital of China is Beijing. "


def close_holes() -> None:
    """Take every free block of the heap that could hold a tensor, and never use it.

    A block that does not fit a hole gets pages of its own: then the next smaller size is tried.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    first, last = _heap()
    size = 2**26
    while size >= OWN_PAGES:
        block = libc.malloc(size)
        if block is not None and first <= block < last:
            continue
        libc.free(block)
        size //= 2


def _heap() -> tuple[int, int]:
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.endswith("[heap]"):
            first, _, last = line.split()[0].partition("-")
            return int(first, 16), int(last, 16)
    return 0, 0  # a C library without one


def measure_here(case: Case) -> dict[str, int]:
    """Measure in this process, which should be a fresh one; bytes as in `Measured`."""
    from chinese_llama_lab.quiet import quiet_libraries

    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        _one_layer(case.model, Path(folder))
        model, tokenizer = load(folder, case.kind)
        work(model, tokenizer, case)
        del model
    give_back()
    close_holes()
    level = resident()
    forget_peak()
    model = load(case.model, case.kind).model  # its tokenizer is there already
    give_back()
    loading, loaded = resident("VmHWM") - level, resident() - level
    forget_peak()
    work(model, tokenizer, case)
    return {"level": level, "loading": loading, "loaded": loaded, "running": resident("VmHWM") - level}


def _one_layer(model: str, folder: Path) -> None:
    """A model of the same widths with one layer and random weights, and the tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from chinese_llama_lab.sources.models import BUNDLED, converted_model

    place = str(converted_model(model)) if model in BUNDLED else model
    config = AutoConfig.from_pretrained(place)
    config.num_hidden_layers = 1
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(place).save_pretrained(folder)


def load(model: str, kind: str) -> Any:
    """(model, tokenizer). 4-bit weights without the kernel that repacks them: it rounds their scales."""
    from chinese_llama_lab.quantization.load import load_quantized

    return load_quantized(model, kind, fast=False, compute_dtype="bfloat16" if "nf4" in kind else None)


def work(model: Any, tokenizer: Any, case: Case) -> None:
    """What is measured."""
    if case.task == "inference":
        _generate(model, case)
    elif case.trainer == "package":
        _pretrain(model, tokenizer, case)
    else:
        _plain(model, case)


def _ids(model: Any, case: Case) -> Any:
    import torch

    rows = int(model.get_input_embeddings().weight.shape[0])
    return (torch.arange(case.batch * case.block) % rows).reshape(case.batch, case.block)


def _generate(model: Any, case: Case) -> None:
    import torch

    ids, cache = _ids(model, case), None
    with torch.inference_mode():
        for _ in range(4):  # the prompt, and three tokens
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
            del out


def _pretrain(model: Any, tokenizer: Any, case: Case) -> None:
    from chinese_llama_lab.training.pretrain import pretrain
    from chinese_llama_lab.training.recipe import load_recipe

    recipe = load_recipe("smollm2-zh").replace(
        precision="fp32" if case.kind == "fp32" else "bf16",
        quantization=case.kind if case.kind.startswith("nf4") else "none",
        block=case.block,
        micro_batch=case.batch,
        batch=case.batch,
        steps=_STEPS,
        replay_share=0.0,
        evaluate_every=0,
        save_every=0,
        gradient_checkpointing=case.gradient_checkpointing,
        architecture={},
    )
    words = _TEXT * (1 + _STEPS * case.batch * case.block // 8)
    texts = [words[at : at + 2000] for at in range(0, len(words), 2000)]
    with tempfile.TemporaryDirectory() as folder:
        pretrain(model, tokenizer, texts, recipe, Path(folder) / "run", new_tokens=[], progress=False)


def _plain(model: Any, case: Case) -> None:
    """peft and transformers as they are: logits of all positions, nothing lean."""
    import torch
    from peft import LoraConfig, get_peft_model

    targets = list(case.options()["targets"])
    rank = int(case.options()["rank"])
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=targets))
    if case.gradient_checkpointing:
        adapted.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": False})
    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad])
    ids = _ids(model, case)
    for _ in range(_STEPS):
        loss = adapted(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()


def main() -> int:
    """Measure the case that the first argument describes."""
    found = measure_here(Case(**json.loads(sys.argv[1])))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
