"""Fetching: what is here costs nothing, what is not comes whole, and no accident leaves a mess."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from indexserver import as_folder, manifest_text, one_source, sdist_bytes, serving, wheel_bytes

import chinese_llama_lab
from chinese_llama_lab.errors import SourceError
from chinese_llama_lab.sources import fetch as fetching
from chinese_llama_lab.sources import index
from chinese_llama_lab.sources.fetch import (
    fetch,
    packages_to_download,
    source_file,
    source_folder,
    status,
)
from chinese_llama_lab.sources.index import IndexSettings
from chinese_llama_lab.sources.manifest import parse_manifest

TEXT = {"pkg/poem.txt": "白日依山尽".encode() * 100, "pkg/noise.bin": os.urandom(200_000)}
ARCHIVE = "tiny-1.0-py3-none-any.whl"
WHEEL = wheel_bytes(TEXT.items(), stored=True)
MANIFEST = one_source(ARCHIVE, WHEEL, TEXT)


@pytest.fixture(autouse=True)
def own_cache(empty_cache: Path, plain_pip: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(index.time, "sleep", lambda _: None)
    return empty_cache


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A find-links folder with the archive; the only place that is looked at."""
    folder = as_folder(tmp_path / "links", {ARCHIVE: WHEEL})
    settings = IndexSettings(index_urls=(), find_links=(str(folder),))
    monkeypatch.setattr(index, "index_settings", lambda: settings)
    return folder


def files_in(folder: Path) -> set[str]:
    """Every file but locks, relative to the cache folder."""
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    return {name for name in found if not name.startswith("locks")}


WHOLE = {"sources/poem/poem.txt", "sources/poem/noise.bin"}


def test_fetched_files_are_whole_and_nothing_else_is_there(links, own_cache):
    assert fetch(progress=False, manifest=MANIFEST) == [source_folder("poem")]
    assert files_in(own_cache) == WHOLE
    for name, data in TEXT.items():
        assert (source_folder("poem") / Path(name).name).read_bytes() == data


def test_a_second_fetch_asks_nobody(links, monkeypatch):
    fetch(progress=False, manifest=MANIFEST)
    monkeypatch.setattr(index, "download", lambda *a, **k: pytest.fail("downloaded again"))
    monkeypatch.setenv("LAB_OFFLINE", "1")
    fetch(progress=False, manifest=MANIFEST)


def test_one_download_serves_every_source_of_an_archive(tmp_path, monkeypatch, own_cache):
    data = sdist_bytes([("p-1/a.txt", b"aaa"), ("p-1/b.txt", b"bbb")])
    text = manifest_text(
        {"pair": ("pair-1.0.tar.gz", data)},
        {"a": ("pair", {"p-1/a.txt": b"aaa"}), "b": ("pair", {"p-1/b.txt": b"bbb"})},
    )
    manifest = parse_manifest(text)
    assert len(packages_to_download(manifest=manifest)) == 1
    with serving() as server:
        server.add("pair", "pair-1.0.tar.gz", data)
        monkeypatch.setattr(index, "index_settings", lambda: IndexSettings(index_urls=(server.url,)))
        fetch(["a"], progress=False, manifest=manifest)
        fetch(["b"], progress=False, manifest=manifest)
        assert len(server.downloads) == 1
    assert files_in(own_cache) == {"sources/a/a.txt", "sources/b/b.txt"}


def test_states_are_told_apart(links):
    def state(verify: bool = False) -> str:
        return status(verify=verify, manifest=MANIFEST)[0].state

    poem = source_folder("poem") / "poem.txt"
    assert state() == "missing"
    fetch(progress=False, manifest=MANIFEST)
    assert state() == state(verify=True) == "here"
    poem.write_bytes(poem.read_bytes()[:-1] + b"!")
    assert (state(), state(verify=True)) == ("here", "damaged")
    poem.write_bytes(b"short")
    assert state() == "damaged"
    poem.unlink()
    assert state() == "missing"


def test_damaged_and_missing_files_are_replaced(links, own_cache):
    fetch(progress=False, manifest=MANIFEST)
    poem = source_folder("poem") / "poem.txt"
    poem.write_bytes(poem.read_bytes()[:-1] + b"!")
    fetch(progress=False, verify=True, manifest=MANIFEST)
    assert poem.read_bytes() == TEXT["pkg/poem.txt"]
    poem.unlink()
    fetch(progress=False, manifest=MANIFEST)
    assert poem.read_bytes() == TEXT["pkg/poem.txt"]
    assert files_in(own_cache) == WHOLE


