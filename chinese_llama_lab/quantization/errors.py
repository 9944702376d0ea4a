"""The error class of this subpackage."""

from __future__ import annotations

from chinese_llama_lab.errors import LabError


class QuantizationError(LabError):
    """A tensor, a block size or a quantized tensor is not what quantization needs."""
