"""Merge LoRA adapters into a base: W ← W + α/r · BA, any chain of them, a few rows of one matrix at a time.

Neither the model nor a shard is ever in memory as a whole: a safetensors file is a header that says where
each tensor lies, so that the merged one can be written in order while the base is read in slices. All
arithmetic is in float32 and rounded once, at the end of the chain.

What an adapter may hold: low-rank pairs (α/r, or α/√r with rsLoRA; DoRA's magnitudes; ranks and alphas by
pattern), rows of new tokens (`trainable_token_indices`), and whole matrices (`modules_to_save`), which may
have
more rows than the base: LLaMA 32,000 → Chinese-LLaMA 49,953 → Chinese-Alpaca 49,954. Anything else is refused
rather than left out, since a merge that leaves something out still looks like a model.

Source: Hu et al., arXiv 2106.09685; rsLoRA 2312.03732; DoRA 2402.09353;
`scripts/merge_llama_with_chinese_lora.py` of ymcui/Chinese-LLaMA-Alpaca, whose faults (α/r fixed, `.bin`
alone, success without writing) are not repeated.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinese_llama_lab.errors import LabError
from chinese_llama_lab.paths import atomic_folder

if TYPE_CHECKING:
    import torch

DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}
MADE_OF = "made_of.json"
_FLOATS = ("F64", "F32", "BF16", "F16")
_ROWS_BYTES = 32 << 20  # of float32: rows of a matrix that are in memory at the same time
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# Keys of adapter_config.json that change the arithmetic in ways that are not implemented here.
_UNSUPPORTED = {
    "fan_in_fan_out": False,
    "bias": "none",
    "lora_bias": False,
    "layer_replication": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "megatron_config": None,
}


class AdapterError(LabError):
    """An adapter and a base do not belong together, or one of them cannot be merged."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        out: the merged model's folder. dtype: of its weights.
        changed: for each adapter, the tensors it changed. unchanged: adapters whose update is zero
            everywhere.
        rows: of the embedding. tied: whether embedding and head are one matrix.
        made_of: file -> sha256 of everything that went in; also in `made_of.json`.
    """

    out: Path
    dtype: str
    changed: tuple[int, ...]
    unchanged: tuple[str, ...]
    rows: int
    tied: bool
    made_of: Mapping[str, Any] = field(repr=False)


def merge_adapters(
    base: Path, adapters: Sequence[Path], out: Path, *, dtype: str = "bfloat16", untie: bool = False
) -> MergeReport:
    """Write the model that base and adapters, applied in this order, amount to.

    Args:
        base: folder with `config.json` and safetensors weights, not quantized.
        adapters: folders as peft saves them (or of a run of `pretrain`, which holds one in `adapter/`).
        out: folder to write; must not exist. It has the base's shards, its config and generation config, and
            the tokenizer of the last adapter that brings one, else the base's.
        dtype: of the result: float32, bfloat16 or float16.
        untie: where the base ties embedding and head and an adapter trained them apart, untie them.

    Returns: MergeReport. Peak memory is that of some rows of one matrix; the files are read through the
        system's cache.

    Raises: AdapterError: vocabulary or shape mismatch, missing or unknown keys, NaN or infinity, a quantized
        base, pickles, a tied pair that was trained apart, a value that the dtype cannot hold. `out` is then
        not there.
    """
    if dtype not in DTYPES:
        raise AdapterError(f"there is no dtype {dtype!r}", remedy=f"use one of {', '.join(DTYPES)}")
    base, out = Path(base), Path(out)
    if not adapters:
        raise AdapterError("there is no adapter to merge", remedy="give at least one adapter folder")
    if out.exists():
        raise AdapterError("the folder exists already", where=str(out), remedy="give a new folder")
    with ExitStack() as stack:
        weights = _Base(base, stack)
        chain = [_Adapter(_adapter_folder(Path(path)), stack) for path in adapters]
        rows = dict(weights.shapes)
        for adapter in chain:
            adapter.check(weights, rows)
        untied = _check_tied(weights, chain, untie)
        tokenizer = _check_tokenizers(base, chain, rows[_EMBEDDING][0] if _EMBEDDING in rows else None)
        with atomic_folder(out) as part:
            plan = weights.plan(rows, untied)
            for filename, names in plan.items():
                _write_shard(part / filename, names, rows, weights, chain, dtype)
            _write_index(part, weights, plan, rows, dtype)
            _write_config(part, base, weights, rows, dtype, untied, tokenizer)
            made_of = _made_of(base, weights, chain, dtype)
            (part / MADE_OF).write_text(json.dumps(made_of, indent=1) + "\n", encoding="utf-8")
        tied = weights.tied and not untied
        return MergeReport(
            out,
            dtype,
            tuple(len(adapter.changed) for adapter in chain),
            tuple(adapter.folder.name for adapter in chain if not adapter.moved),
            rows[_EMBEDDING][0] if _EMBEDDING in rows else 0,
            tied,
            made_of,
        )


class _Base:
    """The base's tensors: where each lies, and its shape."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.config = _read_json(folder / "config.json", "it has no config.json", folder)
        if self.config.get("quantization_config"):
            method = self.config["quantization_config"].get("quant_method", "unknown method")
            raise AdapterError(
                f"the base is quantized ({method}): merging into rounded weights rounds the update away",
                where=str(folder),
                remedy="merge into the 16-bit or 32-bit base, then quantize the result",
            )
        self.tied = bool(self.config.get("tie_word_embeddings", False))
        self.files: dict[str, Any] = {}
        self.home: dict[str, str] = {}
        self.shapes: dict[str, list[int]] = {}
        self.kinds: dict[str, str] = {}
        for filename in self._filenames():
            opened = _open(folder / filename, stack)
            self.files[filename] = opened
            for name in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                piece = opened.get_slice(name)
                self.home[name], self.shapes[name] = filename, list(piece.get_shape())
                self.kinds[name] = piece.get_dtype()
                if name.endswith((".absmax", ".quant_state.bitsandbytes__nf4", ".SCB", ".qweight")):
                    raise AdapterError(
                        f"the base is quantized: it has a tensor {name}",
                        where=str(folder / filename),
                        remedy="merge into the 16-bit or 32-bit base, then quantize the result",
                    )
        if self.tied and _HEAD in self.shapes:  # some files hold the tied head too; the config decides
            del self.shapes[_HEAD], self.home[_HEAD]

    def _filenames(self) -> list[str]:
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            table = _read_json(index, "its index is missing", self.folder)
            names = sorted(set(table.get("weight_map", {}).values()))
            missing = [name for name in names if not (self.folder / name).is_file()]
            if missing or not names:
                raise AdapterError(
                    f"the base lacks {len(missing)} shards, such as {missing[0] if missing else '(all)'}",
                    where=str(self.folder),
                    remedy="copy or download it again",
                )
            return names
        if (self.folder / "model.safetensors").is_file():
            return ["model.safetensors"]
        pickles = sorted(path.name for path in self.folder.glob("*.bin"))
        raise AdapterError(
            f"the base has pickled weights ({pickles[0]}), which can run any code when they are opened"
            if pickles
            else "the base has no model.safetensors",
            where=str(self.folder),
            remedy="load it where it is trusted and save it with `save_pretrained`, which writes safetensors",
        )

    def plan(self, rows: Mapping[str, list[int]], untied: bool) -> dict[str, list[str]]:
        """Output file -> its tensors, as in the base; a head that is untied goes into the last file."""
        plan = {filename: [n for n in rows if self.home.get(n) == filename] for filename in self.files}
        if untied:
            plan[list(plan)[-1]].append(_HEAD)
        return plan

    def read(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Rows as float32; for a vector, its elements."""
        piece = self.files[self.home[name]].get_slice(name)
        tensor: torch.Tensor = piece[begin:end]
        return tensor.float()


class _Adapter:
    """One adapter: what it does to which tensor."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.config = _read_json(folder / "adapter_config.json", "it has no adapter_config.json", folder)
        kind = self.config.get("peft_type")
        if kind != "LORA":
            raise AdapterError(
                f"the adapter is {kind}, not LORA", where=str(folder), remedy="merge it with peft"
            )
        for key, plain in _UNSUPPORTED.items():
            if self.config.get(key, plain) not in (plain, None):
                raise AdapterError(
                    f"the adapter uses {key} = {self.config[key]!r}, which is not supported here",
                    where=str(folder / "adapter_config.json"),
                    remedy="merge it with peft's merge_and_unload",
                )
        path = folder / "adapter_model.safetensors"
        if not path.is_file():
            pickled = (folder / "adapter_model.bin").is_file()
            raise AdapterError(
                "the adapter is a pickle (adapter_model.bin), which can run any code when it is opened"
                if pickled
                else "the adapter has no adapter_model.safetensors",
                where=str(folder),
                remedy="load it where it is trusted and save it with peft, which writes safetensors",
            )
        self.path = path
        self.tensors = _open(path, stack)
        self.pairs: dict[str, dict[str, str]] = {}
        self.whole: dict[str, str] = {}
        self.rows: dict[str, str] = {}
        self.indices: dict[str, list[int]] = {}
        self.changed: set[str] = set()
        self.moved = False
        for key in self.tensors.keys():  # noqa: SIM118
            self._sort_in(key)
        for name, parts in self.pairs.items():
            for part in ("A", "B"):
                if part not in parts:
                    self._refuse(f"lora_{part} of {name} is missing")
            if self.config.get("use_dora") and "magnitude" not in parts:
                self._refuse(f"the DoRA magnitudes of {name} are missing")
        self._cached: tuple[str, Any, Any] | None = None

    def _sort_in(self, key: str) -> None:
        plain = key.removeprefix("base_model.model.").replace(".modules_to_save.", ".")
        for mark, part in ((".lora_A", "A"), (".lora_B", "B"), (".lora_magnitude_vector", "magnitude")):
            module, found, rest = plain.partition(mark)
            if found and rest in ("", ".weight", ".default.weight", ".default"):
                self.pairs.setdefault(f"{module}.weight", {})[part] = key
                return
        module, found, rest = plain.partition(".token_adapter.trainable_tokens_delta")
        if found:
            self.rows[f"{module}.weight"] = key
        elif plain.endswith(".weight") and ".lora_" not in plain:
            self.whole[plain.replace(".base_layer.", ".").replace(".default.", ".")] = key
        else:
            self._refuse(f"it holds {key}, and this cannot be merged")

    def _refuse(self, what: str, remedy: str = "save the adapter again, all of it") -> None:
        raise AdapterError(f"adapter {self.folder.name}: {what}", where=str(self.path), remedy=remedy)

    def shape(self, key: str) -> list[int]:
        return list(self.tensors.get_slice(key).get_shape())

    def scale(self, name: str) -> float:
        """α/r, or α/√r with rsLoRA; ranks and alphas may go by pattern."""
        module = name.removesuffix(".weight")
        rank = self.shape(self.pairs[name]["A"])[0]
        alpha = float(self.config.get("lora_alpha", rank))
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = float(value)
                break
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def check(self, base: _Base, rows: dict[str, list[int]]) -> None:
        """Everything against the shapes that the chain has reached, `rows`, which may grow here."""
        if not (self.pairs or self.whole or self.rows):
            self._refuse("it holds nothing")
        other = "this adapter was made for another base; give that one"
        for name in [*self.pairs, *self.whole, *self.rows]:
            if name not in rows and not (name == _HEAD and base.tied):
                self._refuse(f"the base has no {name}", other)
        for name, parts in self.pairs.items():
            if name not in rows:
                self._refuse(
                    "it adapts the head of a model that ties it to the embedding",
                    "merge it with peft after untying the base",
                )
            if len(rows[name]) != 2:
                self._refuse(f"{name} is no matrix")
            height, width = rows[name]
            a, b = self.shape(parts["A"]), self.shape(parts["B"])
            if len(a) != 2 or len(b) != 2 or (b[0], a[1]) != (height, width) or a[0] != b[1]:
                self._refuse(
                    f"{name} has shape {height} × {width} in the base, and its update {b} × {a}", other
                )
            if "magnitude" in parts and math.prod(self.shape(parts["magnitude"])) != height:
                self._refuse(f"the magnitudes of {name} have shape {self.shape(parts['magnitude'])}", other)
        self._check_complete(rows)
        for name, key in self.whole.items():
            if name not in rows:
                continue  # the tied head: see `_check_tied`
            shape = self.shape(key)
            grows = name in (_EMBEDDING, _HEAD) and shape[1:] == rows[name][1:] and shape[0] > rows[name][0]
            if shape != rows[name] and not grows:
                self._refuse(f"{name} has shape {shape}, and the base {rows[name]}", other)
        grown = {n: self.shape(k) for n, k in self.whole.items() if n in rows and self.shape(k) != rows[n]}
        if grown and not base.tied and len(grown) != sum(name in rows for name in (_EMBEDDING, _HEAD)):
            self._refuse("it enlarges the embedding or the head alone", "both must be in modules_to_save")
        rows.update(grown)
        self._check_rows(rows)
        self._check_vocabulary(rows)
        self._check_finite()

    def _check_complete(self, rows: Mapping[str, list[int]]) -> None:
        """Half an adapter is only a warning in peft: what its config names and its file lacks is refused."""
        targets = self.config.get("target_modules") or []
        wanted = []
        for name, shape in rows.items():
            module = name.removesuffix(".weight")
            if len(shape) != 2 or not name.endswith(".weight") or name in self.whole:
                continue
            if isinstance(targets, str):
                hit = re.fullmatch(targets, module) is not None
            else:
                hit = any(module == target or module.endswith(f".{target}") for target in targets)
            if hit and self._in_layers(module) and not self._excluded(module):
                wanted.append(name)
        missing = [name for name in wanted if name not in self.pairs]
        if missing:
            self._refuse(f"{len(missing)} of {len(wanted)} updates are missing, such as that of {missing[0]}")
        for module in self.config.get("modules_to_save") or []:
            there = any(
                name == f"{module}.weight" or name.endswith(f".{module}.weight") for name in self.whole
            )
            known = any(name == f"{module}.weight" or name.endswith(f".{module}.weight") for name in rows)
            if known and not there:
                self._refuse(f"modules_to_save names {module}, and its weight is missing")

    def _in_layers(self, module: str) -> bool:
        layers = self.config.get("layers_to_transform")
        if layers is None:
            return True
        found = re.search(r"\.layers\.(\d+)\.", module)
        return found is not None and int(found.group(1)) in ([layers] if isinstance(layers, int) else layers)

    def _excluded(self, module: str) -> bool:
        excluded = self.config.get("exclude_modules") or []
        if isinstance(excluded, str):
            return re.fullmatch(excluded, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in excluded)

    def _check_rows(self, rows: Mapping[str, list[int]]) -> None:
        said = self.config.get("trainable_token_indices")
        if said and not self.rows:
            self._refuse("its config trains rows of new tokens, and the rows are missing")
        table = said if isinstance(said, dict) else {"embed_tokens": said or []}
        for module in table:
            if said and not any(name.endswith(f"{module}.weight") for name in self.rows):
                self._refuse(f"the new rows of {module} are missing")
        for name, key in self.rows.items():
            found = [v for module, v in table.items() if name.endswith(f"{module.split('.')[-1]}.weight")]
            indices = found[0] if found else []
            count, width = self.shape(key)
            if len(indices) != count:
                self._refuse(f"{name} has {count} new rows, and its config names {len(indices)} tokens")
            if width != rows[name][1]:
                self._refuse(f"the new rows of {name} are {width} wide, and the base {rows[name][1]}")
            if max(indices) >= rows[name][0]:
                self._refuse(
                    f"it trains token {max(indices)}, and the base has {rows[name][0]} rows",
                    "this adapter was made for the base after `extend_embeddings`; give that one",
                )
            self.indices[name] = indices

    def _check_vocabulary(self, rows: Mapping[str, list[int]]) -> None:
        """A run of this package says how many rows its base had."""
        path = self.folder / "run.json"
        if path.is_file() and _EMBEDDING in rows:
            had = _read_json(path, "", self.folder).get("rows")
            if had is not None and had != rows[_EMBEDDING][0]:
                self._refuse(
                    f"it was trained on a base with {had} rows, and this one has {rows[_EMBEDDING][0]}",
                    "give the base it was trained on (after `extend_embeddings`)",
                )

    def _check_finite(self) -> None:
        import torch

        for key in self.tensors.keys():  # noqa: SIM118
            height = self.shape(key)[0]
            step = max(1, _ROWS_BYTES // (4 * math.prod(self.shape(key)[1:])))
            for at in range(0, height, step):
                if not torch.isfinite(self.tensors.get_slice(key)[at : at + step].float()).all():
                    self._refuse(
                        f"{key} holds NaN or infinity",
                        "the run that made it failed; take an earlier checkpoint",
                    )

    def apply(self, name: str, w: torch.Tensor, begin: int) -> torch.Tensor:
        """`w`, rows from `begin` on of a tensor, after this adapter. float32 in and out."""
        before = w
        end = begin + w.shape[0]
        if name in self.pairs:
            w = self._low_rank(name, w, begin, end)
        if name in self.indices:
            import torch

            here = [(n, i - begin) for n, i in enumerate(self.indices[name]) if begin <= i < end]
            if here:
                delta = self.tensors.get_tensor(self.rows[name]).float()
                w = w.clone()
                w[torch.tensor([i for _, i in here])] = delta[[n for n, _ in here]]
        if w is not before:
            self.changed.add(name)
            self.moved = self.moved or bool((w != before).any())
        return w

    def _low_rank(self, name: str, w: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        parts = self.pairs[name]
        if self._cached is None or self._cached[0] != name:
            a = self.tensors.get_tensor(parts["A"]).float()
            m = (
                self.tensors.get_tensor(parts["magnitude"]).float().flatten()
                if "magnitude" in parts
                else None
            )
            self._cached = (name, a, m)
        _, a, magnitude = self._cached
        b = self.tensors.get_slice(parts["B"])[begin:end].float()
        w = w + self.scale(name) * (b @ a)
        if magnitude is not None:
            w = w * (magnitude[begin:end] / w.norm(dim=1)).unsqueeze(1)
        return w


def _values(
    name: str, rows: Sequence[int], base: _Base, chain: Sequence[_Adapter]
) -> Iterator[tuple[int, torch.Tensor]]:
    """The merged tensor, some rows at a time: (first row, float32 or, unchanged, the base's dtype)."""
    step = max(1, _ROWS_BYTES // (4 * max(1, math.prod(rows[1:]))))
    # The last adapter that brings the whole matrix decides; what came before it is overwritten.
    first = max((n for n, adapter in enumerate(chain) if name in adapter.whole), default=-1)
    alone = first < 0 and not any(name in a.pairs or name in a.indices for a in chain)
    for begin in range(0, rows[0], step):
        end = min(begin + step, rows[0])
        if alone:  # nothing to compute: what is rounded already is not made float32 and rounded again
            yield begin, base.files[base.home[name]].get_slice(name)[begin:end]
            continue
        if first >= 0:
            adapter = chain[first]
            piece: torch.Tensor = adapter.tensors.get_slice(adapter.whole[name])[begin:end]
            w = piece.float()
            adapter.changed.add(name)
            adapter.moved = True
        else:
            w = base.read(name, begin, end)
        for adapter in chain[max(first, 0) :]:
            w = adapter.apply(name, w, begin)
        yield begin, w


def _write_shard(
    path: Path,
    names: Sequence[str],
    rows: Mapping[str, list[int]],
    base: _Base,
    chain: Sequence[_Adapter],
    dtype: str,
) -> None:
    """A safetensors file: 8 bytes that say how long the header is, the header, the tensors in order."""
    import torch

    kind, size = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        # Integers, such as buffers, stay as they are.
        floating = name not in base.kinds or base.kinds[name] in _FLOATS
        raw = 0 if floating else base.files[base.home[name]].get_tensor(name).nbytes
        length = math.prod(_shape(name, rows)) * size if floating else raw
        header[name] = {
            "dtype": kind if floating else base.kinds[name],
            "shape": _shape(name, rows),
            "data_offsets": [offset, offset + length],
        }
        offset += length
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            if name in base.kinds and base.kinds[name] not in _FLOATS:
                tensor = base.files[base.home[name]].get_tensor(name)
                stream.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())
                continue
            for begin, w in _values(name, _shape(name, rows), base, chain):
                rounded = w.to(getattr(torch, dtype))
                if not torch.isfinite(rounded).all():
                    why = f"does not fit {dtype}" if torch.isfinite(w).all() else "holds NaN or infinity"
                    raise AdapterError(
                        f"{name} {why} (rows from {begin})",
                        where=str(base.folder),
                        remedy="merge into bfloat16 or float32, or check the base",
                    )
                stream.write(rounded.contiguous().view(torch.uint8).numpy().data)


def _shape(name: str, rows: Mapping[str, list[int]]) -> list[int]:
    return rows[name] if name in rows else rows[_EMBEDDING]  # a head that was untied


def _check_tied(base: _Base, chain: Sequence[_Adapter], untie: bool) -> bool:
    """Whether the result is untied. A copy of the tied head that equals the embedding's says nothing new."""
    import torch

    if not base.tied:
        return False
    apart = []
    for adapter in chain:
        if _HEAD in adapter.rows and _EMBEDDING not in adapter.rows:
            apart.append(adapter)
        if _HEAD in adapter.whole:
            key, other = adapter.whole[_HEAD], adapter.whole.get(_EMBEDDING)
            same = other is not None and adapter.shape(key) == adapter.shape(other)
            if same and other is not None:
                height = adapter.shape(key)[0]
                same = all(
                    torch.equal(
                        adapter.tensors.get_slice(key)[n : n + 4096],
                        adapter.tensors.get_slice(other)[n : n + 4096],
                    )
                    for n in range(0, height, 4096)
                )
            if same:
                del adapter.whole[_HEAD]
            else:
                apart.append(adapter)
    if not apart:
        return False
    if not untie or any(_HEAD in adapter.rows for adapter in chain):
        raise AdapterError(
            f"adapter {apart[0].folder.name} trained the head apart from the embedding, tied in the base",
            where=str(apart[0].path),
            remedy="train it with ensure_weight_tying, or merge with untie=True (--untie)",
        )
    return True


def _check_tokenizers(base: Path, chain: Sequence[_Adapter], rows: int | None) -> Path:
    """The folder whose tokenizer goes along; raise where a tokenizer and the rows disagree."""
    from transformers import AutoTokenizer

    def vocabulary(folder: Path) -> dict[str, int] | None:
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            return None
        found: dict[str, int] = AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()
        return found

    chosen, known = base, vocabulary(base)
    for adapter in chain:
        own = vocabulary(adapter.folder)
        if own is None:
            continue
        if known is not None:
            moved = [token for token, index in known.items() if own.get(token, index) != index]
            lost = len(known) - len(own)
            if moved or lost > 0:
                what = (
                    f"token {moved[0]!r} has id {own[moved[0]]}, and {known[moved[0]]} before"
                    if moved
                    else f"it has {len(own)} tokens, and there were {len(known)} before"
                )
                raise AdapterError(
                    f"adapter {adapter.folder.name} has another vocabulary: {what}",
                    where=str(adapter.folder),
                    remedy="give the base and the chain that it was trained on",
                )
        chosen, known = adapter.folder, own
    if known is not None and rows is not None and max(known.values()) >= rows:
        raise AdapterError(
            f"the tokenizer has {max(known.values()) + 1} tokens and the merged model {rows} rows",
            where=str(chosen),
            remedy="resize the base with extend_embeddings first, or give the adapter in between",
        )
    return chosen


def _write_index(
    part: Path, base: _Base, plan: Mapping[str, list[str]], rows: Mapping[str, list[int]], dtype: str
) -> None:
    if len(plan) == 1 and "model.safetensors" in plan:
        return
    total = sum((part / name).stat().st_size for name in plan)
    table = {
        "metadata": {"total_size": total},
        "weight_map": {tensor: name for name, tensors in plan.items() for tensor in tensors},
    }
    (part / "model.safetensors.index.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _write_config(
    part: Path,
    base: Path,
    weights: _Base,
    rows: Mapping[str, list[int]],
    dtype: str,
    untied: bool,
    tokenizer: Path,
) -> None:
    config = dict(weights.config)
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    if _EMBEDDING in rows:
        config["vocab_size"] = rows[_EMBEDDING][0]
    if untied:
        config["tie_word_embeddings"] = False
    generation = base / "generation_config.json"
    settings = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else None
    for name in _TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, part / name)
    if tokenizer != base:  # a pad token that came with the adapter's tokenizer
        from transformers import AutoTokenizer

        pad = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True).pad_token_id
        if pad is not None:
            config["pad_token_id"] = pad
            if settings is not None:
                settings["pad_token_id"] = pad
    (part / "config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    if settings is not None:
        (part / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _made_of(base: Path, weights: _Base, chain: Sequence[_Adapter], dtype: str) -> dict[str, Any]:
    return {
        "base": {name: _sha256(base / name) for name in ("config.json", *weights.files)},
        "adapters": [
            {path.name: _sha256(path) for path in (adapter.folder / "adapter_config.json", adapter.path)}
            for adapter in chain
        ],
        "dtype": dtype,
    }


def _adapter_folder(path: Path) -> Path:
    inner = path / "adapter"
    return inner if not (path / "adapter_config.json").is_file() and inner.is_dir() else path


def _open(path: Path, stack: ExitStack) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path.name} is damaged: {error}", where=str(path), remedy="copy it again, or save it again"
        ) from error


def _read_json(path: Path, missing: str, folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(
            missing, where=str(folder), remedy="give a folder that `save_pretrained` wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{path.name} cannot be read: {error}", where=str(path), remedy="copy it again"
        ) from error
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
