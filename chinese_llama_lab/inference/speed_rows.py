"""What `measure_speed` reports: times, rates derived from them, and a table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.machine import GIB
from chinese_llama_lab.results import Table, table


@dataclass(frozen=True)
class Times:
    """Seconds of each repeat. Rates are of the median; the spread is the slowest and the fastest repeat."""

    seconds: tuple[float, ...]
    tokens: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Tokens per second, of all sequences together."""
        return self.tokens / self.median

    @property
    def slowest(self) -> float:
        return self.tokens / max(self.seconds)

    @property
    def fastest(self) -> float:
        return self.tokens / min(self.seconds)


@dataclass(frozen=True)
class SpeedRow:
    """One batch size.

    Attributes:
        prefill: of the prompts, the first new token included. decode: of all further tokens.
        characters_per_token: of the reference text.
        peak_bytes: resident memory of the process (CPU) or allocated by torch (GPU) at its highest.
        limit: tokens per second that the memory bandwidth allows while decoding; None if it was not measured.
    """

    name: str
    engine: str
    batch: int
    prompt_tokens: int
    new_tokens: int
    prefill: Times
    decode: Times
    characters_per_token: float
    peak_bytes: int
    limit: float | None

    @property
    def characters_per_second(self) -> float:
        """While decoding, of all sequences together."""
        return self.decode.rate * self.characters_per_token

    @property
    def share(self) -> float | None:
        """Of the limit; None where there is none."""
        return None if self.limit is None else self.decode.rate / self.limit

    def row(self) -> dict[str, Any]:
        """For `results.save`; rates are tokens per second unless their name says otherwise."""
        return {
            "name": self.name,
            "engine": self.engine,
            "batch": self.batch,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "prefill": round(self.prefill.rate, 2),
            "prefill_slowest": round(self.prefill.slowest, 2),
            "prefill_fastest": round(self.prefill.fastest, 2),
            "decode": round(self.decode.rate, 2),
            "decode_slowest": round(self.decode.slowest, 2),
            "decode_fastest": round(self.decode.fastest, 2),
            "characters_per_token": round(self.characters_per_token, 4),
            "characters_per_second": round(self.characters_per_second, 2),
            "limit": "" if self.limit is None else round(self.limit, 2),
            "share_of_limit": "" if self.share is None else round(self.share, 3),
            "peak_gib": round(self.peak_bytes / GIB, 3),
        }


@dataclass(frozen=True)
class Speed:
    """What `measure_speed` found, a row a batch size; shown as a table."""

    measured: tuple[SpeedRow, ...]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row.row() for row in self.measured]

    def _table(self) -> Table:
        return table("speed", self.rows)

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()
