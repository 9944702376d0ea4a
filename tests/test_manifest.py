"""The manifest: complete, consistent, and clear about what is wrong with one that is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from indexserver import manifest_text, one_source, wheel_bytes

from chinese_llama_lab.errors import SourceError
from chinese_llama_lab.sources.manifest import Member, load_manifest, parse_manifest

PROMISED = [
    "smollm2",
    "llama",
    "mistral",
    "llama-3",
    "qwen",
    "deepseek-v4",
    "peoples-daily",
    "reviews",
    "three-kingdoms",
    "modern-sentences",
    "characters",
    "hsk-sentences",
    "cc-cedict",
    "alpaca-zh",
    "wikipedia-en",
    "c4-en",
    "font-zh",
]


def test_it_holds_what_the_course_promises():
    manifest = load_manifest()
    assert set(PROMISED) <= set(manifest.sources)
    assert {"cl100k", "o200k"} & set(manifest.sources)


def test_every_entry_says_licence_purpose_hash_and_size():
    for source in load_manifest().sources.values():
        assert source.title and source.licence and source.purpose and source.members, source.name
        for file in (source.package, *source.members):
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256), source.name
            assert file.size > 0
        assert source.package.version in source.package.archive
        assert source.package.archive.endswith((".whl", ".tar.gz"))
        assert source.size == sum(member.size for member in source.members)


def test_no_member_lies_outside_its_archive():
    for source in load_manifest().sources.values():
        for member in source.members:
            assert not member.member.startswith("/")
            assert ".." not in member.member.split("/")
            assert Path(member.filename).name == member.filename


def test_an_unknown_source_offers_the_near_ones_and_lists_all():
    with pytest.raises(SourceError) as caught:
        load_manifest()["peoples-dayly"]
    assert "peoples-dayly" in str(caught.value)
    assert "did you mean peoples-daily" in caught.value.remedy
    assert "cc-cedict" in caught.value.remedy


def test_select_takes_names_in_their_order_or_everything():
    manifest = load_manifest()
    assert [s.name for s in manifest.select(["qwen", "llama"])] == ["qwen", "llama"]
    assert [s.name for s in manifest.select()] == list(manifest.sources)


def test_sources_of_one_archive_are_found_together():
    manifest = load_manifest()
    together = {source.name for source in manifest.carried_by(manifest["peoples-daily"].package)}
    assert together == {"peoples-daily", "reviews"}


def test_a_member_is_kept_under_its_own_name_only():
    assert Member("../../etc/passwd", "0" * 64, 1).filename == "passwd"
    assert Member("/etc/passwd", "0" * 64, 1).filename == "passwd"


GOOD = manifest_text({"tiny": ("tiny-1.0.whl", b"x")}, {"poem": ("tiny", {"a/b.txt": b"y"})})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not toml at all [", "cannot be read"),
        ("", "packages"),
        (GOOD.replace('package = "tiny"', 'package = "gone"'), "gone"),
        (GOOD.replace('licence = "CC0"\n', ""), "licence"),
        (GOOD.replace('licence = "CC0"', 'licence = "CC0"\ncolour = "red"'), "colour"),
        (GOOD.replace("size = 1\n", "", 1), "size"),
        ("packages = []\nsources = []\n", "cannot be read"),
        (GOOD + '[sources.poem]\nkind = "twice"\n', "cannot be read"),
        (GOOD.replace('"a/b.txt"', '".."'), "distinct file names"),
    ],
)
def test_a_damaged_manifest_is_refused_with_the_reason(text, said):
    with pytest.raises(SourceError, match=re.escape(said)):
        parse_manifest(text, where="here.toml")


def test_two_members_of_one_name_are_refused():
    with pytest.raises(SourceError, match="distinct file names"):
        one_source("tiny-1.0.whl", wheel_bytes([]), {"a/same.txt": b"1", "b/same.txt": b"2"})
