"""A bar with the subject, questions per second and how many were right so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any


class Progress:
    """Counts rows as they come; shown only where asked for.

    Args:
        total: questions that are to be asked.
        show: whether there is a bar.
        before: rows that a stopped run left; they count for accuracy, not for speed.
    """

    def __init__(self, total: int, show: bool, before: Iterable[Mapping[str, Any]] = ()) -> None:
        from tqdm.auto import tqdm

        self.right = self.judged = 0
        earlier = list(before)
        self._bar = tqdm(total=total, initial=len(earlier), disable=not show, unit="question", leave=True)
        self._count(earlier)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def subject(self, name: str) -> None:
        """Show which subject is being asked."""
        self._bar.set_description(name)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows that were just scored."""
        new = list(rows)
        self._count(new)
        self._bar.update(len(new))

    def _count(self, rows: Iterable[Mapping[str, Any]]) -> None:
        judged = [row for row in rows if row["answer"] is not None]
        self.judged += len(judged)
        self.right += sum(row["predicted"] == row["answer"] for row in judged)
        if self.judged:
            self._bar.set_postfix_str(f"{self.right / self.judged:.1%} right", refresh=False)
