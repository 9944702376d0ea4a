"""Taking named members out of archives: only whole, ordinary, expected files, and never outside a folder."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from indexserver import sdist_bytes, sha256, wheel_bytes

from chinese_llama_lab.errors import SourceError
from chinese_llama_lab.sources.manifest import Member
from chinese_llama_lab.sources.unpack import extract

TEXT = "鹅鹅鹅，曲项向天歌。".encode()
NAME = "pkg/goose.txt"


def member(name: str = NAME, data: bytes = TEXT) -> Member:
    return Member(name, sha256(data), len(data))


def take(tmp_path: Path, archive: str, data: bytes, wanted: Member | None = None) -> Path:
    wanted = wanted or member()
    path = tmp_path / archive
    path.write_bytes(data)
    target = tmp_path / "out" / wanted.filename
    extract(path, {wanted.member: (wanted, target)})
    return target


def nothing_left(tmp_path: Path) -> bool:
    """Whether neither a target nor a temporary file is anywhere, nor anything outside the folder."""
    out = tmp_path / "out"
    return not (out.exists() and os.listdir(out)) and not (tmp_path / "escaped.txt").exists()


@pytest.fixture(params=["whl", "tar.gz"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def packed(kind: str, members: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    return f"a-1.{kind}", wheel_bytes(members) if kind == "whl" else sdist_bytes(members)


def test_only_the_named_member_is_taken(tmp_path, kind):
    archive = packed(kind, [("pkg/other.txt", b"no"), (NAME, TEXT), ("setup.py", b"raise SystemExit(1)")])
    target = take(tmp_path, *archive)
    assert target.read_bytes() == TEXT
    assert os.listdir(target.parent) == ["goose.txt"]


def test_the_file_has_ordinary_permissions(tmp_path, kind):
    target = take(tmp_path, *packed(kind, [(NAME, TEXT)]))
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(
    "path", ["../escaped.txt", "/escaped.txt", "pkg/../../escaped.txt", "pkg\\escaped.txt"]
)
def test_paths_that_lead_out_are_refused(tmp_path, kind, path):
    with pytest.raises(SourceError, match="leads out of its folder") as caught:
        take(tmp_path, *packed(kind, [(path, TEXT)]), member(path))
    assert "escaped.txt" in caught.value.what and f"a-1.{kind}" in caught.value.where
    assert nothing_left(tmp_path)


def test_other_members_with_such_paths_are_left_alone(tmp_path, kind):
    target = take(tmp_path, *packed(kind, [("../escaped.txt", b"x"), (NAME, TEXT)]))
    assert target.read_bytes() == TEXT and not (tmp_path / "escaped.txt").exists()


@pytest.mark.parametrize(
    "link", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, link):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        info = tarfile.TarInfo(NAME)
        info.type, info.linkname = link, "/etc/passwd"
        file.addfile(info)
    with pytest.raises(SourceError, match="not an ordinary file"):
        take(tmp_path, "a-1.tar.gz", buffer.getvalue())
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFDIR | 0o755, stat.S_IFIFO | 0o600])
def test_links_and_the_like_in_a_zip_are_refused(tmp_path, mode):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        info = zipfile.ZipInfo(NAME)
        info.create_system, info.external_attr = 3, mode << 16
        file.writestr(info, b"/etc/passwd")
    with pytest.raises(SourceError, match="not an ordinary file"):
        take(tmp_path, "a-1.whl", buffer.getvalue())
    assert nothing_left(tmp_path)


def test_an_encrypted_member_is_refused(tmp_path):
    data = bytearray(wheel_bytes([(NAME, TEXT)], stored=True))
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + place] |= 1
    with pytest.raises(SourceError, match="not an ordinary file"):
        take(tmp_path, "a-1.whl", bytes(data))
    assert nothing_left(tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_stands_there_twice_is_refused(tmp_path, kind):
    with pytest.raises(SourceError, match="twice"):
        take(tmp_path, *packed(kind, [(NAME, TEXT), (NAME, TEXT)]))


def test_a_longer_member_is_never_unfolded(tmp_path, kind, full_disk):
    bomb = b"\0" * 30_000_000  # 30 kB in the archive

    archive = packed(kind, [(NAME, bomb)])
    # A disk with room for one byte more than the manifest says: unfolding the bomb would fill it.
    with full_disk(after=1001), pytest.raises(SourceError, match="1001 bytes or more"):
        take(tmp_path, *archive, member(data=b"\0" * 1000))
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("other", [TEXT[:-1] + b"!", TEXT[:-1], b""])
def test_another_content_is_refused_with_both_hashes(tmp_path, kind, other):
    with pytest.raises(SourceError) as caught:
        take(tmp_path, *packed(kind, [(NAME, other)]))
    assert NAME in caught.value.what and sha256(TEXT) in caught.value.what
    assert sha256(other) in caught.value.what
    assert nothing_left(tmp_path)


def test_a_bad_member_leaves_the_old_file_as_it_was(tmp_path, kind):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "goose.txt").write_bytes(b"older")
    with pytest.raises(SourceError):
        take(tmp_path, *packed(kind, [(NAME, b"wrong")]))
    assert (tmp_path / "out" / "goose.txt").read_bytes() == b"older"
    assert os.listdir(tmp_path / "out") == ["goose.txt"]


def test_missing_members_are_named(tmp_path, kind):
    with pytest.raises(SourceError, match=f"does not hold {NAME}"):
        take(tmp_path, *packed(kind, [("pkg/other.txt", TEXT)]))
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_archive_is_damaged(tmp_path, kind, part):
    long = os.urandom(50_000)
    name, data = packed(kind, [(NAME, long)])
    with pytest.raises(SourceError) as caught:
        take(tmp_path, name, data[: int(len(data) * part)], member(data=long))
    assert name in str(caught.value) and caught.value.remedy
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("place", [0.1, 0.25, 0.5, 0.75])
def test_flipped_bytes_are_found(tmp_path, kind, place):
    text = "".join(f"{number} 只鹅；" for number in range(5000)).encode()  # so that it is really deflated
    name, data = packed(kind, [(NAME, text)])
    broken = bytearray(data)
    for offset in range(40):
        broken[int(len(data) * place) + offset] ^= 0xFF
    with pytest.raises(SourceError) as caught:
        take(tmp_path, name, bytes(broken), member(data=text))
    assert name in str(caught.value)
    assert nothing_left(tmp_path)


def test_what_is_no_archive_is_damaged(tmp_path, kind):
    with pytest.raises(SourceError, match="damaged"):
        take(tmp_path, f"a-1.{kind}", b"<html>not found</html>" * 100)


def test_a_full_disk_leaves_nothing(tmp_path, kind, full_disk):
    archive = packed(kind, [(NAME, TEXT)])
    path = tmp_path / archive[0]
    path.write_bytes(archive[1])
    with full_disk(after=3), pytest.raises(SourceError) as caught:
        extract(path, {NAME: (member(), tmp_path / "out" / "goose.txt")})
    assert os.strerror(errno.ENOSPC) in caught.value.what and "LAB_CACHE_DIR" in caught.value.remedy
    assert nothing_left(tmp_path)