def test_code_in_a_package_is_never_run(tmp_path, monkeypatch, own_cache):
    mark = tmp_path / "was-run"
    code = f"open({str(mark)!r}, 'w').close()\n".encode()
    backend = b'[build-system]\nrequires = []\nbuild-backend = "evil"\nbackend-path = ["."]\n'
    members = [
        ("evil-1.0/setup.py", code),
        ("evil-1.0/evil.py", code),
        ("evil-1.0/evil/__init__.py", code),
        ("evil-1.0/pyproject.toml", backend),
        ("evil-1.0/PKG-INFO", b"Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n"),
        ("evil-1.0/data.txt", b"data"),
    ]
    data = sdist_bytes(members)
    text = manifest_text({"evil": ("evil-1.0.tar.gz", data)}, {"x": ("evil", {"evil-1.0/data.txt": b"data"})})
    folder = as_folder(tmp_path / "links", {"evil-1.0.tar.gz": data})
    settings = IndexSettings(index_urls=(), find_links=(str(folder),))
    monkeypatch.setattr(index, "index_settings", lambda: settings)
    fetch(progress=False, manifest=parse_manifest(text))
    assert not mark.exists()
    assert files_in(own_cache) == {"sources/x/data.txt"}


def test_a_wrong_archive_is_refused_and_nothing_is_left(links, own_cache):
    (links / ARCHIVE).write_bytes(WHEEL[:-1] + b"!")
    with pytest.raises(SourceError, match="poem could not be fetched") as caught:
        fetch(progress=False, manifest=MANIFEST)
    assert ARCHIVE in caught.value.what and MANIFEST["poem"].package.sha256 in caught.value.what
    assert files_in(own_cache) == set()


def test_a_wrong_member_is_refused_and_not_kept(links, own_cache, tmp_path):
    other = dict(TEXT)
    other["pkg/poem.txt"] = b"something else"
    manifest = one_source(ARCHIVE, WHEEL, other)
    with pytest.raises(SourceError, match=r"pkg/poem\.txt is not the file"):
        fetch(progress=False, manifest=manifest)
    assert "sources/poem/poem.txt" not in files_in(own_cache)
    assert status(manifest=manifest)[0].state == "missing"


def test_offline_says_name_size_and_the_command_to_run_elsewhere(links, monkeypatch, own_cache):
    monkeypatch.setenv("LAB_OFFLINE", "1")
    monkeypatch.setattr(index, "download", lambda *a, **k: pytest.fail("went to the network"))
    with pytest.raises(SourceError) as caught:
        fetch(progress=False, manifest=MANIFEST)
    message = str(caught.value)
    assert "poem" in message and ARCHIVE in message and "0.2 MB" in message
    assert "chinese-llama-lab fetch poem" in message and str(own_cache) in message


def test_an_unreachable_index_says_the_same(monkeypatch):
    settings = IndexSettings(index_urls=("http://127.0.0.1:9/simple/",))
    monkeypatch.setattr(index, "index_settings", lambda: settings)
    with pytest.raises(SourceError) as caught:
        fetch(progress=False, manifest=MANIFEST)
    message = str(caught.value)
    assert "poem could not be fetched: no package index could be reached" in message
    assert "0.2 MB" in message and "chinese-llama-lab fetch poem" in message


def test_what_is_cached_works_when_the_index_is_gone(links, monkeypatch):
    fetch(progress=False, manifest=MANIFEST)
    settings = IndexSettings(index_urls=("http://127.0.0.1:9/simple/",))
    monkeypatch.setattr(index, "index_settings", lambda: settings)
    assert fetch(["poem"], progress=False, manifest=MANIFEST)


def test_an_entry_that_vanished_from_the_index(links, own_cache):
    (links / ARCHIVE).rename(links / ARCHIVE.replace("1.0", "2.0"))
    with pytest.raises(SourceError) as caught:
        fetch(progress=False, manifest=MANIFEST)
    message = str(caught.value)
    assert f"{ARCHIVE} is not on the index any more" in message and "2.0" in message
    assert "chinese-llama-lab fetch poem" in message


def test_an_archive_put_there_by_hand_is_checked_and_used(monkeypatch, own_cache):
    monkeypatch.setenv("LAB_OFFLINE", "1")
    downloads = own_cache / "downloads"
    as_folder(downloads, {ARCHIVE: WHEEL})
    fetch(progress=False, manifest=MANIFEST)
    assert files_in(own_cache) == WHOLE


def test_a_wrong_archive_put_there_by_hand_is_refused(monkeypatch, own_cache):
    as_folder(own_cache / "downloads", {ARCHIVE: b"wrong"})
    with pytest.raises(SourceError, match="not the file") as caught:
        fetch(progress=False, manifest=MANIFEST)
    assert caught.value.where == str(own_cache / "downloads" / ARCHIVE)
    assert MANIFEST["poem"].package.sha256 in caught.value.remedy


def test_too_little_room_is_said_before_the_download(links, monkeypatch, own_cache):
    usage = type(fetching.shutil.disk_usage("/"))
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage(100, 90, 10))
    monkeypatch.setattr(index, "download", lambda *a, **k: pytest.fail("downloaded all the same"))
    with pytest.raises(SourceError, match="are free") as caught:
        fetch(progress=False, manifest=MANIFEST)
    assert "LAB_CACHE_DIR" in caught.value.remedy


