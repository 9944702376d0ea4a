"""The one dial of the course: `LAB_PROFILE` picks a column of sizes from `profiles.toml`.

A notebook never asks *which* profile it runs in. It asks for a size by name, and the table answers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from chinese_llama_lab.errors import ProfileError
from chinese_llama_lab.toml import tomllib

VARIABLE = "LAB_PROFILE"
DEFAULT = "course"
TABLE = "profiles.toml"


@dataclass(frozen=True)
class Profile:
    """A named set of sizes: `profile["documents_per_corpus"]` or `profile.documents_per_corpus`.

    Raises:
        ProfileError: on a size that the table does not hold.
    """

    name: str
    sizes: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        try:
            return self.sizes[key]
        except KeyError:
            near = get_close_matches(key, list(self.sizes), n=1)
            raise ProfileError(
                f"profile {self.name!r} has no size named {key!r}; it has {', '.join(sorted(self.sizes))}",
                where=TABLE,
                remedy=f"did you mean {near[0]!r}?" if near else f"add the key to every profile in {TABLE}",
            ) from None

    def __getattr__(self, key: str) -> Any:
        # Dunder and private look-ups come from copy, pickle and IPython: they must fail the usual way.
        if key.startswith("_") or key in ("name", "sizes"):
            raise AttributeError(key)
        # hasattr() and getattr(…, default) rely on AttributeError, so the error is both kinds at once.
        try:
            return self[key]
        except ProfileError as error:
            raise MissingSizeError(error.what, where=error.where, remedy=error.remedy) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.name, dict(self.sizes))

    def __hash__(self) -> int:
        return hash((self.name, repr(sorted(self.sizes.items()))))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{key}={value!r}" for key, value in sorted(self.sizes.items()))
        return f"Profile({self.name!r}: {sizes})"


class MissingSizeError(ProfileError, AttributeError):
    """A size asked for as an attribute that the profile does not have."""


def _rebuild(name: str, sizes: dict[str, Any]) -> Profile:
    return Profile(name, MappingProxyType(sizes))


@lru_cache(maxsize=1)
def profiles() -> Mapping[str, Profile]:
    """Every profile of the table, by name."""
    table = tomllib.loads(files("chinese_llama_lab").joinpath(TABLE).read_text(encoding="utf-8"))
    return MappingProxyType({name: _rebuild(name, sizes) for name, sizes in table.items()})


def current_profile() -> Profile:
    """The profile that the environment variable `LAB_PROFILE` names; `course` where it is unset or empty.

    Raises:
        ProfileError: if the variable names no profile.
    """
    name = os.environ.get(VARIABLE, "").strip() or DEFAULT
    try:
        return profiles()[name]
    except KeyError:
        known = ", ".join(profiles())
        near = get_close_matches(name, list(profiles()), n=1)
        raise ProfileError(
            f"there is no profile {name!r}; there are {known}",
            where=f"environment variable {VARIABLE}",
            remedy=f"set {VARIABLE}={near[0] if near else DEFAULT}, or unset it for {DEFAULT!r}",
        ) from None
