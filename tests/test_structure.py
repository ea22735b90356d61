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
    "_errors _log _compat _petsc domains._meshfile domains._meshes domains._refine domains.domain models.fields "
    "landscapes models.samples models._tabulate models.noise models.process discretisation.schemes "
    "discretisation.boundary discretisation._assembly discretisation._wells discretisation.generator "
    "discretisation._killed discretisation.solution exits.reach evolution.initial evolution._krylov "
    "evolution._control evolution._expm exits.metastable exits._guards exits.error exits.exit exits.adapt "
    "exits._stopped diagnostics.invariant montecarlo._estimates montecarlo._ensemble montecarlo._lambdify "
    "montecarlo._walls montecarlo._paths montecarlo._dynamics montecarlo.simulate _sample "
    "discretisation.positivity longtime.stationary longtime._kernel longtime.ergodic exits.regions "
    "longtime.spectrum diagnostics.truncation longtime.noisy evolution.schedule evolution._integrate "
    "evolution._scheduled evolution.checkpoint evolution.evolve evolution.monotone exits.exit_law "
    "montecarlo.compare _slices io plot diagnostics._quadrature diagnostics._regions diagnostics._basins "
    "diagnostics.regime diagnostics.concentration diagnostics.entropy diagnostics.entropy_rates "
    "diagnostics._points diagnostics._sampling diagnostics._passes diagnostics._operator diagnostics._arrhenius "
    "diagnostics._certificate diagnostics.critical diagnostics.kramers diagnostics.bounds diagnostics._talweg "
    "diagnostics.lojasiewicz diagnostics.decay diagnostics.star diagnostics._interpolating diagnostics._ellipses "
    "diagnostics.landscape models.network models.slices "
).split()


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
