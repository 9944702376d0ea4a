"""Going on from an adapter: a second run on more text, or with another schedule, of the same update.

Merging the first adapter and training another would do too, and the two together then have twice the rank
and twice the bytes. Here the run takes the first adapter's values as its start, with a new optimizer.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict

from chinese_llama_lab.merging.adapter import Adapter
from chinese_llama_lab.merging.samples import differing
from chinese_llama_lab.sources.index import sha256_of
from chinese_llama_lab.training.claim import ABOUT
from chinese_llama_lab.training.errors import TrainingError

_SETTINGS = ("r", "lora_alpha", "use_rslora", "use_dora")


class Start:
    """An adapter to go on from.

    Args:
        folder: as peft saves it, or a run of this package that holds one.

    Attributes:
        path: its tensors. about: its `run.json`, if it has one; `samples` there are those of its base.

    Raises: AdapterError: a folder that holds no adapter, pickles, NaN, unknown or missing keys.
    """

    def __init__(self, folder: Path) -> None:
        with ExitStack() as stack:
            adapter = Adapter(Path(folder), stack)
            self.path, self.about = adapter.path, adapter.about
        self.folder = adapter.folder

    def describe(self, about: dict[str, Any]) -> dict[str, Any]:
        """`about` of a run that starts here.

        Raises: TrainingError: the model is not the one that the adapter was trained on.
        """
        samples = self.about.get("samples")
        different = [] if samples is None else differing(samples, about["samples"])
        if different:
            raise TrainingError(
                f"the adapter was trained on another model: {len(different)} weights differ, as"
                f" {different[0]}",
                where=str(self.folder / ABOUT),
                remedy="give the base that it was trained on, and not one that it is merged into",
            )
        return {**about, "starts_from": sha256_of(self.path)}

    def load_into(self, adapted: Any) -> None:
        """Set the values of an adapted model to the adapter's.

        Raises: TrainingError: the two are not of one shape, or scale their update differently.
        """
        from peft import PeftConfig
        from safetensors.torch import load_file

        theirs, ours = PeftConfig.from_pretrained(str(self.folder)), adapted.peft_config["default"]
        for name in _SETTINGS:
            if getattr(theirs, name) != getattr(ours, name):
                raise self._refused(
                    f"its {name} is {getattr(theirs, name)}, the recipe's {getattr(ours, name)}"
                )
        state = load_file(self.path)
        wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        for name in sorted({*state, *wanted}):
            there = list(state[name].shape) if name in state else "missing"
            here = list(wanted[name].shape) if name in wanted else "missing"
            if there != here:
                raise self._refused(f"{name} is {there} in it, and {here} in the recipe's")
        if theirs.trainable_token_indices != ours.trainable_token_indices:
            raise self._refused("it trains the rows of other tokens")
        set_peft_model_state_dict(adapted, state)

    def _refused(self, what: str) -> TrainingError:
        return TrainingError(
            f"the adapter is not of the recipe's shape: {what}",
            where=str(self.path),
            remedy="set rank, alpha, targets and embeddings as in the run that made it",
        )
