"""Problems whose exact answer lies in the finite element space: they must come out to rounding."""

from functools import cache

from petsc4py import PETSc

import numpy as np
import pytest
from tools import BOX, box, coefficient_error, interpolated, simplex

import fpsolver as fp
from fpsolver.discretisation.solver import basis_integrals

pytestmark = pytest.mark.parallel

# ---------------------------------------------------------------- Wright-Fisher diffusion of allele frequencies


def _wright_fisher(x):
    """D_ij = x_i (δ_ij − x_j)/2: vanishes towards every face of the simplex."""
    n = x.ufl_shape[0]
    return [[(x[i] * (1 - x[i]) if i == j else -x[i] * x[j]) / 2 for j in range(n)] for i in range(n)]


@cache
def _alleles(dim, degree):
    vertices = np.vstack([np.zeros(dim), np.eye(dim)])
    domain = simplex(vertices, {1: 5, 2: 4, 3: 2}[dim])
    drift = 0.0 if dim == 1 else lambda x: (0,) * dim
    return fp.Generator(fp.SDE(drift, _wright_fisher), domain, ["boundary"], degree=degree, quadrature=2 * degree + 2)


alleles = pytest.mark.parametrize(("dim", "degree"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 1)])


@alleles
def test_wright_fisher_takes_no_density_data(dim, degree):
    """n·Dn = 0 and β·n > 0 on all faces: mass leaves, and no boundary value of the density is imposed."""
    gen = _alleles(dim, degree)
    found = gen.boundary_report()["boundary"]
    assert gen.scheme == "dg"
    assert found.outflow == pytest.approx(found.measure, rel=1e-12)


@alleles
def test_uniform_density_is_a_wright_fisher_eigenvector(dim, degree):
    """L* 1 = ∂_ij D_ij = −d(d + 1)/2, so G 1 = −d(d + 1)/2 M 1 with K = d + 1 alleles."""
    gen = _alleles(dim, degree)
    ones, residual = gen.M.createVecRight(), gen.M.createVecLeft()
    ones.set(1.0)
    gen.G.mult(ones, residual)
    residual.axpy(dim * (dim + 1) / 2, basis_integrals(gen))
    assert residual.norm(PETSc.NormType.INFINITY) < 1e-13 * gen.G.norm(PETSc.NormType.INFINITY)


@alleles
def test_uniform_density_decays_exactly(dim, degree):
    gen = _alleles(dim, degree)
    rate, times = dim * (dim + 1) / 2, [0.1, 0.7]
    uniform = interpolated(gen, lambda x: 1.0)
    uniform.x.array[:] /= basis_integrals(gen).sum()
    evolution = fp.evolve(gen, uniform, times, time_rtol=1e-10)
    for i, t in enumerate(times):
        level = np.exp(-rate * t) / basis_integrals(gen).sum()
        assert coefficient_error(gen, evolution[i].function, lambda x, level=level: level) < 1e-11
        assert evolution.mass[i] == pytest.approx(np.exp(-rate * t), rel=1e-11)


# ---------------------------------------------------------------- polynomial exit times


def _solve(process, dim, degree, scheme, exact, cells):
    with fp.Generator(process, box(dim, cells), BOX[dim], degree=degree, scheme=scheme) as gen:
        u = fp.feynman_kac(gen, exit=exact, running=1.0)
        return coefficient_error(gen, u.function, exact), gen.scheme


