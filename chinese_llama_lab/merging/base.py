"""The base: where each of its tensors lies, and whether they are the model that its config describes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinese_llama_lab.merging.files import AdapterError, open_tensors, read_json

if TYPE_CHECKING:
    import torch

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FLOATS = ("F64", "F32", "BF16", "F16")  # as safetensors calls them
_BUFFERS = (*FLOATS, "I64", "BOOL")  # what a model that is not quantized may hold
_QUANTIZED = (".absmax", ".quant_map", ".SCB", ".qweight", ".qzeros", ".weight_scale", ".weight_scale_inv")
_UNQUANTIZED = "merge into the 16-bit or 32-bit base, then quantize the result"
_AT_A_TIME = 4096  # rows of two matrices that are compared


class Base:
    """A folder of safetensors shards.

    Attributes:
        config: its `config.json`. tied: whether embedding and head are one matrix.
        shapes: tensor -> shape. Of a tied pair the head is there too, as the embedding under another name.
        kinds: tensor -> dtype, as safetensors calls it. files: shard -> the opened file.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json", missing=_no_config(folder))
        if quantized := self.config.get("quantization_config"):
            method = (isinstance(quantized, dict) and quantized.get("quant_method")) or "unknown method"
            raise AdapterError(
                f"the base is quantized ({method}): merging into rounded weights rounds the update away",
                where=str(folder),
                remedy=_UNQUANTIZED,
            )
        self.files: dict[str, Any] = {}
        self.shapes: dict[str, list[int]] = {}
        self.kinds: dict[str, str] = {}
        self._home: dict[str, tuple[str, str]] = {}  # tensor -> shard, name in it
        for filename, listed in self._shards().items():
            self.files[filename] = open_tensors(folder / filename, stack)
            self._take_in(filename, listed)
        self.tied = self._fits_its_config()
        if self.tied:
            self._tie()

    def _shards(self) -> dict[str, set[str] | None]:
        """Shard -> the tensors that the index says it holds (None without an index)."""
        path = self.folder / "model.safetensors.index.json"
        if path.is_file():
            table = read_json(path).get("weight_map")
            if not isinstance(table, dict) or not table:
                raise AdapterError("its index lists no tensors", where=str(path), remedy="copy it again")
            shards: dict[str, set[str] | None] = {}
            for name, filename in sorted(table.items(), key=lambda item: str(item[1])):
                # The result has files of the same names: a path would lead out of its folder.
                if not isinstance(filename, str) or Path(filename).name != filename or "\\" in filename:
                    raise AdapterError(
                        f"its index names a shard {filename!r}, which is no plain file name",
                        where=str(path),
                        remedy="do not use this model, or find out who wrote it",
                    )
                listed = shards.setdefault(filename, set())
                assert listed is not None
                listed.add(name)
            missing = [filename for filename in shards if not (self.folder / filename).is_file()]
            if missing:
                raise AdapterError(
                    f"the base lacks {len(missing)} of {len(shards)} shards, such as {missing[0]}",
                    where=str(self.folder),
                    remedy="copy or download it again",
                )
            return shards
        if (self.folder / "model.safetensors").is_file():
            return {"model.safetensors": None}
        pickles = sorted(path.name for path in self.folder.glob("*.bin"))
        raise AdapterError(
            f"the base has pickled weights ({pickles[0]}), which can run any code when they are opened"
            if pickles
            else "the base has no model.safetensors",
            where=str(self.folder),
            remedy="load it where it is trusted and save it with `save_pretrained`, which writes safetensors",
        )

    def _take_in(self, filename: str, listed: set[str] | None) -> None:
        where = str(self.folder / filename)
        names = set(self.files[filename].keys())
        if listed is not None and names != listed:
            odd = sorted(names ^ listed)[0]
            raise AdapterError(
                f"index and shard disagree on {len(names ^ listed)} tensors, such as {odd}",
                where=where,
                remedy="copy or download the base again",
            )
        for name in self.files[filename].keys():  # noqa: SIM118 - safe_open is no mapping
            piece = self.files[filename].get_slice(name)
            kind = piece.get_dtype()
            if kind not in _BUFFERS or name.endswith(_QUANTIZED):
                raise AdapterError(
                    f"the base is quantized: it has a tensor {name} of {kind}",
                    where=where,
                    remedy=_UNQUANTIZED,
                )
            self._home[name] = (filename, name)
            self.shapes[name], self.kinds[name] = list(piece.get_shape()), kind

    def _fits_its_config(self) -> bool:
        """Compare with the model that the config describes, built without weights; whether it ties."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except Exception as error:
            raise AdapterError(
                f"transformers cannot build what the base's config describes: {error}",
                where=str(self.folder / "config.json"),
                remedy="copy it again; models that need code of their own are not supported",
            ) from error
        tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
        expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        wrong = [name for name, shape in expected.items() if self.shapes.get(name, shape) != shape]
        if wrong:
            raise AdapterError(
                f"{wrong[0]} has shape {self.shapes[wrong[0]]}, and by its config {expected[wrong[0]]}"
                f" ({len(wrong)} such tensors)",
                where=str(self.folder),
                remedy="a vocab_size that was left behind is mended in config.json; else copy the base again",
            )
        # A checkpoint whose names are not the model's own is renamed on loading: then nothing is known.
        own = all(name in expected or name.endswith(".inv_freq") for name in self.shapes)
        pair = {EMBEDDING, HEAD} if tied and {EMBEDDING, HEAD} & self.shapes.keys() else set()
        missing = [name for name in expected if name not in self.shapes and name not in pair]
        if own and missing:
            raise AdapterError(
                f"the base lacks {len(missing)} of {len(expected)} tensors, such as {missing[0]}",
                where=str(self.folder),
                remedy="copy or download it again",
            )
        return tied

    def _tie(self) -> None:
        """One matrix under two names. Some files hold it twice."""
        here = [name for name in (EMBEDDING, HEAD) if name in self.shapes]
        if len(here) == 2 and not self._equal(EMBEDDING, HEAD):
            raise AdapterError(
                "the base's config ties embedding and head, and its files hold two that differ",
                where=str(self.folder),
                remedy="set tie_word_embeddings to false in config.json if they were trained apart",
            )
        for name in (EMBEDDING, HEAD) if here else ():
            self._home[name] = self._home[here[0]]
            self.shapes[name], self.kinds[name] = list(self.shapes[here[0]]), self.kinds[here[0]]

    def _equal(self, one: str, other: str) -> bool:
        import torch

        height = self.shapes[one][0]
        return self.shapes[one] == self.shapes[other] and all(
            torch.equal(self.rows(one, n, n + _AT_A_TIME), self.rows(other, n, n + _AT_A_TIME))
            for n in range(0, height, _AT_A_TIME)
        )

    def plan(self, *, untied: bool) -> dict[str, Sequence[str]]:
        """Output file -> its tensors, as in the base; a head that was untied goes into the last file."""
        plan: dict[str, list[str]] = {filename: [] for filename in self.files}
        for name in self.shapes:
            if not (self.tied and name == HEAD):
                plan[self._home[name][0]].append(name)
        if untied:
            plan[list(plan)[-1]].append(HEAD)
        return {filename: names for filename, names in plan.items() if names}

    def whole(self, name: str) -> torch.Tensor:
        """A tensor as it is: for scalars and buffers."""
        filename, stored = self._home[name]
        tensor: torch.Tensor = self.files[filename].get_tensor(stored)
        return tensor

    def rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Rows of a matrix, or elements of a vector, in the base's dtype; fewer or none beyond its end."""
        import torch

        height = self.shapes[name][0]
        if begin >= height:
            return torch.empty(0, *self.shapes[name][1:])
        filename, stored = self._home[name]
        piece: torch.Tensor = self.files[filename].get_slice(stored)[begin : min(end, height)]
        return piece


def _no_config(folder: Path) -> str:
    for path in (folder, folder / "adapter"):
        if (path / "adapter_config.json").is_file():
            return "this is an adapter, and a base was expected: the base comes first, then the adapters"
    return "the base has no config.json"
