"""Executed notebooks as web pages that need no network: nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from chinese_llama_lab.paths import atomic_file


def to_html(notebook: Any, title: str) -> str:
    """One self-contained page. Formulas are shown as they are written, `$…$`, where no MathJax is at hand."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(embed_images=True)
    # These name scripts on other people's servers. Without them a page is complete offline.
    exporter.require_js_url = ""
    exporter.mathjax_url = ""
    exporter.mermaid_js_url = ""
    exporter.jquery_url = ""
    exporter.widget_renderer_url = ""
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    return _rewrite_links(_drop_remote_scripts(page))


def _drop_remote_scripts(page: str) -> str:
    page = re.sub(r"<script\b[^>]*\bsrc=\"(https?://[^\"]*|)\"[^>]*>\s*</script>", "", page)
    return re.sub(r"<link\b[^>]*\bhref=\"https?://[^\"]*\"[^>]*>", "", page)


def _rewrite_links(page: str) -> str:
    # A link to the next notebook leads to the page beside this one.
    return re.sub(r'href="(\d\d_[a-z0-9_]+)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', page)


def write_html(notebook: Any, target: Path) -> None:
    """Write the page; a kill leaves the old one."""
    page = to_html(notebook, target.stem)
    with atomic_file(target) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def write_index(pages: list[tuple[str, str]], target: Path) -> None:
    """A page that lists the chapters: (file name, title) each."""
    items = "\n".join(f'<li><a href="{escape(name)}">{escape(title)}</a></li>' for name, title in pages)
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<title>The course</title></head>\n<body>\n<h1>The course</h1>\n<ol start="0">\n{items}\n</ol>\n'
        "</body></html>\n"
    )
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
