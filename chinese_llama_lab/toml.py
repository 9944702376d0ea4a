"""The TOML parser under one name, and `KEY=VALUE` settings as a command line gives them.

tomllib came with Python 3.11; tomli is the same code for 3.10.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from chinese_llama_lab.errors import LabError

if sys.version_info >= (3, 11):
    import tomllib as tomllib
else:  # pragma: no cover - the same parser under its old name
    import tomli as tomllib


def parse_settings(changes: Iterable[str], error: type[LabError]) -> dict[str, Any]:
    """`["steps=3", "template=v1"]` to `{"steps": 3, "template": "v1"}`, values as in TOML.

    Raises: `error`: a setting without `=`.
    """
    found: dict[str, Any] = {}
    for change in changes:
        key, sign, value = change.partition("=")
        if not sign:
            raise error(f"--set {change} has no '='", remedy="write --set KEY=VALUE")
        try:
            found[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value.strip()  # text without quotes, which a shell takes away
    return found
