"""Opening what a stranger gives: JSON and safetensors, with errors that name the file."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from chinese_llama_lab.errors import LabError


class AdapterError(LabError):
    """An adapter and a base do not belong together, or one of them cannot be merged."""


def read_json(path: Path, *, missing: str | None = None, remedy: str | None = None) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises: AdapterError: not there (saying `missing`), not readable, not JSON, or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise AdapterError(
            missing or f"there is no {path.name}",
            where=str(path.parent),
            remedy=remedy or "give a folder that `save_pretrained` wrote",
        ) from None
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{path.name} cannot be read: {error}", where=str(path), remedy="copy it again"
        ) from error
    if not isinstance(found, dict):
        raise AdapterError(f"{path.name} holds no JSON object", where=str(path), remedy="copy it again")
    return found


def open_tensors(path: Path, stack: ExitStack) -> Any:
    """A safetensors file, mapped and not read; `stack` closes it."""
    from safetensors import SafetensorError, safe_open

    try:
        return stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path.name} is damaged: {error}", where=str(path), remedy="copy it again, or save it again"
        ) from error
