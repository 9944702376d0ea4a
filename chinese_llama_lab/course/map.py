"""The map of the course: every chapter, its question, and what it cost to run when it was last built."""

from __future__ import annotations

import csv
import html
from dataclasses import dataclass

from chinese_llama_lab.errors import CourseError
from chinese_llama_lab.paths import data_dir, repository_root
from chinese_llama_lab.session import ChapterCard, chapter_card


@dataclass(frozen=True)
class Stop:
    """One chapter. `ready` says whether it has been written yet."""

    chapter: str
    name: str
    title: str
    question: str
    ready: bool
    card: ChapterCard


@dataclass(frozen=True)
class CourseMap:
    """All chapters, in order; links to those that are there."""

    stops: tuple[Stop, ...]

    def __repr__(self) -> str:
        return "\n".join(
            f"{stop.chapter}  {stop.title:<45}  {'' if stop.ready else '(being written) '}{stop.question}"
            for stop in self.stops
        )

    def _repr_html_(self) -> str:
        rows = []
        for stop in self.stops:
            title = html.escape(stop.title)
            shown = f'<a href="{stop.name}.ipynb">{title}</a>' if stop.ready else f"{title} (being written)"
            cost = "" if stop.card.row is None else f"{float(stop.card.row['seconds']):.0f} s"
            cells = (stop.chapter, shown, html.escape(stop.question), cost)
            rows.append(
                "<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>"
            )
        head = "<tr><th></th><th>chapter</th><th>question</th><th>time</th></tr>"
        return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def course_map() -> CourseMap:
    """Read `data/course_map.csv`.

    Raises:
        CourseError: the file is missing or lacks a column.
    """
    path = data_dir() / "course_map.csv"
    notebooks = (repository_root() or data_dir().parent) / "notebooks"
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return CourseMap(
                tuple(
                    Stop(
                        row["chapter"],
                        row["name"],
                        row["title"],
                        row["question"],
                        (notebooks / "source" / f"{row['name']}.py").is_file(),
                        chapter_card(row["chapter"]),
                    )
                    for row in csv.DictReader(stream)
                )
            )
    except (OSError, KeyError) as error:
        raise CourseError(
            f"the map of the course cannot be read: {error}",
            where=str(path),
            remedy="restore the file from the repository",
        ) from error
