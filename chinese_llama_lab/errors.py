"""The errors a reader meets: what was wrong, where it was, and what to do about it.

Every error that this package raises on purpose is a `LabError`, so a program can
catch one class and the command line can print one clean message instead of a trace.
"""

from __future__ import annotations

INTERRUPTED = 130  # the exit code that shells expect after Ctrl-C


class LabError(Exception):
    """Something the reader can act on.

    Args:
        what: one sentence saying what is wrong, with the offending value in it.
        where: the file, row, byte or argument it was found at.
        remedy: what to do next, as a command or an instruction.
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if remedy:
            lines.append(f"  what to do: {remedy}")
        super().__init__("\n".join(lines))


class SourceError(LabError):
    """An outside file could not be fetched, verified, unpacked or found."""


class TokenizerError(LabError):
    """A tokenizer is unknown, damaged, of another kind, or was given an impossible id."""


class TextError(LabError):
    """A text cannot be measured: not UTF-8, lone surrogates, or nothing in it."""


class ModelError(LabError):
    """A base model is unknown, incomplete or out of reach."""


class ProfileError(LabError):
    """`LAB_PROFILE` names no profile, or a profile lacks a size that was asked for."""


class ResultError(LabError):
    """A result is missing, malformed or would be written without its provenance."""


class CourseError(LabError):
    """A notebook or its source is missing, out of date, or failed while running."""
