"""The error classes of this subpackage."""

from __future__ import annotations

from chinese_llama_lab.errors import LabError


class ProbeError(LabError):
    """A file of bias probes, or the rows scored from it, is damaged, incomplete or not comparable."""


class NativeError(LabError):
    """The table of published models or scores is damaged, or a config does not say what was asked."""


class TranslationeseError(LabError):
    """Texts that cannot be compared, or a mark that does not exist."""
