"""The texts of files, data sets and lists, as one stream that is never held whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chinese_llama_lab.sources.textfiles import read_all
from chinese_llama_lab.training.errors import TrainingError


def documents_of(source: Any, *, column: str = "text", name: str = "corpus") -> Iterator[str]:
    """The texts of whatever holds documents, one after the other.

    Args:
        source: a path or paths of text files, a document a line; a `datasets` Dataset or IterableDataset, or
            other rows that are mappings; strings, or objects with a `text`.
        column: of rows that are mappings. name: of the source, for messages.

    Raises: TrainingError: something else; the number of the document is named. TextError: a file that cannot
        be read, or is not UTF-8.
    """
    if isinstance(source, Path):
        source = [source]
    if isinstance(source, (str, bytes, Mapping)):  # a DatasetDict is a mapping of splits
        raise TrainingError(
            f"the {name} is {type(source).__name__}, not documents",
            where=name,
            remedy="give a list of strings, Path(file), or one split of a data set: data['train']",
        )
    number = 0
    for item in source:
        if isinstance(item, Path):
            for text in read_all([item]):
                yield text
                number += 1
            continue
        if isinstance(item, Mapping) and column not in item:
            raise TrainingError(
                f"row {number} has no column {column!r}; it has {', '.join(map(str, item))}",
                where=name,
                remedy="name the column of the text: column=…",
            )
        text = _text(item, column)
        if not isinstance(text, str):
            found = type(text if isinstance(item, Mapping) else item).__name__
            raise TrainingError(
                f"document {number} is {found}, not text",
                where=name,
                remedy="give strings, objects with a `text`, or rows with a column of text",
            )
        yield text
        number += 1


def _text(item: Any, column: str) -> Any:
    if isinstance(item, Mapping):
        return item[column]
    return item if isinstance(item, str) else getattr(item, "text", None)
