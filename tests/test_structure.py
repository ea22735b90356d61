"""The architecture that the README draws is the one that is there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fpsolver"

# imports go downwards only: a folder or a module may import those above it
LAYERS = (
    ("", "_errors _log _compat _petsc landscapes _sample"),
    ("domains", "_arrays _balance _gmsh meshfile _parts _meshes _refine _arguments domain"),
    ("models", "fields samples _tabulate noise process noisy _examine network slices"),
    (
        "discretisation",
        "schemes facets boundary _walls assembly _wells _choice generator metastable solution positivity",
    ),
    (
        "evolution",
        "initial _krylov _control _expm schedule _integrate _scheduled _growth checkpoint evolution evolve monotone",
    ),
    ("longtime", "stationary _kernel ergodic _modes spectrum noisy"),
    ("exits", "_killed reach _guards error exit adapt _stopped regions exit_law"),
    ("montecarlo", "estimates ensemble _lambdify _native _family _walls _paths _dynamics watched simulate compare"),
    ("", "_slices _draw io plot"),
    (
        "diagnostics",
        "invariant truncation _quadrature _pointwise _regions _basins contraction regime concentration entropy "
        "entropy_rates _points _sampling _passes _operator _arrhenius _certificate critical kramers bounds _talweg "
        "lojasiewicz decay star _interpolating _ellipses landscape",
    ),
)
ORDER = [f"{folder}.{name}".lstrip(".") for folder, names in LAYERS for name in names.split()]


def module(path):
    """``diagnostics.bounds`` for fpsolver/diagnostics/bounds.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(name):
    """The package's modules that a module imports."""
    folder = name.split(".")[:-1]
    for node in ast.walk(ast.parse((PACKAGE / (name.replace(".", "/") + ".py")).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            source = [*folder[: len(folder) + 1 - node.level], *(node.module or "").split(".")]
            source = ".".join(filter(None, source))
            yield from [source, *(f"{source}.{alias.name}".lstrip(".") for alias in node.names)]


def test_every_module_has_its_place():
    assert {module(p) for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_downwards(name):
    above = ORDER[: ORDER.index(name)]
    upwards = [m for m in imported(name) if m in ORDER and m not in above]
    assert not upwards


@pytest.mark.parametrize("name", ORDER)
def test_private_modules_serve_their_own_folder(name):
    folder = name.rpartition(".")[0]
    others = [m for m in imported(name) if m in ORDER and "._" in m and m.rpartition(".")[0] != folder]
    assert not others


@pytest.mark.parametrize("name", ORDER)
def test_private_names_serve_their_own_module(name):
    text = (PACKAGE / (name.replace(".", "/") + ".py")).read_text()
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    private = [n for node in imports if node.module for n in (alias.name for alias in node.names) if n.startswith("_")]
    used = re.findall(rf"(?<![\w.])(?:{'|'.join(names) or 'nothing'})\._[a-z]\w*", text)
    assert not private
    assert not used


def test_the_readme_names_every_module():
    text = (PACKAGE.parent / "README.md").read_text()
    tree = text[text.index("```\nfpsolver/") :]
    named = set(re.findall(r"(\w+)\.py", tree[: tree.index("```", 4)]))
    assert named == {name.split(".")[-1] for name in ORDER}


def test_optional_packages_are_not_imported_with_the_package():
    optional = ("gmsh", "meshio", "matplotlib", "pyvista", "slepc4py", "torch", "jax")
    code = f"import fpsolver, sys; print([m for m in {optional} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.strip() == "[]"


def test_all_public_names_exist():
    import fpsolver

    assert all(hasattr(fpsolver, name) for name in fpsolver.__all__)
