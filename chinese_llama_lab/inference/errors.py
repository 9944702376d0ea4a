"""The error class of this subpackage."""

from __future__ import annotations

from chinese_llama_lab.errors import LabError


class EstimateError(LabError):
    """A config, an option or a GPU size is not what an estimate needs."""
