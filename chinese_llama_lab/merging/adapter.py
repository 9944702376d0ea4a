"""One adapter: which of its tensors does what to which tensor of the base.

Its keys have had several styles: with or without `base_model.model.`, the adapter's name (`default`), and
copies that peft adds with `save_embedding_layers`. They are brought to the names of the base here.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from chinese_llama_lab.merging.base import FLOATS
from chinese_llama_lab.merging.files import AdapterError, open_tensors, read_json
from chinese_llama_lab.merging.settings import read_settings

if TYPE_CHECKING:
    import torch

_PAIR = re.compile(r"(.+)\.lora_(A|B|magnitude_vector)(?:\.default)?(?:\.weight)?")
_ROWS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta(?:\.default)?")
_WHOLE = re.compile(r"(.+?)(\.modules_to_save(?:\.default)?|\.token_adapter\.base_layer)?\.(weight|bias)")
_ORIGINAL = ".original_module."
_AT_A_TIME = 32 << 20  # bytes of float32 that are looked at together
_AGAIN = "save the adapter again, all of it"


@dataclass
class Pair:
    """Keys of an update: A of shape (rank, inputs), B of (outputs, rank), DoRA's magnitude (outputs,)."""

    a: str = ""
    b: str = ""
    magnitude: str = ""


class Adapter:
    """A folder as peft saves it.

    Attributes:
        name: for messages. settings: its config. about: its `run.json`, if a run of this package made it.
        pairs: tensor -> its low-rank update. whole: tensor -> key of what replaces it.
        rows: tensor -> key of the rows that replace some of its own. indices: which ones, in that order;
            known once the shapes are (`checks.py`).
    """

    def __init__(self, given: Path, stack: ExitStack) -> None:
        inner = given / "adapter"  # of a run
        is_run = not (given / "adapter_config.json").is_file() and inner.is_dir()
        self.folder = inner if is_run else given
        self.name = given.resolve().name
        self.settings = read_settings(self.folder)
        self.about: dict[str, Any] = _about(self.folder)
        self.path = self.folder / "adapter_model.safetensors"
        if not self.path.is_file():
            pickled = (self.folder / "adapter_model.bin").is_file()
            raise AdapterError(
                "the adapter is a pickle (adapter_model.bin), which can run any code when it is opened"
                if pickled
                else "the adapter has no adapter_model.safetensors",
                where=str(self.folder),
                remedy="load it where it is trusted and save it with peft, which writes safetensors",
            )
        self.tensors = open_tensors(self.path, stack)
        self.pairs: dict[str, Pair] = {}
        self.whole: dict[str, str] = {}
        self.rows: dict[str, str] = {}
        self.indices: dict[str, list[int]] = {}
        keys = list(self.tensors.keys())
        for key in keys:
            if _ORIGINAL not in key:
                self._sort_in(key)
        for key in keys:  # peft's frozen copy of a matrix that was trained whole
            if _ORIGINAL in key and self._plain(key).replace(_ORIGINAL, ".") not in self.whole:
                self.refuse(f"it holds {key}, and not what was trained in its place", _AGAIN)
        if not keys:
            self.refuse("it holds nothing", _AGAIN)
        self._check_pairs()
        self._check_values()

    def refuse(self, what: str, remedy: str) -> NoReturn:
        """Raise an AdapterError about this adapter."""
        raise AdapterError(f"adapter {self.name}: {what}", where=str(self.path), remedy=remedy)

    def shape(self, key: str) -> list[int]:
        """Shape of one of its own tensors."""
        return list(self.tensors.get_slice(key).get_shape())

    def part(self, key: str, begin: int, end: int) -> torch.Tensor:
        """Rows of one of its own tensors, as float32; none beyond its end."""
        import torch

        shape = self.shape(key)
        if begin >= shape[0]:
            return torch.empty(0, *shape[1:])
        piece: torch.Tensor = self.tensors.get_slice(key)[begin : min(end, shape[0])]
        return piece.float()

    def same(self, one: str, other: str) -> bool:
        """Whether two of its tensors are equal."""
        import torch

        shape = self.shape(one)
        if shape != self.shape(other):
            return False
        return all(
            torch.equal(self.part(one, n, n + 4096), self.part(other, n, n + 4096))
            for n in range(0, shape[0], 4096)
        )

    @staticmethod
    def _plain(key: str) -> str:
        return key.removeprefix("base_model.model.")

    def _sort_in(self, key: str) -> None:
        plain = self._plain(key)
        if self.tensors.get_slice(key).get_dtype() not in FLOATS or not self.shape(key):
            self.refuse(f"{key} is no matrix or vector of floating-point numbers", _AGAIN)
        if found := _PAIR.fullmatch(plain):
            pair = self.pairs.setdefault(f"{found[1]}.weight", Pair())
            part = {"A": "a", "B": "b", "magnitude_vector": "magnitude"}[found[2]]
            if getattr(pair, part):
                self.refuse(f"it holds {getattr(pair, part)} and {key}, which are the same", _AGAIN)
            setattr(pair, part, key)
        elif found := _ROWS.fullmatch(plain):
            if self.rows.setdefault(f"{found[1]}.weight", key) != key:
                self.refuse(f"it holds the new rows of {found[1]} twice", _AGAIN)
        elif (found := _WHOLE.fullmatch(plain)) and ".lora_" not in plain and "token_adapter" not in found[1]:
            name = f"{found[1]}.{found[3]}"
            if not self.same(self.whole.setdefault(name, key), key):
                self.refuse(f"it holds {name} twice, with different values", _AGAIN)
        else:
            self.refuse(f"it holds {key}, and this cannot be merged", "merge it with peft's merge_and_unload")

    def _check_pairs(self) -> None:
        for name, pair in self.pairs.items():
            for part, key in (("A", pair.a), ("B", pair.b)):
                if not key:
                    self.refuse(f"lora_{part} of {name} is missing", _AGAIN)
            if self.settings.dora and not pair.magnitude:
                self.refuse(f"the DoRA magnitudes of {name} are missing", _AGAIN)
            if pair.magnitude and not self.settings.dora:
                self.refuse(f"it has DoRA magnitudes of {name}, and its config says use_dora = false", _AGAIN)
            if name in self.whole or name in self.rows:
                self.refuse(f"it has both an update of {name} and its new values", _AGAIN)

    def _check_values(self) -> None:
        import torch

        for key in self.tensors.keys():  # noqa: SIM118 - safe_open is no mapping
            shape = self.shape(key)
            width = max(1, torch.Size(shape[1:]).numel())
            step = max(1, _AT_A_TIME // (4 * width))
            for at in range(0, shape[0], step):
                if not torch.isfinite(self.part(key, at, at + step)).all():
                    self.refuse(
                        f"{key} holds NaN or infinity",
                        "the run that made it failed; take an earlier checkpoint",
                    )


def _about(folder: Path) -> dict[str, Any]:
    """The `run.json` of a run of this package; its checkpoints have it two folders up."""
    run = folder / "run.json"
    if not run.is_file() and folder.resolve().parent.name == "checkpoints":
        run = folder.resolve().parent.parent / "run.json"
    return read_json(run) if run.is_file() else {}
