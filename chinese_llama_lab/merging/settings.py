"""What adapter_config.json says, read as peft reads it.

A key that changes the arithmetic in a way that is not known here is refused, and so is one that peft may
have added since: a merge that leaves something out still looks like a model.

Source: peft 0.21, `LoraConfig`, `check_target_module_exists`, `get_pattern_key`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinese_llama_lab.merging.files import AdapterError, read_json

# These say how the adapter was trained or stored, and nothing about what it is.
_HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
_READ = {
    "alpha_pattern",
    "ensure_weight_tying",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}
# Other starts (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take their first update out of the base's weights.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_PLAIN: tuple[Any, ...] = (None, False, "", "none", [], {})


@dataclass(frozen=True)
class Settings:
    """An adapter's config. Modules are named as in the model: `model.layers.0.mlp.up_proj`."""

    path: Path
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rslora: bool
    dora: bool
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    layers: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    token_rows: Mapping[str, list[int]]
    ties: bool
    base: str

    def rank_of(self, module: str) -> int:
        """r, which may go by pattern."""
        return self.ranks.get(self._key(self.ranks, module), self.rank)

    def scale(self, module: str) -> float:
        """α/r, or α/√r with rsLoRA; α and r may go by pattern."""
        alpha = self.alphas.get(self._key(self.alphas, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def _key(self, patterns: Mapping[str, Any], module: str) -> str:
        return next((p for p in patterns if self._match(rf"(.*\.)?({p})$", module)), module)

    def targets(self, module: str) -> bool:
        """Whether a linear module has an update."""
        if isinstance(self.exclude_modules, str):
            if self.exclude_modules and self._match(rf"(?:{self.exclude_modules})\Z", module):
                return False
        elif _ends(module, self.exclude_modules):
            return False
        if any(self._match(rf"(^|.*\.){m}($|\..*)", module) for m in self.modules_to_save):
            return False
        if self.target_modules == "all-linear":
            return module.rpartition(".")[2] not in ("lm_head", "embed_tokens")
        if isinstance(self.target_modules, str):
            return self._match(rf"(?:{self.target_modules})\Z", module)
        if module in self.target_modules:
            return True
        return _ends(module, self.target_modules) and (not self.layers or self._layer(module) in self.layers)

    def _layer(self, module: str) -> int | None:
        patterns = self.layers_pattern or (r"[^.]*",)
        for pattern in patterns:
            lead = r"(?:^|.*?\.)" if self.layers_pattern else r".*?\."
            found = re.match(rf"{lead}{pattern}\.(\d+)\.", module)
            if found:
                return int(found.group(1))
        return None

    def saves(self, module: str) -> bool:
        """Whether modules_to_save names a module or one that holds it; peft compares the ends of names."""
        parts = module.split(".")
        over = [".".join(parts[: n + 1]) for n in range(len(parts))]
        return any(name.endswith(m) for name in over for m in self.modules_to_save)

    def _match(self, pattern: str, module: str) -> bool:
        try:
            return re.match(pattern, module) is not None
        except re.error as error:
            raise AdapterError(
                f"the pattern {pattern!r} is no regular expression: {error}",
                where=str(self.path),
                remedy="mend the pattern",
            ) from error


def _ends(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def read_settings(folder: Path) -> Settings:
    """Read `adapter_config.json`.

    Raises: AdapterError: not there, not LoRA, a key or a value that is not supported.
    """
    path = folder / "adapter_config.json"
    is_model = (folder / "config.json").is_file()
    config = read_json(
        path,
        missing="this is a model, and an adapter was expected: the base comes first, then the adapters"
        if is_model
        else "the adapter has no adapter_config.json",
    )
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"the adapter is {config.get('peft_type')}, not LORA",
            where=str(folder),
            remedy="merge it with peft",
        )
    for key, value in config.items():
        if key not in _HARMLESS | _READ and value not in _PLAIN:
            raise AdapterError(
                f"the adapter uses {key} = {value!r}, which is not supported here",
                where=str(path),
                remedy="merge it with peft's merge_and_unload",
            )
    if config.get("init_lora_weights") not in _STARTS:
        raise AdapterError(
            f"the adapter started from {config['init_lora_weights']!r}, which changes the base's weights too",
            where=str(path),
            remedy="save it again with peft's path_initial_model_for_weight_conversion",
        )
    return _Reader(path, config).settings()


class _Reader:
    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self._path, self._config = path, config

    def settings(self) -> Settings:
        tokens = self._config.get("trainable_token_indices") or {}
        if isinstance(tokens, list):  # a list means the input embedding
            tokens = {"embed_tokens": tokens}
        if not isinstance(tokens, dict) or not all(_distinct(rows) for rows in tokens.values()):
            raise self._wrong("trainable_token_indices", "distinct token ids")
        layers = self._config.get("layers_to_transform")
        return Settings(
            path=self._path,
            rank=self._number("r", self._config.get("r"), whole=True),
            alpha=self._number("lora_alpha", self._config.get("lora_alpha")),
            ranks=self._pattern("rank_pattern", whole=True),
            alphas=self._pattern("alpha_pattern"),
            rslora=bool(self._config.get("use_rslora")),
            dora=bool(self._config.get("use_dora")),
            target_modules=self._names("target_modules"),
            exclude_modules=self._names("exclude_modules"),
            layers=tuple(
                self._number("layers_to_transform", n, whole=True, least=0)
                for n in (layers if isinstance(layers, list) else [] if layers is None else [layers])
            ),
            layers_pattern=self._list("layers_pattern"),
            modules_to_save=self._list("modules_to_save"),
            token_rows=tokens,
            ties=bool(self._config.get("ensure_weight_tying")),
            base=str(self._config.get("base_model_name_or_path") or ""),
        )

    def _wrong(self, key: str, wanted: str) -> AdapterError:
        return AdapterError(
            f"{key} is {self._config.get(key)!r}; {wanted} was expected",
            where=str(self._path),
            remedy="save the adapter again",
        )

    def _number(self, key: str, value: Any, *, whole: bool = False, least: float = -math.inf) -> Any:
        good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        least = max(1, least) if key in ("r", "rank_pattern") else least
        if not good or not math.isfinite(value) or value < least:
            raise self._wrong(key, "a whole number" if whole else "a number")
        return value

    def _pattern(self, key: str, *, whole: bool = False) -> dict[str, Any]:
        table = self._config.get(key) or {}
        if not isinstance(table, dict):
            raise self._wrong(key, "a table")
        return {name: self._number(key, value, whole=whole) for name, value in table.items()}

    def _names(self, key: str) -> str | tuple[str, ...]:
        value = self._config.get(key) or ()
        return value if isinstance(value, str) else self._list(key)

    def _list(self, key: str) -> tuple[str, ...]:
        value = self._config.get(key) or ()
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise self._wrong(key, "a list of names")
        return tuple(value)


def _distinct(rows: Any) -> bool:
    return (
        isinstance(rows, list)
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in rows)
        and len(set(rows)) == len(rows)
    )
