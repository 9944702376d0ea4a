"""The mean of adapters that were trained one from the other: a soup, which costs a reader nothing.

    python benchmarks/zh_average.py ADAPTER ADAPTER … [--scales FILE] --out FOLDER

All are LoRA of one shape on one base, each trained from the one before or from the same start, so that their
matrices A and B lie close together and the product of the means is near the mean of the products. Weights
of several runs, averaged, often predict better than each of them (arXiv 2203.05482). With --scales,
what LoRA adds is multiplied, block by block (`zh_fit_scales.py`): below 1 it gives back some of what it cost
in English.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

from chinese_llama_lab.paths import atomic_folder

WEIGHTS, SCALES = "adapter_model.safetensors", "scales.json"


def average(adapters: list[Path], scales: Path | None, out: Path) -> None:
    """Write the mean in float32, each B times the scale of its block, with the config of the first."""
    import torch
    from safetensors.torch import load_file, save_file

    each = [load_file(folder / WEIGHTS) for folder in adapters]
    shapes = [{name: value.shape for name, value in tensors.items()} for tensors in each]
    for folder, shape in zip(adapters, shapes, strict=True):
        if shape != shapes[0]:
            raise SystemExit(
                f"{folder} has other matrices than {adapters[0]}: average adapters of one recipe"
            )
    with atomic_folder(out) as folder:
        mean = {name: torch.stack([t[name].float() for t in each]).mean(dim=0) for name in each[0]}
        if scales is not None:
            shutil.copyfile(scales, folder / SCALES)
            multiply(mean, json.loads(scales.read_text(encoding="utf-8")))
        save_file(mean, folder / WEIGHTS)
        shutil.copyfile(adapters[0] / "adapter_config.json", folder / "adapter_config.json")


def multiply(tensors: dict[str, Any], scales: dict[str, float]) -> None:
    """Each B times the scale of its block.

    In the weights and not in the config's alpha: a merged copy is known by the hash of the weights.
    """
    left = set(scales)
    for name in tensors:
        found = re.search(r"\.layers\.(\d+\.\w+)\.\w+\.lora_B\.", name)
        if found:
            tensors[name] = tensors[name] * scales[found[1]]
            left.discard(found[1])
    if left:
        raise SystemExit(f"no LoRA has the scales of {', '.join(sorted(left))}")


def main() -> int:
    """Average."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("adapters", nargs="+", type=Path, metavar="ADAPTER")
    parser.add_argument("--scales", type=Path, metavar="FILE", help="of zh_fit_scales.py")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    average(options.adapters, options.scales, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
