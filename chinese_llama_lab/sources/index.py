"""Find and download one archive from the reader's own package index.

Readers use mirrors, proxies and private certificates, and have told pip about them. So the
settings are read from pip itself (`pip config list` merges its files and `PIP_*` variables),
the index is searched with `unearth`, which speaks every index format, and nothing is installed.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinese_llama_lab.errors import SourceError
from chinese_llama_lab.sources.manifest import Package

if TYPE_CHECKING:
    from unearth import Link
    from unearth.fetchers import PyPIClient

DEFAULT_INDEX = "https://pypi.org/simple/"
CHUNK_BYTES = 1 << 20
ATTEMPTS = 4


@dataclass(frozen=True)
class IndexSettings:
    """What pip on this machine would use. `index_urls` is empty when pip is told not to use an index."""

    index_urls: tuple[str, ...] = (DEFAULT_INDEX,)
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    proxy: str | None = None
    certificate: str | None = None
    client_certificate: str | None = None
    timeout: float = 30.0  # seconds without a byte before a connection counts as lost

    @property
    def public(self) -> tuple[str, ...]:
        """The places to look, without passwords, for messages."""
        return tuple(masked(url) for url in (*self.index_urls, *self.find_links))


def masked(text: str) -> str:
    """`text` with the user name and password of every address in it replaced by `***`."""
    return re.sub(r"(?<=://)[^/\s]*@", "***@", text)


@cache
def _pip_config_lines(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    command = [sys.executable, "-m", "pip", "config", "list"]
    # A pip that was told to be quiet would list nothing.
    speaking = {**dict(environment), "PIP_QUIET": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", timeout=60, env=speaking
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(done.stdout.splitlines()) if done.returncode == 0 else ()


def _pip_config(environment: Mapping[str, str]) -> dict[str, str]:
    """pip's merged settings, by option name. Later sections win, the environment wins over files."""
    rank = {"global": 0, "download": 1, "install": 1, ":env:": 2}
    found: dict[str, tuple[int, str]] = {}
    for line in _pip_config_lines(tuple(sorted(environment.items()))):
        matched = re.match(r"(:env:|\w+)\.([\w-]+)=(.*)$", line)
        if not matched or matched[1] not in rank:
            continue
        section, option, literal = matched.groups()
        try:
            value = str(ast.literal_eval(literal))
        except (ValueError, SyntaxError):
            value = literal
        if option not in found or rank[section] >= found[option][0]:
            found[option] = (rank[section], value)
    if not found:  # an environment without pip (uv makes such ones): its variables still count
        for name, value in environment.items():
            if name.startswith("PIP_") and value:
                found[name[4:].lower().replace("_", "-")] = (2, value)
    return {option: value for option, (_, value) in found.items()}


def index_settings(environment: Mapping[str, str] | None = None) -> IndexSettings:
    """Read the reader's index, mirrors, proxy and certificates as pip would."""
    environment = dict(os.environ if environment is None else environment)
    pip = _pip_config(environment)

    def several(option: str) -> tuple[str, ...]:
        return tuple(pip.get(option, "").split())

    offline = pip.get("no-index", "").lower() in ("1", "true", "yes", "on")
    indexes = () if offline else (pip.get("index-url") or DEFAULT_INDEX, *several("extra-index-url"))
    variables = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    certificate = pip.get("cert") or next((environment[v] for v in variables if environment.get(v)), None)
    try:
        timeout = float(pip.get("timeout", pip.get("default-timeout", "30")))
    except ValueError:
        timeout = 30.0
    return IndexSettings(
        index_urls=indexes,
        find_links=several("find-links"),
        trusted_hosts=several("trusted-host"),
        proxy=pip.get("proxy") or None,
        certificate=certificate,
        client_certificate=pip.get("client-cert") or None,
        timeout=timeout,
    )


