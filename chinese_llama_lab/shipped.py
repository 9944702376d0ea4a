"""The models that this project trained: SmolLM2 with the adapters of `data/adapters/`, merged when asked for.

An adapter's folder is one of a run, as `merge_adapters` reads it: the adapter, the tokenizer where there are
new tokens, and the `run.json` that says which base it fits. Beside them lie model card and log.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from chinese_llama_lab.errors import ModelError
from chinese_llama_lab.paths import cache_dir, data_dir
from chinese_llama_lab.sources.index import sha256_of

# Name → the model that its adapter was trained on.
SHIPPED = {"smollm2-zh": "smollm2", "smollm2-zh-instruct": "smollm2-zh"}
_WEIGHTS = "adapter_model.safetensors"


def adapter_folder(name: str) -> Path:
    """Where the adapter of a shipped model lies.

    Raises: ModelError: it is not there, as in an installation without the checkout.
    """
    folder = data_dir() / "adapters" / name
    if not (folder / _WEIGHTS).is_file():
        raise ModelError(
            f"the adapter of {name} is not there",
            where=str(folder),
            remedy="it comes with the repository: install the checkout (`make setup`), not the package alone",
        )
    return folder


def merged_path(name: str) -> Path:
    """Where a shipped model is kept once it is merged; another adapter of the same name has another path."""
    folder = adapter_folder(name)
    sums = [sha256_of(folder / _WEIGHTS)]
    if SHIPPED[name] in SHIPPED:
        sums.append(merged_path(SHIPPED[name]).name)
    else:
        sums.append(sha256_of(folder / "tokenizer.json"))
    return cache_dir() / "derived" / f"model-{name}-{'-'.join(part[-12:] for part in sums)}"


def merge_shipped(name: str, base: Path, out: Path) -> None:
    """Write a shipped model in float32.

    Args:
        name: one of SHIPPED. base: folder of the model that its adapter was trained on.
        out: folder to write; must not exist.

    Raises: ModelError: the adapter is not there. AdapterError: it does not fit the base.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from chinese_llama_lab.adapters import merge_adapters
    from chinese_llama_lab.vocabulary.embeddings import extend_embeddings

    adapter = adapter_folder(name)
    # An adapter without new tokens comes without a tokenizer: it is the base's.
    if not (adapter / "tokenizer.json").is_file():
        merge_adapters(base, [adapter], out, dtype="float32")
        return
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (base, adapter))
    # The starting rows are those that the run started from; the adapter holds what became of them.
    out.parent.mkdir(parents=True, exist_ok=True)
    # Named so that what a kill leaves is found and removed, as with every folder of the cache.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as scratch:
        model = AutoModelForCausalLM.from_pretrained(base)
        extend_embeddings(model, old, new)
        model.save_pretrained(Path(scratch) / "extended")
        new.save_pretrained(Path(scratch) / "extended")
        merge_adapters(Path(scratch) / "extended", [adapter], out, dtype="float32")
