"""The error classes of this subpackage."""

from __future__ import annotations

from chinese_llama_lab.errors import LabError


class TrainingError(LabError):
    """Data, a recipe, a checkpoint or a run is not what training needs."""


class TrainingStopped(TrainingError):
    """The reader asked a run to stop; it saved a checkpoint and can go on with `resume=True`."""
