"""environment.yml, pyproject.toml, constraints.txt and the Makefile install one and the same thing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import chinese_llama_lab

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(text("pyproject.toml"))["project"]
    return table


@pytest.fixture(scope="module")
def conda() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text("environment.yml"))
    return loaded


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints() -> list[Requirement]:
    lines = (line.strip() for line in text("constraints.txt").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def environment(python: str, platform: str = "linux") -> dict[str, str]:
    values: dict[str, str] = {key: str(value) for key, value in default_environment().items()}
    values |= {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": platform}
    values |= {"os_name": "nt" if platform == "win32" else "posix", "extra": ""}
    return values


def holds(requirement: Requirement, values: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(values)


def pip_lines(conda: dict[str, Any]) -> list[str]:
    (pip,) = [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)]
    return list(pip)


def test_conda_and_make_give_pip_the_same_words(conda: dict[str, Any]) -> None:
    assert pip_lines(conda) == ["-c constraints.txt", "-e .[dev]"]
    (command,) = re.findall(r"-m pip install .*", text("Makefile"))
    assert "-c constraints.txt" in command and "-e '.[dev]'" in command


def test_conda_takes_its_python_from_the_same_range(conda: dict[str, Any], project: dict[str, Any]) -> None:
    (python,) = [e for e in conda["dependencies"] if isinstance(e, str) and e.startswith("python")]
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(project["requires-python"])
    assert "pip" in conda["dependencies"]


def test_make_accepts_the_same_range(project: dict[str, Any]) -> None:
    (low, high) = re.findall(r"\((3), (\d+)\)", text("Makefile"))
    allowed = SpecifierSet(project["requires-python"])
    assert [f"3.{m}" for m in range(7, 20) if f"3.{m}" in allowed] == list(PYTHONS)
    assert (".".join(low), ".".join(high)) == (PYTHONS[0], PYTHONS[-1])
    for python in PYTHONS:
        assert f"python{python}" in text("Makefile")


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_exactly_once(project: dict[str, Any], python: str) -> None:
    values = environment(python)
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins = [normal(pin.name) for pin in constraints() if holds(pin, values)]
    assert len(pins) == len(set(pins)), "two pins of one library hold for this Python"
    for requirement in map(Requirement, wanted):
        if holds(requirement, values):
            assert normal(requirement.name) in pins, f"{requirement.name} is not in constraints.txt"


def test_every_line_of_the_constraints_is_one_exact_pin() -> None:
    for pin in constraints():
        assert [specifier.operator for specifier in pin.specifier] == ["=="], str(pin)


def test_torch_is_pinned_and_its_cuda_libraries_are_left_to_it() -> None:
    pins = {normal(pin.name): str(pin.specifier) for pin in constraints()}
    assert pins["torch"] == "==2.13.0"
    assert not [name for name in pins if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_versions_live_in_the_constraints_alone(project: dict[str, Any]) -> None:
    for requirement in map(Requirement, project["dependencies"]):
        assert not requirement.specifier, f"{requirement}: put the version into constraints.txt"


def test_what_is_installed_here_is_what_was_pinned(project: dict[str, Any]) -> None:
    from importlib import metadata

    values = environment(".".join(map(str, sys.version_info[:2])), sys.platform)
    values["python_full_version"] = ".".join(map(str, sys.version_info[:3]))
    pins = {normal(pin.name): pin for pin in constraints() if holds(pin, values)}
    for requirement in map(Requirement, project["dependencies"]):
        if holds(requirement, values):
            installed = Version(metadata.version(requirement.name)).public
            assert pins[normal(requirement.name)].specifier.contains(installed), requirement.name


def test_versions_agree() -> None:
    (cited,) = re.findall(r"^version: (.+)$", text("CITATION.cff"), re.MULTILINE)
    assert cited == chinese_llama_lab.__version__


def test_the_citation_has_what_the_format_requires() -> None:
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"] and citation["title"] and citation["authors"]
    assert citation["license"] == "Apache-2.0"


def test_the_licence_is_there_in_full() -> None:
    licence = text("LICENSE")
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence


@pytest.mark.parametrize(
    "name", ["Makefile", "environment.yml", "constraints.txt", "pyproject.toml", ".ci/run"]
)
def test_no_machine_is_named(name: str) -> None:
    assert not re.search(r"/(root|home|Users|work|opt)/|file:///|://[^/\s]*@", text(name))


@pytest.mark.skipif(sys.platform == "win32", reason="make is no part of Windows")
def test_make_without_a_target_lists_the_targets() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("course", "lab", "test", "notebooks", "setup", "fetch", "lint", "clean"):
        assert f"make {target}" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="make is no part of Windows")
def test_make_says_so_when_the_python_named_is_none() -> None:
    done = subprocess.run(
        ["make", "setup", "PYTHON=no-such-python"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "No Python from 3.10 to 3.13 was found under the name no-such-python" in done.stderr
    assert "what to do" in done.stderr
