"""The error classes of this subpackage."""

from __future__ import annotations

from chinese_llama_lab.errors import LabError


class CevalError(LabError):
    """Questions, a prompt or a score is not what the benchmark needs."""


class QuestionError(CevalError):
    """A file of questions is damaged, incomplete or says something impossible; the row is named."""


class SubjectError(CevalError):
    """A subject is unknown, or has no demonstrations to show."""


class PromptError(CevalError):
    """A prompt style is unknown, lacks what it needs, or does not fit into the model's context."""


class LetterError(CevalError):
    """A letter cannot be scored with this tokenizer after this prompt."""


class RunError(CevalError):
    """A folder holds another run, a damaged one, or one that is still being written."""