@pytest.mark.parametrize("after", [1000, len(WHEEL) + 1000])
def test_a_disk_that_fills_up_leaves_no_half_file(links, own_cache, full_disk, after):
    with full_disk(after=after), pytest.raises(SourceError, match="No space left"):
        fetch(progress=False, manifest=MANIFEST)
    left = files_in(own_cache)
    # A whole, checked archive may wait for room; whatever lies in the source's folder is whole.
    assert left <= {f"downloads/{ARCHIVE}", "sources/poem/poem.txt"}
    for name in left & WHOLE:
        assert (own_cache / name).read_bytes() == TEXT["pkg/poem.txt"]
    fetch(progress=False, manifest=MANIFEST)
    assert files_in(own_cache) == WHOLE


def test_a_cache_folder_that_cannot_be_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LAB_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(SourceError) as caught:
        fetch(progress=False, manifest=MANIFEST)
    assert str(tmp_path / "file") in str(caught.value) and "LAB_CACHE_DIR" in caught.value.remedy


def test_an_unknown_name_is_refused_before_anything_is_done(links, own_cache):
    with pytest.raises(SourceError, match="no source called 'peom'") as caught:
        fetch(["poem", "peom"], progress=False, manifest=MANIFEST)
    assert "did you mean poem" in caught.value.remedy
    assert not own_cache.exists() or files_in(own_cache) == set()


def test_a_file_must_be_named_where_there_are_several():
    with pytest.raises(SourceError) as caught:
        source_file("reviews")
    assert "pos.txt, neg.txt" in caught.value.remedy
    with pytest.raises(SourceError, match=r"nothing\.txt"):
        source_file("reviews", "nothing.txt")


# --- other processes ------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, zipfile
from pathlib import Path
from chinese_llama_lab.sources import unpack
from chinese_llama_lab.sources.fetch import fetch
from chinese_llama_lab.sources.manifest import parse_manifest
if "kill" in sys.argv:
    unpack.CHUNK_BYTES = 1000
    original, reads = zipfile.ZipExtFile.read, []
    def read(self, size=-1):
        reads.append(size)
        if len(reads) > 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, size)
    zipfile.ZipExtFile.read = read
fetch(progress=False, manifest=parse_manifest(Path(sys.argv[1]).read_text(encoding="utf-8")))
print("fetched")
"""


@pytest.fixture
def start(tmp_path: Path, own_cache: Path):
    """Start a process that fetches `MANIFEST` from an index; whatever still runs at the end is killed."""
    path = tmp_path / "manifest.toml"
    path.write_text(manifest_text({"tiny": (ARCHIVE, WHEEL)}, {"poem": ("tiny", TEXT)}), encoding="utf-8")
    running = []

    def started(url: str, *arguments: str) -> subprocess.Popen[str]:
        package = str(Path(chinese_llama_lab.__file__).parents[1])
        environment = {**os.environ, "PIP_INDEX_URL": url, "PYTHONPATH": package}
        command = [sys.executable, "-c", SCRIPT, str(path), *arguments]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
        return running[-1]

    yield started
    for process in running:
        process.kill()
        process.communicate()


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        threading.Event().wait(0.01)


@pytest.fixture
def server():
    with serving() as running:
        running.add("tiny", ARCHIVE, WHEEL)
        yield running


def test_a_kill_during_the_download_and_a_second_fetch(server, start, own_cache):
    server.pause_at = 50_000
    first = start(server.url)
    part = own_cache / "downloads" / f"{ARCHIVE}.part"
    wait_for(lambda: part.exists() and part.stat().st_size >= 50_000)
    first.kill()
    first.wait()
    assert files_in(own_cache) == {f"downloads/{ARCHIVE}.part"}
    server.pause_at = None
    second = start(server.url)
    out, error = second.communicate(timeout=60)
    assert out == "fetched\n", error
    assert server.downloads[-1][1:] == ("bytes=50000-", len(WHEEL) - 50_000)
    assert files_in(own_cache) == WHOLE


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_kill_while_unpacking_and_a_second_fetch(server, start, own_cache):
    first = start(server.url, "kill")
    _, error = first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL, error
    assert any(name.endswith(".tmp") for name in files_in(own_cache)), "it was killed too early or too late"
    assert status(manifest=MANIFEST)[0].state == "missing"
    second = start(server.url)
    out, error = second.communicate(timeout=60)
    assert out == "fetched\n", error
    assert files_in(own_cache) == WHOLE
    assert len(server.downloads) == 1  # the archive had come whole


def test_two_processes_fetch_at_once_and_load_once(server, start, own_cache):
    server.pause_at = 50_000
    both = [start(server.url), start(server.url)]
    wait_for(lambda: server.downloads)
    threading.Event().wait(0.7)  # time for the other one to arrive at the lock
    server.hold.set()
    for process in both:
        out, error = process.communicate(timeout=60)
        assert out == "fetched\n", error
    assert len(server.downloads) == 1
    assert files_in(own_cache) == WHOLE
