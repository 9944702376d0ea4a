"""One folder, one run: what a run is, and who may write where.

`run.json` says what a run was started with. A second call in the same folder goes on with it, and is refused
if it was started with anything else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from chinese_llama_lab.merging.samples import weight_samples
from chinese_llama_lab.paths import write_json
from chinese_llama_lab.training import checkpoints
from chinese_llama_lab.training.batches import Sequences
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.recipe import Recipe

ABOUT = "run.json"


def describe_run(
    model: Any, tokenizer: Any, sequences: Sequences, recipe: Recipe, new_tokens: Sequence[int]
) -> dict[str, Any]:
    """What makes two runs the same run."""
    # How often something is written or looked at does not change what is trained.
    passing = ("log_every", "evaluate_every", "save_every", "keep", "title", "source", "device")
    return {
        "recipe": {k: v for k, v in recipe.to_dict().items() if k not in passing},
        "data": sequences.digest,
        "vocabulary": len(tokenizer),
        "rows": int(model.get_input_embeddings().weight.shape[0]),
        "new_tokens": [min(new_tokens), max(new_tokens), len(new_tokens)] if len(new_tokens) else [],
        "base": str(getattr(model.config, "_name_or_path", "")) and recipe.base,
        "model": _fingerprint(model),
        "samples": weight_samples(model),  # what `merge_adapters` compares a base with
    }


def _fingerprint(model: Any) -> str:
    """sha256 over a few values of every tensor: enough to tell two bases apart, and cheap at 7B."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.device.type != "meta":
            flat = tensor.detach().flatten()
            few = flat[:: max(1, flat.numel() // 16)][:16].to("cpu", torch.float32)
            digest.update(few.numpy().tobytes())
    return digest.hexdigest()


def claim_folder(
    out: Path, about: dict[str, Any], resume: bool, *, write: bool
) -> tuple[Path | None, list[str]]:
    """Take the folder for this run; returns the checkpoint to go on from and why newer ones were refused."""
    path = out / ABOUT
    if path.is_file():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            there = {}
        there = there if isinstance(there, dict) else {}
        if not resume and write:
            raise TrainingError(
                "the folder holds a run already",
                where=str(out),
                remedy="resume=True (--resume) goes on with it; for a new run give another folder",
            )
        different = [key for key in about if there.get(key) != about[key]]
        if "recipe" in different:
            old = there.get("recipe") or {}
            keys = [k for k in about["recipe"] if old.get(k) != about["recipe"][k]]
            different = [f"recipe ({', '.join(keys)})"] + [key for key in different if key != "recipe"]
        if different:
            raise TrainingError(
                f"the folder holds another run: it differs in {', '.join(different)}",
                where=str(out),
                remedy="give what it was started with, or another folder",
            )
    elif out.is_dir() and any(out.iterdir()):
        raise TrainingError(
            "the folder is not empty, and holds no run", where=str(out), remedy="give an empty or new folder"
        )
    if write:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(path, about)
        except OSError as error:
            raise TrainingError(
                f"the folder cannot be written: {error.strerror or error}",
                where=str(out),
                remedy="give a folder that you may write, on a disk with room",
            ) from error
        checkpoints.remove_parts(out)
        return checkpoints.newest_whole(out)
    return checkpoints.last_good(out), []
