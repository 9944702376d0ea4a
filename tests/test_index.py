"""The reader's index settings, finding an archive, and downloading it whole or not at all."""

from __future__ import annotations

import base64
import errno
import os
import socket
from pathlib import Path

import pytest
from indexserver import Index, as_folder, one_source, serving, sha256, wheel_bytes

from chinese_llama_lab.errors import SourceError
from chinese_llama_lab.sources import index
from chinese_llama_lab.sources.index import DEFAULT_INDEX, IndexSettings, index_settings, masked
from chinese_llama_lab.sources.manifest import Package

POEM = {"tiny/poem.txt": "床前明月光".encode() * 500}
# Not compressible, so that the archive is long enough to break in the middle.
NOISE = {"tiny/noise.bin": bytes(os.urandom(300_000))}
WHEEL = wheel_bytes(NOISE.items(), stored=True)
NAME = "tiny-1.0-py3-none-any.whl"


def package(data: bytes = WHEEL, archive: str = NAME) -> Package:
    return Package("tiny", "1.0", archive, sha256(data), len(data))


@pytest.fixture(autouse=True)
def quick(plain_pip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index.time, "sleep", lambda _: None)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch):
    """Set the index settings without asking pip, which takes half a second."""

    def settings(**fields) -> None:
        monkeypatch.setattr(index, "index_settings", lambda: IndexSettings(**fields))

    return settings


@pytest.fixture
def server():
    with serving() as running:
        running.add("tiny", NAME, WHEEL)
        yield running


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/simple/"


# --- settings -------------------------------------------------------------------------------------


def test_without_settings_it_is_pypi():
    assert index_settings().index_urls == (DEFAULT_INDEX,)


def test_environment_variables_count_as_they_do_for_pip(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a.example/simple https://b.example/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "mirror.example a.example:8080")
    monkeypatch.setenv("PIP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("PIP_CERT", "/some/ca.pem")
    monkeypatch.setenv("PIP_CLIENT_CERT", "/some/client.pem")
    monkeypatch.setenv("PIP_FIND_LINKS", "/some/folder")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "7")
    assert index_settings() == IndexSettings(
        index_urls=(
            "https://mirror.example/simple",
            "https://a.example/simple",
            "https://b.example/simple",
        ),
        find_links=("/some/folder",),
        trusted_hosts=("mirror.example", "a.example:8080"),
        proxy="http://proxy.example:3128",
        certificate="/some/ca.pem",
        client_certificate="/some/client.pem",
        timeout=7.0,
    )


CONFIGURATION = """[global]
index-url = https://file.example/simple
timeout = 11
[download]
extra-index-url =
    https://one.example/simple
    https://two.example/simple
"""


@pytest.mark.parametrize("quiet", ["", "2"])
def test_pips_configuration_file_counts_and_the_environment_wins(tmp_path, monkeypatch, quiet):
    path = tmp_path / "pip.conf"
    path.write_text(CONFIGURATION, encoding="utf-8")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(path))
    if quiet:  # a quiet pip prints no configuration unless it is told to speak
        monkeypatch.setenv("PIP_QUIET", quiet)
    settings = index_settings()
    expected = ("https://file.example/simple", "https://one.example/simple", "https://two.example/simple")
    assert settings.index_urls == expected
    assert settings.timeout == 11
    monkeypatch.setenv("PIP_INDEX_URL", "https://environment.example/simple")
    assert index_settings().index_urls[0] == "https://environment.example/simple"


def test_no_index_leaves_only_find_links(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/some/folder")
    settings = index_settings()
    assert settings.index_urls == () and settings.find_links == ("/some/folder",)


def test_certificate_variables_of_other_tools_are_a_fallback(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/some/bundle.pem")
    assert index_settings().certificate == "/some/bundle.pem"


def test_an_environment_without_pip_still_has_its_variables(monkeypatch):
    monkeypatch.setattr(index, "_pip_config_lines", lambda _: ())
    assert index_settings({"PIP_INDEX_URL": "https://uv.example/simple"}).index_urls == (
        "https://uv.example/simple",
    )


def test_a_missing_certificate_file_is_named(use, tmp_path):
    use(certificate="/no/such/ca.pem")
    with pytest.raises(SourceError) as caught:
        index.download(package(), tmp_path / NAME, progress=False)
    assert caught.value.where == "/no/such/ca.pem" and "PIP_CERT" in caught.value.remedy


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://pypi.org/simple/", "https://pypi.org/simple/"),
        ("https://me:secret@host.example:8443/simple?q=1", "https://***@host.example:8443/simple?q=1"),
        ("https://token@host.example/simple", "https://***@host.example/simple"),
        ("https://me:se@cret@host.example/simple", "https://***@host.example/simple"),
        ("https://me:secret@host.example:port/simple", "https://***@host.example:port/simple"),
        ("asked https://a:secret@h/x and https://b:secret@h/y", "asked https://***@h/x and https://***@h/y"),
    ],
)
def test_passwords_are_masked(url, shown):
    assert masked(url) == shown


