"""How an English LLaMA-class model is taught Chinese: the library behind the notebooks.

    import chinese_llama_lab as lab
    lab.setup(seed=0, chapter="01")

Importing the package costs next to nothing: names are looked up when they are first used, so that
`chinese-llama-lab --help` does not wait for numpy or torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chinese_llama_lab.exercises import check, hint
    from chinese_llama_lab.profiles import current_profile
    from chinese_llama_lab.session import chapter_card, setup

__version__ = "0.1.0"

__all__ = ["__version__", "chapter_card", "check", "current_profile", "hint", "setup"]

# Public name -> the module that holds it.
_HOMES = {
    "chapter_card": "chinese_llama_lab.session",
    "check": "chinese_llama_lab.exercises",
    "current_profile": "chinese_llama_lab.profiles",
    "hint": "chinese_llama_lab.exercises",
    "setup": "chinese_llama_lab.session",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
