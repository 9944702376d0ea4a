"""One process of a run of several; `test_processes.py` starts it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from chinese_llama_lab.training.pretrain import pretrain
from chinese_llama_lab.training.recipe import Recipe
from tests.training.conftest import CHINESE, ENGLISH, make_model, make_tokenizer

RECIPE = Recipe(
    name="several",
    task="pretrain",
    rank=4,
    alpha=8,
    dropout=0.0,
    block=32,
    micro_batch=2,
    batch=4,
    steps=6,
    learning_rate=1e-2,
    log_every=1,
    save_every=2,
)


def main(out: Path, *flags: str) -> None:
    rank = int(os.environ.get("RANK", "0"))
    shapes: dict[str, list[int]] = {}

    def watch(row: dict) -> None:
        if "die" in flags and row["step"] == 5:
            raise RuntimeError("this worker dies")

    if "shapes" in flags:
        from transformers import TrainerCallback

        from chinese_llama_lab.training.trainer import LabTrainer

        class Look(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **kwargs):
                for name, parameter in model.named_parameters():
                    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
                    shapes[name] = [list(parameter.shape), list(local.shape)]

        original = LabTrainer.prepare_run

        def prepare(self, *arguments):
            original(self, *arguments)
            self.add_callback(Look)

        LabTrainer.prepare_run = prepare
    towards_base = "towards-base" in flags
    report = pretrain(
        make_model(264),
        make_tokenizer(5),
        CHINESE * 10,
        RECIPE.replace(replay_share=0.3, replay_target="base") if towards_base else RECIPE,
        out,
        replay=ENGLISH * 30 if towards_base else (),
        new_tokens=range(259, 264),
        held_out={"zh": CHINESE, "en": ENGLISH},
        resume="resume" in flags,
        watch=watch,
        progress=False,
    )
    result = {"losses": report.losses, "zh": report.evaluations(), "shapes": shapes, "tokens": report.tokens}
    result["resumed_from"] = report.resumed_from
    (out.parent / f"{out.name}.rank{rank}.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *sys.argv[2:])