# --- finding and downloading ----------------------------------------------------------------------


def test_download_from_an_index(server, use, tmp_path):
    use(index_urls=(server.url,))
    index.download(package(), tmp_path / NAME, progress=False)
    assert (tmp_path / NAME).read_bytes() == WHEEL
    assert os.listdir(tmp_path) == [NAME]
    assert len(server.downloads) == 1


@pytest.mark.parametrize("as_uri", [False, True])
def test_download_from_a_find_links_folder(use, tmp_path, as_uri):
    links = as_folder(tmp_path / "links with a space", {NAME: WHEEL})
    use(index_urls=(), find_links=(links.as_uri() if as_uri else str(links),))
    index.download(package(), tmp_path / NAME, progress=False)
    assert (tmp_path / NAME).read_bytes() == WHEEL


def test_the_second_index_serves_what_the_first_lacks(server, use, tmp_path):
    with serving() as lacking:
        use(index_urls=(lacking.url, server.url))
        index.download(package(), tmp_path / NAME, progress=False)
        assert lacking.requests and not lacking.downloads
    assert (tmp_path / NAME).exists()


def test_the_second_index_serves_when_the_first_is_down(server, use, tmp_path):
    use(index_urls=(closed_port(), server.url))
    index.download(package(), tmp_path / NAME, progress=False)
    assert (tmp_path / NAME).exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_or_starts_over(server, use, tmp_path, ranges):
    server.ranges = ranges
    server.break_after = [100_000, 50_000]
    use(index_urls=(server.url,))
    index.download(package(), tmp_path / NAME, progress=False)
    assert (tmp_path / NAME).read_bytes() == WHEEL
    asked = [(asked, sent) for _, asked, sent in server.downloads]
    if ranges:  # each attempt asks for the rest alone: no byte travels twice
        first, second, third = asked
        assert first == (None, 100_000)
        assert second == ("bytes=100000-", 50_000)
        assert third == ("bytes=150000-", len(WHEEL) - 150_000)
    else:
        assert [sent for _, sent in asked] == [100_000, 50_000, len(WHEEL)]


def test_a_part_of_an_earlier_run_is_gone_on_with(server, use, tmp_path):
    use(index_urls=(server.url,))
    (tmp_path / f"{NAME}.part").write_bytes(WHEEL[:123_456])
    index.download(package(), tmp_path / NAME, progress=False)
    assert (tmp_path / NAME).read_bytes() == WHEEL
    assert server.downloads[0][1:] == ("bytes=123456-", len(WHEEL) - 123_456)


@pytest.mark.parametrize("part", [b"something else" * 1000, WHEEL + b"too much", b"x" * len(WHEEL)])
def test_a_foreign_part_is_thrown_away_and_loaded_anew(server, use, tmp_path, part):
    use(index_urls=(server.url,))
    (tmp_path / f"{NAME}.part").write_bytes(part)
    index.download(package(), tmp_path / NAME, progress=False)
    assert (tmp_path / NAME).read_bytes() == WHEEL


def test_a_connection_that_always_breaks_says_how_to_go_on(server, use, tmp_path):
    server.break_after = [10_000] * 50
    use(index_urls=(server.url,))
    with pytest.raises(SourceError, match="broke off") as caught:
        index.download(package(), tmp_path / NAME, progress=False)
    assert "run the same command again" in caught.value.remedy
    part = tmp_path / f"{NAME}.part"
    assert part.read_bytes() == WHEEL[: 10_000 * index.ATTEMPTS]
    server.break_after = []
    index.download(package(), tmp_path / NAME, progress=False)
    assert (tmp_path / NAME).read_bytes() == WHEEL


def test_compression_in_transit_does_not_change_the_archive(server, use, tmp_path):
    server.compress = True
    use(index_urls=(server.url,))
    index.download(package(), tmp_path / NAME, progress=False)
    assert (tmp_path / NAME).read_bytes() == WHEEL


