"""A package index in miniature: little archives, a manifest for them, and a server that can misbehave."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from chinese_llama_lab.sources.manifest import Manifest, parse_manifest


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel_bytes(members: Iterable[tuple[str, bytes]], *, stored: bool = False) -> bytes:
    buffer = io.BytesIO()
    kind = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w", kind) as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, compress_type=kind)
    return buffer.getvalue()


def sdist_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def manifest_text(
    archives: Mapping[str, tuple[str, bytes]], sources: Mapping[str, tuple[str, Mapping[str, bytes]]]
) -> str:
    """A manifest as TOML.

    Args:
        archives: package name → (archive file name, its bytes).
        sources: source name → (package name, member path → its bytes).
    """
    lines = []
    for name, (archive, data) in archives.items():
        lines += [f"[packages.{name}]", 'version = "1.0"', f'archive = "{archive}"']
        lines += [f'sha256 = "{sha256(data)}"', f"size = {len(data)}"]
    for name, (package, members) in sources.items():
        lines += [f"[sources.{name}]", 'kind = "text"', f'title = "{name}"', 'licence = "CC0"']
        lines += ['purpose = "a test"', 'hub = ""', f'package = "{package}"']
        for member, data in members.items():
            lines += [f"[[sources.{name}.members]]", f"member = {json.dumps(member)}"]
            lines += [f'sha256 = "{sha256(data)}"', f"size = {len(data)}"]
    return "\n".join(lines) + "\n"


def one_source(archive: str, data: bytes, members: Mapping[str, bytes], name: str = "poem") -> Manifest:
    """A manifest of one package `tiny` that carries one source."""
    return parse_manifest(manifest_text({"tiny": (archive, data)}, {name: ("tiny", members)}))


class Index:
    """What the server offers and how it behaves; `requests` records what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}  # archive name → bytes
        self.projects: dict[str, list[str]] = {}  # project → archive names
        self.ranges = True
        self.break_after: list[int] = []  # for each answer in turn, bytes to send before hanging up
        self.status: int | None = None  # answer everything with this
        self.password: str | None = None  # "Basic …" header value that is asked for
        self.compress = False  # gzip in transit, if the client says it can
        self.hold = threading.Event()  # with `pause_at`, wait here in the middle of a file
        self.pause_at: int | None = None
        self.requests: list[tuple[str, str | None, int]] = []  # (path, Range, bytes sent)
        self.hosts: list[str] = []  # the absolute addresses a proxy was asked for
        self.url = ""

    def add(self, project: str, archive: str, data: bytes) -> None:
        self.projects.setdefault(project, []).append(archive)
        self.files[archive] = data

    @property
    def downloads(self) -> list[tuple[str, str | None, int]]:
        return [request for request in self.requests if "/files/" in request[0]]


class _Handler(BaseHTTPRequestHandler):
    index: Index

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        index = self.index
        path = self.path
        if path.startswith("http://"):  # asked as a proxy
            index.hosts.append(path)
            path = "/" + path.split("/", 3)[3]
        if index.status is not None:
            return self._answer(index.status, b"no", "text/plain")
        if index.password is not None and self.headers.get("Authorization") != index.password:
            return self._answer(401, b"who are you?", "text/plain")
        parts = path.strip("/").split("/")
        if parts[0] == "simple" and len(parts) == 2 and parts[1] in index.projects:
            links = "".join(f'<a href="/files/{a}">{a}</a>' for a in index.projects[parts[1]])
            return self._answer(200, f"<html><body>{links}</body></html>".encode(), "text/html")
        if parts[0] == "simple" and len(parts) == 1:
            return self._answer(200, b"<html></html>", "text/html")
        if parts[0] == "files" and parts[-1] in index.files:
            return self._file(index.files[parts[-1]])
        return self._answer(404, b"nothing here", "text/plain")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.index.requests.append((self.path, None, len(body)))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, data: bytes) -> None:
        index = self.index
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked and index.ranges else 0
        if start >= len(data):
            return self._answer(416, b"", "text/plain")
        body = data[start:]
        self.send_response(206 if asked and index.ranges else 200)
        if asked and index.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if index.compress and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        end = index.break_after.pop(0) if index.break_after else len(body)
        sent = body[:end]
        index.requests.append((self.path, asked, len(sent)))
        if index.pause_at is not None:
            self.wfile.write(sent[: index.pause_at])
            self.wfile.flush()
            index.hold.wait(20)
            sent = sent[index.pause_at :]
        with suppress(OSError):  # the client was killed
            self.wfile.write(sent)
        if end < len(body):
            self.close_connection = True


@contextmanager
def serving(index: Index | None = None) -> Iterator[Index]:
    """Serve an index on 127.0.0.1; its `url` is what goes into `PIP_INDEX_URL`."""
    index = index or Index()
    handler = type("Handler", (_Handler,), {"index": index})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    index.url = f"http://127.0.0.1:{server.server_address[1]}/simple/"
    try:
        yield index
    finally:
        index.hold.set()
        server.shutdown()
        server.server_close()


def as_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Archives as a find-links folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
