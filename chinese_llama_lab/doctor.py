"""`chinese-llama-lab doctor`: what this machine has, what is wrong with it, and what to do about it.

Every check returns a `Finding`: "ok", "note" (good to know) or "problem" (the course will not run well).
A check that breaks is a problem of its own and does not keep the others from being made.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from chinese_llama_lab import machine
from chinese_llama_lab.errors import LabError
from chinese_llama_lab.paths import cache_dir, repository_root

State = Literal["ok", "note", "problem"]
_SYMBOLS: dict[State, str] = {"ok": "✔", "note": "·", "problem": "✘"}

NEEDED_MEMORY_GIB = 6.0
NEEDED_DISK_GIB = 3.0
NETWORK_SECONDS = 4.0


@dataclass(frozen=True)
class Finding:
    """What a check found, and, where something can be done, what to do."""

    check: str
    state: State
    found: str
    remedy: str = ""


def check_python() -> list[Finding]:
    """The interpreter's version against the range that the course supports."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return [Finding("python", "ok", f"{version} at {sys.executable}")]
    return [
        Finding(
            "python",
            "problem",
            f"{version} is outside 3.10 to 3.13",
            "install a Python of that range, then `make setup PYTHON=python3.12`",
        )
    ]


def check_versions(constraints: Path | None = None) -> list[Finding]:
    """Installed versions against constraints.txt, for everything the course needs directly."""
    root = repository_root()
    path = constraints or (root / "constraints.txt" if root else None)
    if path is None or not path.is_file():
        return [
            Finding(
                "versions",
                "note",
                "there is no constraints.txt to compare with",
                "run from a checkout of the repository",
            )
        ]
    pinned = pins(path.read_text(encoding="utf-8"))
    missing, different = [], []
    for name in _required():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        # A local label (2.13.0+cpu) names a build of the same version.
        if name in pinned and installed.split("+")[0] != pinned[name]:
            different.append(f"{name} {installed} (tested with {pinned[name]})")
    repair = f"`{_python()} -m pip install -c constraints.txt -e '.[dev]'` in the checkout, or `make setup`"
    findings = []
    if missing:
        findings.append(Finding("versions", "problem", f"not installed: {', '.join(missing)}", repair))
    if different:
        findings.append(Finding("versions", "problem", f"other than tested: {', '.join(different)}", repair))
    return findings or [Finding("versions", "ok", "every library has the version the course was tested with")]


def pins(text: str) -> dict[str, str]:
    """The versions that a constraints file pins on this Python and system, by normalised name."""
    from packaging.requirements import Requirement

    found = {}
    for line in text.splitlines():
        line = line.split(" #")[0].strip()
        if not line or line.startswith(("#", "-")):
            continue
        requirement = Requirement(line)
        versions = [specifier.version for specifier in requirement.specifier if specifier.operator == "=="]
        if versions and (requirement.marker is None or requirement.marker.evaluate()):
            found[_normal(requirement.name)] = versions[0]
    return found


def _required() -> list[str]:
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("chinese_llama_lab") or []
    except metadata.PackageNotFoundError:
        return []
    requirements = [Requirement(line) for line in lines]
    chosen = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return sorted({_normal(requirement.name) for requirement in chosen})


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _python() -> str:
    root = repository_root()
    # The name a reader can type, not this machine's path.
    return ".venv/bin/python" if root and Path(sys.prefix) == root / ".venv" else "python"


def check_processor() -> list[Finding]:
    """Cores, and the instruction sets that decide how fast torch runs on them."""
    cores = machine.usable_cores()
    flags = machine.processor_flags()
    wide = [name for flag, name in _INSTRUCTIONS.items() if flag in flags]
    found = f"{machine.processor_name()}, {cores} cores"
    if flags:
        found += f", {', '.join(wide) if wide else 'no wide instructions'}"
    if cores < 2:
        return [Finding("processor", "note", found, "with one core expect the course to take twice as long")]
    if flags and not wide:
        return [Finding("processor", "note", found, "without AVX2 or NEON training is several times slower")]
    return [Finding("processor", "ok", found)]


_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bf16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX bf16",
    "asimd": "NEON",
    "bf16": "bf16",
}


def check_memory() -> list[Finding]:
    """Memory against what the largest notebook needs."""
    gib = machine.memory_bytes() / machine.GIB
    found = f"{gib:.1f} GiB"
    if gib < NEEDED_MEMORY_GIB:
        return [
            Finding(
                "memory",
                "problem",
                f"{found}, less than {NEEDED_MEMORY_GIB:.0f} GiB",
                "close other programs, or run with LAB_PROFILE=smoke",
            )
        ]
    return [Finding("memory", "ok", found)]