A = np.array([[1.3, 0.4, 0.1], [0.4, 0.8, 0.2], [0.1, 0.2, 0.9]])
DIFFUSIONS = {
    "full": np.array([[1.0, 0.3, 0.2], [0.3, 0.7, 0.1], [0.2, 0.1, 0.5]]),
    "rank-one": np.outer([1.0, 2.0, -1.0], [1.0, 2.0, -1.0]),
    "rank-two": np.outer([1.0, 2.0, 0.0], [1.0, 2.0, 0.0]) + np.outer([0.0, 1.0, 1.0], [0.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("kind", ["full", "rank-one", "rank-two"])
@pytest.mark.parametrize(("dim", "degree"), [(1, 2), (2, 2), (2, 4), (3, 2)])
def test_exit_time_of_an_ellipsoid_is_quadratic(dim, degree, kind):
    """(1 − xᵀAx)/(2 tr DA) for every constant D ≥ 0."""
    D, a = DIFFUSIONS[kind][:dim, :dim], A[:dim, :dim]
    degenerate = np.linalg.eigvalsh(D)[0] < 1e-12

    def exact(x):
        return (1 - sum(a[i, j] * x[i] * x[j] for i in range(dim) for j in range(dim))) / (2 * np.trace(D @ a))

    drift, cells = (0,) * dim, {1: 5, 2: 3, 3: 2}[dim]
    for scheme in ("auto",) if degenerate else ("galerkin", "dg"):
        error, used = _solve(fp.SDE(drift, D.tolist()), dim, degree, scheme, exact, cells)
        assert error < 1e-11, used
        assert used == "dg" or not degenerate


@pytest.mark.parametrize("scheme", ["galerkin", "dg"])
@pytest.mark.parametrize("degree", [4, 5])
def test_exit_time_of_the_grushin_operator_is_quartic(degree, scheme):
    """L = (∂_xx + x² ∂_yy)/2, which degenerates on a line: 1 − x² + x⁴/6 − y²."""
    process = fp.SDE((0, 0), lambda x: ((0.5, 0), (0, x[0] ** 2 / 2)))
    assert _solve(process, 2, degree, scheme, lambda x: 1 - x[0] ** 2 + x[0] ** 4 / 6 - x[1] ** 2, 4)[0] < 1e-11


def test_exit_time_of_a_kinetic_process_is_of_degree_six():
    """L = v ∂_x + ∂_vv/2: 1 − v² − (x − v³/3)² + v⁶/15, data on outflow and diffusive walls only."""
    process = fp.SDE(lambda x: (x[1], 0), ((0, 0), (0, 0.5)))

    def exact(x):
        return 1 - x[1] ** 2 - (x[0] - x[1] ** 3 / 3) ** 2 + x[1] ** 6 / 15

    error, used = _solve(process, 2, 6, "auto", exact, 3)
    assert (error < 1e-10, used) == (True, "dg")


def test_harmonic_functions_of_state_dependent_noise():
    """With the Itô drift b = −x/2 and D = x²/2, L x² = 0; the divergence form of the same b and D has L x² = 2x²."""
    for convention, cost in (("ito", 0.0), ("divergence", lambda x: -6 * x[0] ** 2)):
        process = fp.SDE(lambda x: -x[0] / 2, lambda x: x[0] ** 2 / 2, convention)
        with fp.Generator(process, box(1, 4, 1.0, 2.0), BOX[1], degree=2) as gen:
            u = fp.feynman_kac(gen, exit=lambda x: 1 + 3 * x[0] ** 2, running=cost)
            assert coefficient_error(gen, u.function, lambda x: 1 + 3 * x[0] ** 2) < 1e-12


def test_harmonic_quartic_of_the_grushin_operator():
    """L(x⁴ − 6y²) = 0."""
    process = fp.SDE((0, 0), lambda x: ((0.5, 0), (0, x[0] ** 2 / 2)))
    with fp.Generator(process, box(2, 4), BOX[2], degree=4, scheme="dg") as gen:
        u = fp.feynman_kac(gen, exit=lambda x: x[0] ** 4 - 6 * x[1] ** 2)
        assert coefficient_error(gen, u.function, lambda x: x[0] ** 4 - 6 * x[1] ** 2) < 1e-11


def test_killing_and_running_costs_balance():
    """L u − s u + f = 0 with u = x y + 2 and f = s u − L u, all of them polynomials."""
    process = fp.SDE(lambda x: (x[1], -x[0]), lambda x: ((1 + x[1] ** 2, x[0] * x[1]), (x[0] * x[1], 1 + x[0] ** 2)))

    def exact(x):
        return x[0] * x[1] + 2

    def running(x):
        generator = x[1] * x[1] - x[0] * x[0] + 2 * x[0] * x[1]
        return (1 + x[0] ** 2) * exact(x) - generator

    for scheme in ("galerkin", "dg"):
        with fp.Generator(process, box(2, 3), BOX[2], degree=2, scheme=scheme, quadrature=8) as gen:
            u = fp.feynman_kac(gen, exit=exact, running=running, killing=lambda x: 1 + x[0] ** 2)
            assert coefficient_error(gen, u.function, exact) < 1e-11