def open_client(settings: IndexSettings) -> PyPIClient:
    """An HTTP client (also for `file:` addresses) that trusts what the reader's pip trusts."""
    import certifi
    import httpx2  # what unearth speaks HTTP with
    from unearth.fetchers import PyPIClient

    try:
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        if settings.certificate:
            path = Path(settings.certificate)
            context.load_verify_locations(**{"capath" if path.is_dir() else "cafile": str(path)})
    except OSError as error:
        raise SourceError(
            f"the certificate file cannot be read: {error}",
            where=settings.certificate,
            remedy="correct `cert` in pip's configuration, PIP_CERT, REQUESTS_CA_BUNDLE or SSL_CERT_FILE",
        ) from error
    options: dict[str, Any] = {}
    if settings.proxy:  # as for pip, an address without a scheme is an HTTP proxy's
        options["proxy"] = settings.proxy if "://" in settings.proxy else f"http://{settings.proxy}"
    try:
        if settings.proxy:  # unearth would ask trusted hosts directly
            through = httpx2.HTTPTransport(
                verify=False, cert=settings.client_certificate, proxy=options["proxy"]
            )
            options["mounts"] = {f"all://{host}": through for host in settings.trusted_hosts}
        return PyPIClient(
            trusted_hosts=settings.trusted_hosts,
            verify=context,
            cert=settings.client_certificate,
            timeout=settings.timeout,
            follow_redirects=True,
            **options,
        )
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(
            f"pip's proxy or client certificate cannot be used: {masked(str(error))}",
            where=masked(settings.proxy or settings.client_certificate or ""),
            remedy="correct `proxy` and `client-cert` in pip's configuration, PIP_PROXY or PIP_CLIENT_CERT",
        ) from error


def _folder_or_url(place: str) -> str:
    """pip accepts plain folders for `find-links`; unearth wants addresses."""
    path = Path(place).expanduser()
    return path.resolve().as_uri() if path.exists() else place


def find_archive(package: Package, settings: IndexSettings, client: PyPIClient) -> Link:
    """The address of exactly the archive that the manifest names.

    Raises:
        SourceError: no index could be reached, or none of them has this archive any more.
    """
    from unearth import PackageFinder

    # unearth warns of every index that lacks a project; what matters is said below.
    logging.getLogger("unearth").setLevel(logging.ERROR)
    problems: list[str] = []
    seen: set[str] = set()
    answered = False
    places = [("index", url) for url in settings.index_urls]
    places += [("links", _folder_or_url(place)) for place in settings.find_links]
    for kind, place in places:
        option: dict[str, Any] = {"index_urls": [place]} if kind == "index" else {"find_links": [place]}
        finder = PackageFinder(
            session=client,
            trusted_hosts=settings.trusted_hosts,
            ignore_compatibility=True,
            **option,
        )
        offered: set[str] = set()
        try:
            for found in finder.find_all_packages(package.name, allow_yanked=True):
                offered.add(str(found.version))
                if found.link.filename == package.archive:
                    return found.link
            # unearth reports an index that refuses as an empty one.
            refusal = None if offered or kind == "links" else _refusal(place, package, client)
        except Exception as error:  # each index client error has its own class; try the next place
            refusal = f"{type(error).__name__}: {error}"
        if refusal:
            problems.append(masked(f"{place}: {refusal}"))
        else:
            # A folder beside the index may well lack a package; only an index that answers proves anything.
            answered = answered or (kind == "index" and not place.startswith("file:"))
        seen |= offered
    if not settings.index_urls and not seen:
        raise SourceError(
            f"pip is told not to use an index (no-index), and {package.archive} is in none of its folders",
            where="; ".join(settings.public) or "no folder is configured (find-links)",
            remedy="unset PIP_NO_INDEX or pip's `no-index` setting, or set PIP_FIND_LINKS to a folder "
            f"that holds {package.archive}",
        )
    offers = f"{'versions ' + ', '.join(sorted(seen)[-8:]) if seen else 'no version'} of {package.name}"
    if problems and not answered:  # what a folder lacks says nothing about the index that is silent
        raise SourceError(
            f"no package index could be reached for {package.archive} ({_megabytes(package.size)})"
            + (f"; what can be reached offers {offers}" if seen else ""),
            where="; ".join(problems),
            remedy="check the network, proxy and index settings (`chinese-llama-lab doctor`), or set "
            "PIP_INDEX_URL to a mirror that you can reach",
        )
    looked = [*problems, *(url for url in settings.public if not any(p.startswith(url) for p in problems))]
    raise SourceError(
        f"{package.archive} is not on the index any more: it offers {offers} "
        f"({_megabytes(package.size)} are wanted)",
        where="; ".join(looked),
        remedy=f"try PIP_INDEX_URL={DEFAULT_INDEX} (a mirror may lag behind), or obtain {package.archive} "
        "elsewhere and put it into the cache folder's `downloads/`: its sha256 is checked before use",
    )


