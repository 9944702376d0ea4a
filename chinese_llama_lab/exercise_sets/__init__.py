"""The checkers of the course: one module a chapter, `chapter_01` for notebook 01 and so on.

A module is imported when the first of its exercises is checked; importing it declares them.
"""

from __future__ import annotations

from pkgutil import iter_modules


def modules() -> list[str]:
    """The names of the chapter modules there are, in order."""
    return sorted(module.name for module in iter_modules(__path__) if module.name.startswith("chapter_"))