def test_a_wrong_hash_is_refused_and_named(server, use, tmp_path):
    other = bytes([WHEEL[0] ^ 1]) + WHEEL[1:]
    server.files[NAME] = other
    use(index_urls=(server.url,))
    with pytest.raises(SourceError) as caught:
        index.download(package(), tmp_path / NAME, progress=False)
    assert (
        NAME in caught.value.what
        and sha256(other) in caught.value.what
        and sha256(WHEEL) in str(caught.value)
    )
    assert os.listdir(tmp_path) == []


def test_a_longer_file_is_refused(server, use, tmp_path):
    server.files[NAME] = WHEEL + b"more"
    use(index_urls=(server.url,))
    with pytest.raises(SourceError, match=f"longer than the {len(WHEEL)} bytes"):
        index.download(package(), tmp_path / NAME, progress=False)
    assert os.listdir(tmp_path) == []


def test_a_shorter_file_is_refused(server, use, tmp_path):
    server.files[NAME] = WHEEL[:-1]
    use(index_urls=(server.url,))
    with pytest.raises(SourceError, match=NAME):
        index.download(package(), tmp_path / NAME, progress=False)
    assert not (tmp_path / NAME).exists()


def test_an_archive_that_vanished_names_versions_and_remedy(server, use, tmp_path):
    server.projects["tiny"] = ["tiny-2.0-py3-none-any.whl", "tiny-3.0-py3-none-any.whl"]
    use(index_urls=(server.url,))
    with pytest.raises(SourceError) as caught:
        index.download(package(), tmp_path / NAME, progress=False)
    assert f"{NAME} is not on the index any more" in caught.value.what
    assert "2.0, 3.0" in caught.value.what
    assert server.url in caught.value.where
    assert "PIP_INDEX_URL" in caught.value.remedy and "downloads/" in caught.value.remedy


def test_a_project_that_vanished_is_said_so(use, tmp_path):
    with serving() as empty:
        use(index_urls=(empty.url,))
        with pytest.raises(SourceError, match="no version of tiny"):
            index.download(package(), tmp_path / NAME, progress=False)


def test_a_vanished_file_behind_a_link_is_an_error_with_its_status(server, use, tmp_path):
    del server.files[NAME]
    use(index_urls=(server.url,))
    with pytest.raises(SourceError, match="404"):
        index.download(package(), tmp_path / NAME, progress=False)
    assert os.listdir(tmp_path) == []


def test_an_unreachable_index_is_said_so(use, tmp_path):
    url = closed_port()
    use(index_urls=(url,))
    with pytest.raises(SourceError, match="no package index could be reached") as caught:
        index.download(package(), tmp_path / NAME, progress=False)
    assert url in caught.value.where and "MB" in caught.value.what
    assert "proxy" in caught.value.remedy


@pytest.mark.parametrize("status", [403, 500, 503])
def test_an_index_that_refuses_is_not_called_empty(server, use, tmp_path, status):
    server.status = status
    use(index_urls=(server.url,))
    with pytest.raises(SourceError) as caught:
        index.download(package(), tmp_path / NAME, progress=False)
    assert str(status) in str(caught.value)
    assert "any more" not in str(caught.value)


def test_an_index_that_is_down_is_named_beside_one_that_lacks_the_archive(use, tmp_path):
    down = closed_port()
    with serving() as lacking:
        lacking.add("tiny", "tiny-9.0-py3-none-any.whl", b"")
        use(index_urls=(down, lacking.url))
        with pytest.raises(SourceError) as caught:
            index.download(package(), tmp_path / NAME, progress=False)
    assert "9.0" in caught.value.what
    assert f"{down}: ConnectError" in caught.value.where


def test_plain_http_that_is_not_trusted_is_refused_with_the_remedy(use, tmp_path):
    use(index_urls=("http://mirror.example/simple/",))
    with pytest.raises(SourceError) as caught:
        index.download(package(), tmp_path / NAME, progress=False)
    assert "PIP_TRUSTED_HOST" in str(caught.value) and "mirror.example" in str(caught.value)


def test_no_index_at_all_is_said_so(use, tmp_path):
    use(index_urls=(), find_links=(str(tmp_path),))
    with pytest.raises(SourceError, match=NAME):
        index.download(package(), tmp_path / NAME, progress=False)


