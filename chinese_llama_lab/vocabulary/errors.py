"""The one error class of this subpackage."""

from __future__ import annotations

from chinese_llama_lab.errors import LabError


class VocabularyError(LabError):
    """A vocabulary is not what it says, cannot be merged, or disagrees with its model."""