def check_gpu() -> list[Finding]:
    """What torch sees, asked in a process of its own: a broken driver must not take the doctor with it."""
    code = (
        "import torch\n"
        "print('GPU', torch.__version__, torch.cuda.is_available())\n"
        "if torch.cuda.is_available():\n"
        "    for i in range(torch.cuda.device_count()):\n"
        "        p = torch.cuda.get_device_properties(i)\n"
        "        print('GPU', f'{p.name}, {p.total_memory / 2**30:.0f} GiB, '\n"
        "              f'compute {p.major}.{p.minor}, bf16 {torch.cuda.is_bf16_supported()}')\n"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return [Finding("gpu", "problem", "torch did not start within two minutes", "see TROUBLESHOOTING.md")]
    lines = [line[4:] for line in done.stdout.splitlines() if line.startswith("GPU ")]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [
            Finding(
                "gpu",
                "problem",
                f"torch cannot be imported: {reason}",
                "`make clean setup` installs it again",
            )
        ]
    if len(lines) > 1:
        return [Finding("gpu", "ok", f"torch {lines[0].split()[0]}; {'; '.join(lines[1:])}")]
    found = f"torch {lines[0].split()[0]} sees no GPU; the course does not need one"
    if shutil.which("nvidia-smi"):
        return [Finding("gpu", "note", found, "a CUDA build of torch would use the NVIDIA driver here")]
    return [Finding("gpu", "ok", found)]


def check_cache() -> list[Finding]:
    """The cache folder: whether it can be written, and which sources are in it."""
    folder = cache_dir()
    parent = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        return [
            Finding(
                "cache", "problem", f"{folder} cannot be written to", "set LAB_CACHE_DIR to a folder that can"
            )
        ]
    from chinese_llama_lab.sources.fetch import packages_to_download, status

    states = status()
    here = [item for item in states if item.state == "here"]
    findings = [
        Finding("cache", "ok", f"{folder}: {len(here)} of {len(states)} sources, {_size(_used(folder))}")
    ]
    for item in here:
        findings.append(Finding("cache", "ok", f"{item.source.name}, {_size(item.source.size)}"))
    damaged = [item.source.name for item in states if item.state == "damaged"]
    missing = [item.source.name for item in states if item.state == "missing"]
    if damaged:
        findings.append(
            Finding(
                "cache",
                "problem",
                f"damaged: {', '.join(damaged)}",
                f"`chinese-llama-lab fetch {' '.join(damaged)}` fetches them again",
            )
        )
    if missing:
        size = sum(package.size for package in packages_to_download(missing))
        findings.append(
            Finding(
                "cache",
                "note",
                f"not here: {', '.join(missing)}",
                f"`chinese-llama-lab fetch` gets them, {_size(size)} to download",
            )
        )
    return findings


def _used(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() and not path.is_symlink() else 0
        except OSError:  # a file that another process has just moved
            continue
    return total


def _size(size: int) -> str:
    if size >= 10**9:
        return f"{size / 10**9:.1f} GB"
    return f"{size / 10**6:.1f} MB" if size >= 10**5 else f"{size / 1000:.1f} kB"


def check_disk() -> list[Finding]:
    """Space where the cache folder is."""
    folder = cache_dir()
    place = next((p for p in (folder, *folder.parents) if p.exists()), Path.cwd())
    free = shutil.disk_usage(place).free / machine.GIB
    if free < NEEDED_DISK_GIB:
        return [
            Finding(
                "disk",
                "problem",
                f"only {free:.1f} GiB free beside the cache",
                "make room, or set LAB_CACHE_DIR to a folder on another disk",
            )
        ]
    return [Finding("disk", "ok", f"{free:.0f} GiB free beside the cache")]


def check_index() -> list[Finding]:
    """Whether the reader's own package index answers. It is a problem only while sources are missing."""
    from chinese_llama_lab.sources.fetch import is_offline, packages_to_download
    from chinese_llama_lab.sources.index import index_settings, masked, open_client

    if is_offline():
        return [Finding("index", "note", "not asked: LAB_OFFLINE is set")]
    settings = index_settings()
    if not settings.index_urls:
        return [Finding("index", "note", "pip is told to use no index (no-index)")]
    findings = []
    unreached: State = "problem" if packages_to_download() else "note"
    with open_client(settings) as client:
        for url in settings.index_urls:
            if url.startswith("file:"):
                findings.append(_local_index(url))
                continue
            address = f"{url.rstrip('/')}/packaging/"
            try:
                answer = client.get(address, timeout=NETWORK_SECONDS)
                reached, said = answer.status_code < 400, f"answers {answer.status_code}"
            except Exception as error:  # each HTTP library has its own; any of them means: not reached
                reached, said = False, without_secrets(f"{type(error).__name__}: {error}")
            # The second and later indexes need not hold the package asked for.
            if reached or (url != settings.index_urls[0] and said == "answers 404"):
                findings.append(Finding("index", "ok", f"{masked(url)} can be reached"))
            else:
                findings.append(
                    Finding(
                        "index",
                        unreached if url == settings.index_urls[0] else "note",
                        f"{masked(url)} cannot be reached: {said}",
                        "what is in the cache works; to fetch more, see TROUBLESHOOTING.md",
                    )
                )
    return findings


def _local_index(url: str) -> Finding:
    if Path(url2pathname(urlsplit(url).path)).exists():
        return Finding("index", "ok", f"{url} is here")
    return Finding("index", "note", f"{url} does not exist", "correct index-url in pip's configuration")


def check_hub() -> list[Finding]:
    """Whether the Hugging Face hub answers; only the `gpu` profile needs it."""
    from chinese_llama_lab.sources.fetch import is_offline

    if is_offline():
        return [Finding("hub", "note", "not asked: LAB_OFFLINE is set")]
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return [Finding("hub", "note", "not asked: HF_HUB_OFFLINE is set")]
    from chinese_llama_lab.sources.hub import hub_endpoint, hub_reachable

    shown = without_secrets(hub_endpoint())
    if hub_reachable(timeout=NETWORK_SECONDS):
        return [Finding("hub", "ok", f"{shown} can be reached")]
    remedy = "only hub models need it; the course runs without"
    return [Finding("hub", "note", f"{shown} cannot be reached", remedy)]


def without_secrets(text: str) -> str:
    """`text` with the user names, passwords and tokens of every address in it masked."""
    text = re.sub(r"([a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@]*@", r"\1***@", text)
    return re.sub(r"(?i)\b(token|password|key|secret)=[^&\s]+", r"\1=***", text)


def check_fonts() -> list[Finding]:
    """Whether a figure can show Chinese."""
    from chinese_llama_lab import plots
    from chinese_llama_lab.sources.fetch import status

    if plots.has_chinese_font() or status(["font-zh"])[0].state == "here":
        return [Finding("fonts", "ok", f"{plots.CHINESE_FONT} is here: figures show Chinese")]
    return [
        Finding(
            "fonts",
            "note",
            "the Chinese font is not here yet: figures would show boxes",
            "`chinese-llama-lab fetch font-zh`",
        )
    ]


CHECKS: dict[str, Callable[[], list[Finding]]] = {
    "python": check_python,
    "versions": check_versions,
    "processor": check_processor,
    "memory": check_memory,
    "gpu": check_gpu,
    "cache": check_cache,
    "disk": check_disk,
    "index": check_index,
    "hub": check_hub,
    "fonts": check_fonts,
}


def examine(checks: dict[str, Callable[[], list[Finding]]] | None = None) -> list[Finding]:
    """Make every check; one that breaks is reported and the next is made."""
    findings: list[Finding] = []
    for name, check in (checks or CHECKS).items():
        try:
            findings += check()
        except LabError as error:
            said, remedy = without_secrets(error.what), without_secrets(error.remedy or "")
            findings.append(Finding(name, "problem", said, remedy))
        except Exception as error:
            said = without_secrets(f"{type(error).__name__}: {error}").splitlines()[0]
            findings.append(
                Finding(
                    name,
                    "problem",
                    f"this check could not be made: {said}",
                    "`make setup`; if it stays, report it with the output of `doctor --json`",
                )
            )
    return findings


def report(findings: list[Finding]) -> str:
    """The findings as text, one line each and the remedy under it."""
    lines = []
    last = ""
    for finding in findings:
        name = finding.check if finding.check != last else ""
        last = finding.check
        lines.append(f"{_SYMBOLS[finding.state]} {name:<10} {finding.found}")
        if finding.remedy:
            lines.append(f"{'':13}what to do: {finding.remedy}")
    problems = sum(finding.state == "problem" for finding in findings)
    lines.append("no problems" if not problems else f"{problems} problem{'s' if problems > 1 else ''}")
    return "\n".join(lines)


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor`; its `handler` returns 1 if there is a problem and 0 otherwise."""
    parser = subparsers.add_parser("doctor", help="what this machine has, and what to do about what is wrong")
    parser.add_argument("--json", action="store_true", help="for programs: a list of findings")
    parser.set_defaults(handler=doctor_command)


def doctor_command(arguments: argparse.Namespace) -> int:
    """Print the findings."""
    findings = examine()
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=1))
    else:
        print(report(findings))
    return int(any(finding.state == "problem" for finding in findings))
