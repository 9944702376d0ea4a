"""A model's config as it lies in a file: its fields, before anything is counted from them.

Nothing is downloaded: a hub id is looked for in the hub client's own cache alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinese_llama_lab.inference.errors import EstimateError


def fields_of(source: Any) -> Mapping[str, Any] | None:
    """The fields of a config.

    Args:
        source: a folder with `config.json`, or such a file; a hub id whose config is in the hub's cache; a
            mapping with the fields; a transformers config, or a model that has one.

    Returns: the fields; None where there is no config of that name, or `source` has none.

    Raises: EstimateError: a file that is no JSON object.
    """
    if isinstance(source, Mapping):
        return source
    if isinstance(source, (str, Path)):
        place = _place(source)
        return None if place is None else {"_name_or_path": str(source), **_read(place)}
    config = getattr(source, "config", source)
    found: Mapping[str, Any] | None = config.to_dict() if hasattr(config, "to_dict") else None
    return found


def _place(source: str | Path) -> Path | None:
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    if path.is_file():
        return path
    name = str(source)
    if name.count("/") != 1 or name.startswith((".", "/")):
        return None
    from chinese_llama_lab.sources.hub import cached_hub_file

    return cached_hub_file(name, "config.json")


def _read(place: Path) -> dict[str, Any]:
    try:
        fields = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EstimateError(
            f"the config cannot be read: {error}", where=str(place), remedy="pass a JSON file in UTF-8"
        ) from error
    if not isinstance(fields, dict):
        raise EstimateError("the config is not a JSON object", where=str(place), remedy="pass a config.json")
    return fields