def _refusal(url: str, package: Package, client: PyPIClient) -> str | None:
    """Why an index offers nothing of a package; None if it just does not have it."""
    from unearth import Link
    from unearth.collector import is_secure_origin

    if url.startswith("file:"):
        return None
    if not is_secure_origin(client, Link(url)):
        host = Link(url).parsed.hostname
        return f"plain http is not trusted; if you trust this host, set PIP_TRUSTED_HOST={host}"
    answer = client.get(f"{url.rstrip('/')}/{package.name}/")
    if answer.status_code in (404, 410):
        return None
    if answer.status_code >= 400:
        return f"HTTP {answer.status_code} {answer.reason_phrase}"
    if "<a " not in answer.text.lower() and "json" not in answer.headers.get("content-type", ""):
        return "the page is no package index (a log-in page of a network, perhaps)"
    return None


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def download(package: Package, target: Path, *, progress: bool = True) -> None:
    """Download an archive to `target`, going on from a part that an earlier try left.

    The part is `target` + `.part`; it becomes `target` only when its sha256 is the manifest's.
    A resumed part with a wrong hash is thrown away and loaded once more from the start.

    Raises:
        SourceError: unreachable, vanished, another file than the manifest's, or a full disk.
    """
    settings = index_settings()
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with open_client(settings) as client:
        link = find_archive(package, settings, client)
        digest = ""
        for _ in range(2):
            resumed = part.exists() and part.stat().st_size > 0
            _stream(package, link.url_without_fragment, part, client, progress)
            digest = sha256_of(part)
            if digest == package.sha256:
                os.replace(part, target)
                return
            part.unlink()
            if not resumed:
                break
    raise SourceError(
        f"{package.archive} is not the file that the manifest names: "
        f"sha256 is {digest}, expected {package.sha256}",
        where=masked(link.url_without_fragment),
        remedy="do not use it. Try another index (PIP_INDEX_URL); if every index serves this file, report it",
    )


def _stream(package: Package, url: str, part: Path, client: PyPIClient, progress: bool) -> None:
    """Append to `part` until the archive is whole; several attempts, each going on where the last ended."""
    from tqdm.auto import tqdm

    problem: Exception | None = None
    for attempt in range(ATTEMPTS):
        have = part.stat().st_size if part.exists() else 0
        if have >= package.size:
            return
        bar = tqdm(
            total=package.size,
            initial=have,
            unit="B",
            unit_scale=True,
            desc=package.archive,
            disable=not progress,
            leave=False,
        )
        try:
            # No compression in transit, and the raw bytes: an archive's hash is that of the file itself.
            headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
            with bar, client.stream("GET", url, headers=headers) as response:
                if response.status_code == 416:  # the part is longer than the file: start over
                    part.unlink(missing_ok=True)
                    continue
                response.raise_for_status()
                fresh = response.status_code != 206
                if fresh and have:
                    bar.reset(total=package.size)
                with part.open("wb" if fresh else "ab") as stream:
                    for block in response.iter_raw():  # as they arrive, so that a break loses nothing
                        if stream.tell() + len(block) > package.size:
                            raise SourceError(
                                f"{package.archive} is longer than the {package.size} bytes of the manifest",
                                where=masked(url),
                                remedy="try another index (PIP_INDEX_URL)",
                            )
                        stream.write(block)
                        bar.update(len(block))
            problem = None
        except SourceError:
            part.unlink(missing_ok=True)
            raise
        except OSError as error:
            if error.errno is None:
                problem = error
            else:  # a full disk, a read-only folder: trying again cannot help
                part.unlink(missing_ok=True)
                raise SourceError(
                    f"{package.archive} could not be written: {error.strerror}",
                    where=str(part.parent),
                    remedy=f"free {_megabytes(package.size)} there, or set LAB_CACHE_DIR to another folder",
                ) from error
        except Exception as error:  # any network error: what arrived is kept, the next attempt goes on
            problem = error
        if part.exists() and part.stat().st_size >= package.size:
            return
        if attempt + 1 < ATTEMPTS:
            time.sleep(0.5 * 2**attempt)
    raise SourceError(
        f"{package.archive} broke off after {part.stat().st_size if part.exists() else 0} "
        f"of {package.size} bytes, {ATTEMPTS} times in a row: {masked(str(problem))}",
        where=masked(url),
        remedy="run the same command again: it goes on where it stopped",
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
