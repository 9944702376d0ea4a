"""Fixtures that several test files share."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with nothing in it, for tests that fetch."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LAB_CACHE_DIR", str(folder))
    monkeypatch.delenv("LAB_OFFLINE", raising=False)
    return folder


@pytest.fixture
def plain_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """No index, proxy or certificate settings of the machine that runs the tests."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture(scope="session")
def gold() -> Path:
    """Real artefacts to check against: `../shared/gold` beside the checkout, or `LAB_GOLD_DIR`."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "gold"
    folder = Path(os.environ.get("LAB_GOLD_DIR") or beside)
    if not (folder / "llama_tokenizer.model").is_file():
        pytest.skip("no gold artefacts: neither ../shared/gold nor LAB_GOLD_DIR is there")
    return folder


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch):
    """A disk that is full after some bytes: `with full_disk(after=…):` for files under way."""

    class FullFile(io.FileIO):
        left = 0

        def write(self, data) -> int:
            if len(data) > FullFile.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            FullFile.left -= len(data)
            return super().write(data)

    original = Path.open

    def opened(self: Path, mode: str = "r", *arguments, **options):
        if self.suffix in (".part", ".tmp") and mode in ("wb", "ab"):
            return FullFile(self, mode)
        return original(self, mode, *arguments, **options)

    @contextmanager
    def full(after: int) -> Iterator[None]:
        FullFile.left = after
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", opened)
            yield

    return full