@pytest.mark.parametrize("trusted", [(), ("index.example",)])
def test_the_proxy_of_pip_is_used(server, use, tmp_path, trusted):
    # The address does not exist; only the proxy can answer for it.
    proxy = server.url.removesuffix("/simple/")
    use(index_urls=("http://index.example/simple/",), proxy=proxy, trusted_hosts=trusted)
    if trusted:
        index.download(package(), tmp_path / NAME, progress=False)
        assert (tmp_path / NAME).read_bytes() == WHEEL
        assert server.hosts[-1] == f"http://index.example/files/{NAME}"
    else:
        with pytest.raises(SourceError, match="PIP_TRUSTED_HOST"):
            index.download(package(), tmp_path / NAME, progress=False)
        assert server.hosts == []


def test_a_proxy_without_a_scheme_is_an_http_proxy(server, use, tmp_path):
    proxy = server.url.removesuffix("/simple/").removeprefix("http://")
    use(index_urls=("http://index.example/simple/",), proxy=proxy, trusted_hosts=("index.example",))
    index.download(package(), tmp_path / NAME, progress=False)
    assert server.hosts


def test_an_impossible_proxy_is_named_without_its_password(use, tmp_path):
    use(proxy="gopher://me:s3cret@proxy.example")
    with pytest.raises(SourceError) as caught:
        index.download(package(), tmp_path / NAME, progress=False)
    assert "PIP_PROXY" in caught.value.remedy and "proxy.example" in caught.value.where
    assert "s3cret" not in str(caught.value)


def test_a_password_in_the_address_is_used_and_never_shown(server, use, tmp_path):
    server.password = "Basic " + base64.b64encode(b"reader:s3cret").decode()
    url = server.url.replace("http://", "http://reader:s3cret@")
    use(index_urls=(url,))
    index.download(package(), tmp_path / NAME, progress=False)
    assert (tmp_path / NAME).read_bytes() == WHEEL


@pytest.mark.parametrize(
    "trouble", ["wrong password", "vanished", "breaks", "hash", "longer", "status", "down"]
)
def test_no_message_shows_a_password(server, use, tmp_path, trouble):
    url = server.url
    if trouble == "wrong password":
        server.password = "Basic other"
    elif trouble == "vanished":
        server.projects["tiny"] = ["tiny-2.0-py3-none-any.whl"]
    elif trouble == "breaks":
        server.break_after = [1] * 50
    elif trouble == "hash":
        server.files[NAME] = b"!" * len(WHEEL)
    elif trouble == "longer":
        server.files[NAME] = WHEEL * 2
    elif trouble == "status":
        del server.files[NAME]
    else:
        url = closed_port()
    use(index_urls=(url.replace("http://", "http://reader:s3cret@"),), proxy=None)
    with pytest.raises(SourceError) as caught:
        index.download(package(), tmp_path / NAME, progress=False)
    assert "s3cret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_a_broken_proxy_is_named_without_its_password(use, tmp_path):
    proxy = closed_port().replace("http://", "http://me:s3cret@").removesuffix("/simple/")
    use(index_urls=("https://index.example/simple/",), proxy=proxy)
    with pytest.raises(SourceError, match="no package index could be reached") as caught:
        index.download(package(), tmp_path / NAME, progress=False)
    assert "s3cret" not in str(caught.value)


def test_a_full_disk_leaves_no_part(server, use, tmp_path, monkeypatch, full_disk):
    use(index_urls=(server.url,))
    with full_disk(after=1000), pytest.raises(SourceError) as caught:
        index.download(package(), tmp_path / NAME, progress=False)
    assert os.strerror(errno.ENOSPC) in str(caught.value)
    assert "LAB_CACHE_DIR" in caught.value.remedy and str(tmp_path) in caught.value.where
    assert os.listdir(tmp_path) == []
    assert len(server.downloads) == 1  # trying again cannot help


def test_a_bar_is_drawn_when_asked_for(server, use, tmp_path, capsys):
    use(index_urls=(server.url,))
    index.download(package(), tmp_path / NAME, progress=True)
    assert NAME in capsys.readouterr().err


def test_settings_show_places_without_passwords():
    settings = IndexSettings(index_urls=("https://a:b@h.example/simple",), find_links=("/folder",))
    assert settings.public == ("https://***@h.example/simple", "/folder")


def test_the_helper_makes_a_whole_wheel(tmp_path):
    manifest = one_source(NAME, wheel_bytes(POEM.items()), POEM)
    assert manifest["poem"].size == len(POEM["tiny/poem.txt"])
    assert isinstance(Index().files, dict) and isinstance(tmp_path, Path)
