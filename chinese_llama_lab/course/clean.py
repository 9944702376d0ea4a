"""What a committed notebook must not contain, and its removal or refusal.

Progress bars and widgets mean nothing in a saved notebook and are taken out; pictures are packed. Errors,
machine paths and memory addresses are refused: they say that the notebook is broken, or differs from machine
to machine.
"""

from __future__ import annotations

import base64
import io
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chinese_llama_lab.paths import cache_dir, repository_root

LARGEST = 300_000
_WIDGET = "application/vnd.jupyter.widget-view+json"
_WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
# A bar of tqdm: "  3%|▎         | 1/30 [00:00<00:05,  5.2it/s]", or its form without a total.
_BAR = re.compile(r"\d+%\|[^|]*\||\d+(\.\d+)?[kMG]?(it|B|\w+)? \[\d\d:\d\d")
_ANYONES_PATH = re.compile(r"(/home/|/root/|/Users/|/tmp/|/var/folders/|[A-Za-z]:\\{1,2}Users\\)[^\s'\"]*")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}>")


def clean(notebook: Any) -> None:
    """Take out widgets, progress bars and traces of the run, and pack pictures, in place."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for name in ("execution", "ExecuteTime", "collapsed", "scrolled"):
            cell.metadata.pop(name, None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = _packed(data["image/png"])


def _packed(png: str) -> str:
    """A plot with a palette of 256 colours: it looks the same, in half the bytes. base64 in, base64 out."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    stream = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    smaller = base64.b64encode(stream.getvalue()).decode("ascii")
    return min(png.replace("\n", ""), smaller, key=len)


def _is_noise(output: Any) -> bool:
    if output.output_type == "stream" and output.name == "stderr":
        lines = [line for line in re.split(r"[\r\n]+", output.text) if line.strip()]
        output.text = "".join(f"{line}\n" for line in lines if not _BAR.search(line))
        return not output.text
    return bool(_WIDGET in output.get("data", {}))


def faults(notebook: Any, *, size: int = 0) -> list[str]:
    """Every reason why this notebook must not be committed, in words; empty if there is none."""
    found = []
    if size > LARGEST:
        found.append(f"it has {size:,} bytes, more than {LARGEST:,}: plot smaller, print less")
    if "widgets" in notebook.metadata:
        found.append("it has widget state, which GitHub shows as an invalid notebook")
    for number, cell in enumerate(notebook.cells, 1):
        found += [f"cell {number}: {fault}" for fault in _cell_faults(cell)]
    return found


def _cell_faults(cell: Any) -> Iterator[str]:
    texts = [cell.source]
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            yield f"it ends in an error: {output.ename}: {output.evalue}"
            continue
        data = output.get("data", {})
        if _WIDGET in data or _WIDGET_STATE in data:
            yield "it has a widget among its outputs"
        texts += _texts(output)
    for text in dict.fromkeys(texts):
        for path in sorted(machine_paths(text)):
            yield f"it contains a path of one machine: {path}"
        if address := _ADDRESS.search(text):
            yield f"it shows a memory address ({address[0].strip()}), which changes with every run"


def _texts(output: Any) -> list[str]:
    if output.output_type == "stream":
        return [output.text]
    # Pictures are base64 or drawn outlines: no text of theirs can be a path that somebody reads.
    return [str(value) for mime, value in output.get("data", {}).items() if not mime.startswith("image/")]


def machine_paths(text: str) -> set[str]:
    """Folders of this machine, and of any user's machine, that are named in `text`."""
    found = {match[0] for match in _ANYONES_PATH.finditer(text)}
    places: list[Path | None] = [Path.home(), repository_root(), cache_dir(), Path(sys.prefix)]
    places.append(Path(tempfile.gettempdir()))
    for place in places:
        # A home of "/" (some containers) would be found everywhere.
        if place is None or len(place.parts) < 2:
            continue
        if re.search(re.escape(str(place)) + r"(?![\w.-])", text):
            found.add(str(place))
    return found
