"""PETSc behind the package: precedence of options, misspelt ones, memory, and freed factors."""

import os
import subprocess
import sys
from pathlib import Path

from petsc4py import PETSc

import numpy as np
import pytest
from tools import BOX, box, check, resident_megabytes

import fpsolver as fp
from fpsolver.discretisation.solver import exit_solver

ROOT = Path(__file__).parent.parent

SOLVE = """
import fpsolver as fp
from fpsolver.discretisation.solver import exit_solver
domain = fp.Domain.rectangle((-1, -1), (1, 1), (3, 3))
options = {options}
try:
    with fp.Generator(fp.SDE((0, 0), 0.5), domain, domain.parts, degree=2, options=options) as gen:
        tau = fp.mean_exit_time(gen)
        print("iterations", tau.stats["iterations"], "ok", bool(abs(tau.at((0, 0))[0] - 0.589) < 0.01))
except fp.NotConverged as error:
    print(error.reason)
"""


def _run(options, *arguments, **environment):
    """Standard output and standard error of a process of its own."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    for name in [n for n in variables if n.startswith(("OMPI_COMM_", "PMIX_", "PMI_"))]:
        del variables[name]
    code = SOLVE.replace("{options}", repr(options))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


ONE_STEP = {"ksp_type": "gmres", "pc_type": "jacobi", "ksp_max_it": 1}


def test_python_options_override_the_preset():
    assert _run(ONE_STEP)[0].split() == ["DIVERGED_MAX_IT"]


def test_the_command_line_overrides_python_options():
    found, _ = _run(ONE_STEP, "-fp_exit_ksp_max_it", "500", "-fp_exit_ksp_rtol", "1e-10")
    words = found.split()
    assert int(words[1]) > 10
    assert words[3] == "True"
    found, _ = _run(ONE_STEP, "-fp_exit_ksp_type", "preonly", "-fp_exit_pc_type", "lu")
    assert found.split() == ["iterations", "1", "ok", "True"]


def test_the_environment_counts_as_command_line():
    found, _ = _run(ONE_STEP, PETSC_OPTIONS="-fp_exit_ksp_max_it 500")
    assert found.split()[3] == "True"


def test_a_misspelt_option_is_reported():
    _, log = _run({}, "-fp_exit_ksp_tpye", "gmres")
    assert "-fp_exit_ksp_tpye was not used" in log
    assert "-fp_exit_ksp_type" in log


def test_a_misspelt_prefix_is_reported():
    _, log = _run({}, "-fp_exti_ksp_type", "gmres")
    assert "-fp_exti_ksp_type has no known prefix" in log
    assert "-fp_exit_" in log


def test_help_of_the_users_script_is_not_petscs():
    found, _ = _run({}, "-h")
    assert found.split() == ["iterations", "1", "ok", "True"]


def _brownian(options=None):
    return fp.Generator(fp.SDE((0, 0), 0.5), box(2, 3), BOX[2], degree=2, options=options)


def test_a_misspelt_python_option_is_reported(caplog):
    with caplog.at_level("WARNING", logger="fpsolver"), _brownian({"ksp_rtoll": 1e-8}) as gen:
        fp.mean_exit_time(gen)
    assert "-fp_exit_ksp_rtoll was not used" in caplog.text
    assert "-fp_exit_ksp_rtol?" in caplog.text


def test_options_do_not_leak_into_the_next_solver():
    with _brownian({"ksp_type": "gmres", "pc_type": "jacobi"}) as gen:
        assert fp.mean_exit_time(gen).stats["iterations"] > 5
    assert not [name for name in PETSc.Options().getAll() if name.startswith("fp_")]
    with _brownian() as gen:
        assert fp.mean_exit_time(gen).stats["iterations"] == 1


def test_options_of_one_solve():
    with _brownian() as gen:
        direct = fp.mean_exit_time(gen).at([(0.3, 0.2)])
        other = fp.mean_exit_time(gen, options={"ksp_type": "gmres", "pc_type": "jacobi", "ksp_rtol": 1e-12})
        assert other.stats["iterations"] > 1
        check(other.at([(0.3, 0.2)]), direct, 1e-9)


def test_the_presets_direct_solver_does_not_stand_in_the_way_of_other_preconditioners():
    """The preset names MUMPS, which has no incomplete factorisation; asking for one must not fail."""
    with _brownian({"ksp_type": "gmres", "pc_type": "ilu", "ksp_rtol": 1e-12}) as gen:
        tau = fp.mean_exit_time(gen)
        assert tau.stats["iterations"] > 1
        check(tau.at((0, 0)), [0.589], 1e-2)


def test_one_factorisation_serves_all_questions():
    with _brownian() as gen:
        solver = exit_solver(gen, "first")
        fp.mean_exit_time(gen)
        fp.exit_probability(gen, to=["left"])
        assert exit_solver(gen, "second") is solver


def test_answers_outlive_their_generator():
    with _brownian() as gen:
        tau = fp.mean_exit_time(gen)
    with pytest.raises(ValueError, match="closed"):
        _ = gen.G
    check(tau.at((0, 0)), [0.589], 1e-2)


def test_many_solves_do_not_grow_the_memory():
    """Two hundred generators, factorisations and solves; what DOLFINx itself keeps is below the tolerance."""
    domain = box(2, 4)
    process = fp.SDE((0, 0), 0.5)

    def solve():
        with fp.Generator(process, domain, BOX[2], degree=2) as gen:
            return fp.mean_exit_time(gen).at((0, 0))[0]

    first = [solve() for _ in range(30)][-1]
    before = resident_megabytes()
    last = [solve() for _ in range(200)][-1]
    grown = resident_megabytes() - before
    assert last == first
    assert grown < 4.0, f"{grown:.1f} MB"


def test_many_solves_with_one_generator_do_not_grow_the_memory():
    with _brownian() as gen:
        for _ in range(20):
            fp.mean_exit_time(gen)
        before = resident_megabytes()
        for _ in range(200):
            fp.feynman_kac(gen, running=1.0, exit=2.0)
        assert resident_megabytes() - before < 2.0


@pytest.mark.parallel
def test_iterative_and_direct_solvers_agree():
    """GMRES needs a transposed operator of its own."""
    iterative = {
        "ksp_type": "gmres",
        "pc_type": "jacobi",
        "ksp_rtol": 1e-13,
        "ksp_max_it": 2000,
        "ksp_gmres_restart": 200,
    }
    drift = fp.SDE(lambda x: (x[1], 1 - x[0]), 0.5)
    points = np.array([(0.1, 0.2), (-0.6, 0.3)])
    values = []
    for options in (None, iterative):
        with fp.Generator(drift, box(2, 3), BOX[2], degree=2, options=options) as gen:
            tau = fp.mean_exit_time(gen)
            values.append(tau.at(points))
            assert tau.stats["residual"] < 1e-11
    check(values[1], values[0], 1e-9)


@pytest.mark.parametrize("degree", [1, 4])
def test_iterative_options_over_a_direct_preset(degree):
    """PETSc's own tolerance, 1e-5, would leave a residual for which the process is blamed."""
    square = fp.Domain.rectangle((0, 0), (1, 1), (8, 8))
    gen = fp.Generator(fp.SDE((0, 0), 1.0), square, square.parts, degree=degree)
    options = {"ksp_type": "gmres", "pc_type": "hypre"}
    top = fp.exit_probability(gen, to=["top"], start=(0.5, 0.5), options=options)
    assert abs(top.at((0.5, 0.5))[0] - 0.25) < 1e-10 and top.stats["iterations"] > 1
    assert top.error[0] < 1e-9
