"""Who may know whom, and how little an import costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import chinese_llama_lab

PACKAGE = Path(chinese_llama_lab.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "transformers", "numpy", "matplotlib", "tokenizers", "datasets", "unearth", "IPython")
GROUND = {"errors", "paths"}
# Layer → the parts of the package that it may import. What is not listed may import anything.
MAY_KNOW = {
    "errors": set(),
    "paths": {"errors"},
    "sources": {*GROUND, "sources"},
    "tokenization": {*GROUND, "sources", "tokenization"},
    "results": {*GROUND, "machine", "profiles"},
    "ceval": {*GROUND, "__version__", "ceval", "results", "sources", "toml"},
    "strict_table": {"errors"},
    "claims": {*GROUND, "claims", "results", "strict_table"},
    "limits": {*GROUND, "ceval", "limits", "results", "sources", "strict_table", "tokenization"},
    "plots": {*GROUND, "sources", "tokenization"},
}
# The one step upwards that is allowed, inside a function: each names its reason.
EXCEPTIONS = {
    ("tokenization/commands.py", "plots"): "the command draws what it measured",
    ("ceval/options.py", "quantization"): "the commands load models in 4 and 8 bits too",
    ("sources/models.py", "shipped"): "the project's own models load by name, as SmolLM2 does",
    ("sources/models.py", "tokenization"): "a GGUF file holds a model and its vocabulary",
}


def imports(path: Path) -> set[str]:
    """Parts of the package that a module imports when it runs; not those for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            module = node.module or ""
            found |= (
                {f"{module}.{alias.name}" for alias in node.names}
                if module == "chinese_llama_lab"
                else {module}
            )
    inside = (name.split(".") for name in found if name.startswith("chinese_llama_lab."))
    return {parts[1] for parts in inside}


@pytest.mark.parametrize(
    "module", ["chinese_llama_lab", "chinese_llama_lab.cli", "chinese_llama_lab.sources.fetch"]
)
def test_an_import_loads_no_heavy_library(module):
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_parser_is_built_without_heavy_libraries():
    found = f"[name for name in {HEAVY!r} if name in sys.modules]"
    code = f"import sys; from chinese_llama_lab.cli import build_parser; build_parser(); print(*{found})"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_layer_knows_only_those_below(path):
    name = path.relative_to(PACKAGE).as_posix()
    layer = name.split("/")[0].removesuffix(".py")
    if layer not in MAY_KNOW:
        assert "cli" not in imports(path) or name in ("__main__.py", "__init__.py"), f"{name} imports cli"
        return
    allowed = MAY_KNOW[layer] | {part for (module, part) in EXCEPTIONS if module == name}
    assert imports(path) <= allowed, f"{name} imports {imports(path) - allowed}"


def test_the_exceptions_are_still_needed():
    for module, part in EXCEPTIONS:
        assert part in imports(PACKAGE / module)


def test_the_public_names_are_there():
    for name in chinese_llama_lab.__all__:
        assert getattr(chinese_llama_lab, name) is not None
    assert set(chinese_llama_lab.__all__) <= set(dir(chinese_llama_lab))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = chinese_llama_lab.nonsense


def test_no_pickle_no_remote_code_no_shell():
    for path in MODULES:
        source = path.read_text(encoding="utf-8")
        for forbidden in (
            "import pickle",
            "torch.load(",
            "trust_remote_code=True",
            "shell=True",
            "eval(" + '"',
        ):
            assert forbidden not in source, f"{path.name} has {forbidden}"


def test_text_files_are_opened_with_their_encoding():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                keywords = {keyword.arg for keyword in node.keywords}
                if node.func.attr in ("read_text", "write_text"):
                    assert "encoding" in keywords, f"{path.name}, line {node.lineno}"
