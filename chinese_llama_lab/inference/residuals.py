"""The estimate against what was measured: a table of residuals."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from chinese_llama_lab.inference.estimate import estimate
from chinese_llama_lab.inference.memory import Memory
from chinese_llama_lab.inference.published import Published, published

TOLERATED = 0.25  # beyond it a row needs an explanation


@dataclass(frozen=True)
class Residual:
    """One figure and its estimate.

    Attributes:
        figure: as published. memory: as estimated.
    """

    figure: Published
    memory: Memory

    @property
    def estimated(self) -> float:
        """In the unit of the figure."""
        return self.memory.gib if self.figure.unit == "GiB" else self.memory.gb

    @property
    def error(self) -> float:
        """(estimate − published) / published."""
        return self.estimated / self.figure.value - 1

    def row(self) -> dict[str, str]:
        """As text, for a table or a CSV."""
        figure = self.figure
        return {
            "run": figure.what,
            "published": f"{figure.value:g}",
            "estimate": f"{self.estimated:.2f}",
            "unit": figure.unit,
            "error": f"{self.error:+.1%}",
            "moment": self.memory.moment,
            "source": figure.source,
            "assumed": figure.assumed,
            "explanation": figure.explanation,
        }


@dataclass(frozen=True)
class Residuals:
    """All rows.

    Attributes:
        rows: one a published figure.
    """

    rows: tuple[Residual, ...]

    @property
    def median(self) -> float:
        """Of the absolute errors."""
        return median(abs(row.error) for row in self.rows)

    @property
    def far(self) -> list[Residual]:
        """Rows that are off by more than 25 %."""
        return [row for row in self.rows if abs(row.error) > TOLERATED]

    def __repr__(self) -> str:
        shown = ("run", "published", "estimate", "unit", "error")
        cells = [list(shown), *([row.row()[name] for name in shown] for row in self.rows)]
        widths = [max(len(line[place]) for line in cells) for place in range(len(shown))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        lines.append(f"median error {self.median:.1%}, {len(self.far)} of {len(self.rows)} beyond 25 %")
        return "\n".join(lines)


def residuals() -> Residuals:
    """`estimate` for every published figure, with the arguments that its source ran."""
    return Residuals(
        tuple(
            Residual(figure, estimate(figure.model, figure.task, **figure.options)) for figure in published()
        )
    )
