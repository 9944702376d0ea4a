"""The error class of this subpackage."""

from __future__ import annotations

from chinese_llama_lab.errors import LabError


class ClaimError(LabError):
    """A row of the ledger is damaged, a pointer leads nowhere, or what was asked for is not there."""
