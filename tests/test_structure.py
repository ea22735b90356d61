"""Private things stay private and ARCHITECTURE.md is true; the order of imports is checked by import-linter."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fpsolver"


def module(path):
    """``exits.error`` for fpsolver/exits/error.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = sorted(module(path) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def imported(name):
    """The package's modules that a module imports."""
    folder = name.split(".")[:-1]
    for node in ast.walk(ast.parse((PACKAGE / (name.replace(".", "/") + ".py")).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            source = [*folder[: len(folder) + 1 - node.level], *(node.module or "").split(".")]
            source = ".".join(filter(None, source))
            yield from [source, *(f"{source}.{alias.name}".lstrip(".") for alias in node.names)]


@pytest.mark.parametrize("name", MODULES)
def test_private_modules_serve_their_own_folder(name):
    folder = name.rpartition(".")[0]
    others = [m for m in imported(name) if m in MODULES and "._" in m and m.rpartition(".")[0] != folder]
    assert not others


@pytest.mark.parametrize("name", MODULES)
def test_private_names_serve_their_own_module(name):
    text = (PACKAGE / (name.replace(".", "/") + ".py")).read_text()
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    private = [n for node in imports if node.module for n in (alias.name for alias in node.names) if n.startswith("_")]
    used = re.findall(rf"(?<![\w.])(?:{'|'.join(names) or 'nothing'})\._[a-z]\w*", text)
    assert not private
    assert not used


def test_the_architecture_names_every_folder_and_no_module_that_is_not_there():
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    tree = text[text.index("```\nfpsolver/") :]
    tree = tree[: tree.index("```", 4)]
    folders = {path.parent.name for path in PACKAGE.rglob("__init__.py")}
    assert folders <= set(re.findall(r"(\w+)/", tree))
    assert set(re.findall(r"(\w+)\.py", tree)) <= {name.split(".")[-1] for name in MODULES}


def test_optional_packages_are_not_imported_with_the_package():
    optional = ("gmsh", "meshio", "matplotlib", "pyvista", "slepc4py", "torch", "jax")
    code = f"import fpsolver, sys; print([m for m in {optional} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.strip() == "[]"


def test_all_public_names_exist():
    import fpsolver

    assert all(hasattr(fpsolver, name) for name in fpsolver.__all__)
