"""The architecture that the README draws is the one that is there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fpsolver"

# imports go downwards only: a module may import those above it
ORDER = (
    "_errors _log _compat _petsc _meshfile _meshes domain fields landscapes noise process schemes boundary _assembly "
    "generator solution initial _krylov _control _expm evolution metastable exit stationary spectrum _sample _slices "
    "io plot"
).split()


def imported(path):
    """Names of the package's modules that a module imports at its top level."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or "").startswith("fpsolver")):
            module = (node.module or "").removeprefix("fpsolver").lstrip(".")
            yield from [module.split(".")[0]] if module else [alias.name for alias in node.names]


def test_every_module_has_its_place():
    assert {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_downwards(name):
    above = ORDER[: ORDER.index(name)]
    upwards = [m for m in imported(PACKAGE / f"{name}.py") if m in ORDER and m not in above]
    assert not upwards


def test_the_readme_names_every_module():
    text = (PACKAGE.parent / "README.md").read_text()
    tree = text[text.index("```\nfpsolver/") :]
    named = set(re.findall(r"(\w+)\.py", tree[: tree.index("```", 4)]))
    assert named == set(ORDER)


def test_optional_packages_are_not_imported_with_the_package():
    optional = ("gmsh", "meshio", "matplotlib", "pyvista", "slepc4py", "torch", "jax")
    code = f"import fpsolver, sys; print([m for m in {optional} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.strip() == "[]"


def test_all_public_names_exist():
    import fpsolver

    assert all(hasattr(fpsolver, name) for name in fpsolver.__all__)
