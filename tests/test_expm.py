"""The propagator and the verbs on top of it, against dense matrix exponentials and closed forms."""

from functools import cache

from mpi4py import MPI

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import ufl
from dolfinx import fem

import fpsolver as fp
from fpsolver._errors import NotConverged
from fpsolver.discretisation.assembly import to_vector
from fpsolver.evolution import _expm
from fpsolver.evolution._expm import Propagator
from fpsolver.evolution.initial import coefficients

BASE = 0.125
MULTIPLES = (1, 8, 40, 160)  # times 0.125 ... 20, all by multiplying one dense exponential
COLD = (np.array([[0.0, 0.0], [0.0, 1.0]]), lambda x: (x[1], -x[0] - x[1]))  # kinetic Ornstein-Uhlenbeck


@cache
def problem(name):
    """A small generator on one rank with its starting points (smooth, rough)."""
    comm = MPI.COMM_SELF
    if name == "ou":
        process, domain = fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-6, 6, 60, comm=comm)
        return fp.Generator(process, domain, degree=4, scheme="galerkin"), fp.gaussian(1.0, 0.5), fp.dirac(0.713)
    if name == "exit":
        process, domain = fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-1, 1, 40, comm=comm)
        gen = fp.Generator(process, domain, absorbing=["left", "right"], degree=4, scheme="galerkin")
        return gen, fp.gaussian(0.1, 0.2), fp.dirac(0.313)
    if name == "well":
        process, domain = fp.SDE(lambda x: x[0] - x[0] ** 3, 0.02), fp.Domain.interval(-2, 2, 80, comm=comm)
        return fp.Generator(process, domain, degree=4, scheme="galerkin"), fp.gaussian(-0.5, 0.2), fp.dirac(-0.171)
    if name == "transport":
        process, domain = fp.SDE(lambda x: x[0] - x[0] ** 3, 0.0), fp.Domain.interval(-2, 2, 80, comm=comm)
        return fp.Generator(process, domain, degree=2, scheme="dg"), fp.gaussian(0.5, 0.2), fp.dirac(0.213)
    assert name == "kinetic"
    domain = fp.Domain.rectangle((-5, -5), (5, 5), (8, 8), comm=comm)
    gen = fp.Generator(fp.SDE(COLD[1], COLD[0]), domain, degree=2, scheme="dg")
    return gen, fp.gaussian((1.0, 0.0), 1.0), fp.dirac((1.03, 0.07))


def csr(A):
    indptr, indices, data = A.getValuesCSR()
    return scipy.sparse.csr_matrix((data, indices, indptr), A.getSize())


@cache
def dense(name, transpose):
    """Cholesky factor L of M, and exp(t L⁻¹ G L⁻ᵀ) for all times: its Euclidean norm is the M-norm."""
    gen = problem(name)[0]
    L = np.linalg.cholesky(csr(gen.M).toarray())
    G = csr(gen.G).toarray()
    A = scipy.linalg.solve_triangular(L, (G.T if transpose else G), lower=True)
    A = scipy.linalg.solve_triangular(L, A.T, lower=True).T
    E = scipy.linalg.expm(BASE * A)
    return L, {BASE * m: np.linalg.matrix_power(E, m) for m in MULTIPLES}


@pytest.mark.parametrize("tol", [1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("transpose", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("rough", [False, True], ids=["smooth", "rough"])
@pytest.mark.parametrize("name", ["ou", "exit", "well", "transport", "kinetic"])
def test_error_stays_below_tol(name, rough, transpose, tol):
    if name == "exit" and tol < 1e-8:
        pytest.skip("the dense reference itself has an error of 1e-10: the penalty makes eigenvalues of -1e6")
    gen, *starts = problem(name)
    L, E = dense(name, transpose)
    v0 = coefficients(gen, starts[rough], "start")
    core = Propagator(gen.M, gen.G, dim=gen.domain.dim)
    found = list(core.run(v0, list(E), tol, transpose=transpose))
    largest = np.linalg.norm(L.T @ v0.array)
    for snapshot, (t, exp) in zip(found, E.items(), strict=True):
        exact = exp @ (L.T @ v0.array)
        error = np.linalg.norm(L.T @ snapshot.vector.array - exact)
        assert snapshot.time == t
        rounding = 2e-15 * largest  # of the reference
        assert error <= tol * max(np.linalg.norm(exact), 1e-10 * largest) + rounding
    assert core.stats.error <= tol
    assert core.stats.basis <= 100
    core.destroy()


def test_estimate_is_not_far_above_the_error():
    """An estimate that is always huge would pass the test above, at a price."""
    gen, smooth, rough = problem("ou")
    for start, most in ((smooth, 40), (rough, 90)):
        core = Propagator(gen.M, gen.G, dim=1)
        list(core.run(coefficients(gen, start, "start"), [1e-3, 1e-2, 0.1, 1.0, 10.0, 50.0], 1e-6))
        assert core.stats.solves <= most
        assert core.stats.factorisations <= 3
        core.destroy()


@pytest.mark.parallel
def test_long_times_are_cheap():
    gen = fp.Generator(fp.SDE(lambda x: x[0] - x[0] ** 3, 0.05), fp.Domain.interval(-2, 2, 80))
    solves = {T: fp.evolve(gen, fp.gaussian(-1.0, 0.1), [T]).stats["solves"] for T in (5.0, 50.0, 500.0)}
    assert solves[50.0] <= 2 * solves[5.0]
    assert solves[500.0] <= 2 * solves[5.0]


@pytest.mark.parallel
@pytest.mark.parametrize("T", [1e5, 1e8, 1e12])
def test_equilibrium_at_enormous_times(T):
    """The shift stays near the slowest time scale, here 360: T / 12 would leave two digits at T = 1e12."""
    gen = fp.Generator(fp.SDE(lambda x: x[0] - x[0] ** 3, 0.05), fp.Domain.interval(-2, 2, 80), scheme="galerkin")
    p = fp.evolve(gen, fp.gaussian(-1.0, 0.1), [T], time_rtol=1e-7)
    left, right = p[0].at([-1.0, 1.0])
    assert right == pytest.approx(left, rel=1e-7)
    assert left == pytest.approx(1 / 0.83405880410691, rel=1e-4)  # ∫ exp(-(x² - 1)² / (4 ε)) on the whole line
    assert p.stats["solves"] <= 40
    assert p.mass[0] == pytest.approx(1.0, abs=1e-13)


@pytest.mark.parallel
def test_many_outputs_are_cheap():
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-6, 6, 60))
    one = fp.evolve(gen, fp.gaussian(1.0, 0.5), [2.0])
    many = fp.evolve(gen, fp.gaussian(1.0, 0.5), np.linspace(0, 2, 81))
    assert len(many) == 81
    assert many.stats["solves"] <= 3 * one.stats["solves"]
    assert abs(many[-1].raw.x.array - one[0].raw.x.array).max() < 1e-6


@pytest.mark.parallel
def test_factorisations_are_shared_with_the_dual_and_with_later_runs():
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-6, 6, 60))
    assert fp.evolve(gen, fp.gaussian(1.0, 0.5), [1.0]).stats["factorisations"] == 1
    assert fp.evolve(gen, fp.gaussian(0.0, 0.5), [0.5, 1.1]).stats["factorisations"] == 0
    assert fp.backward(gen, lambda x: x[0], [1.0]).stats["factorisations"] == 0


@pytest.mark.parallel
def test_ornstein_uhlenbeck_density_and_moments():
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-8, 8, 100), degree=4)
    times = np.array([0.0, 0.5, 1.0, 2.0])
    found = fp.evolve(gen, fp.gaussian(1.0, 0.5), times, time_rtol=1e-9)
    x = np.linspace(-2, 3, 11)
    for t, solution in zip(times, found, strict=True):
        mean, variance = np.exp(-t), 1 - 0.75 * np.exp(-2 * t)
        exact = np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        assert abs(solution.at(x) - exact).max() < 5e-7  # of the mesh
    expectation = fp.backward(gen, lambda x: x[0] ** 2, [1.0], time_rtol=1e-9)[0].at([0.5])[0]
    assert expectation == pytest.approx(0.25 * np.exp(-2) + 1 - np.exp(-2), abs=1e-8)


@pytest.mark.parallel
def test_kinetic_covariance():
    """Mean and covariance at t = 1 from the point (1, 0), where D has rank one."""
    gen = fp.Generator(fp.SDE(COLD[1], COLD[0]), fp.Domain.rectangle((-6, -6), (6, 6), (14, 14)), degree=3)
    p = fp.evolve(gen, fp.gaussian((1.0, 0.0), 0.4), [1.0], time_rtol=1e-7)[0].raw
    A = np.array([[0.0, 1.0], [-1.0, -1.0]])
    E = scipy.linalg.expm(A)
    mean = E @ [1.0, 0.0]
    point = np.array([[0.280165780375818, 0.284629927239147], [0.284629927239147, 0.69944541004215]])
    covariance = point + 0.16 * E @ E.T
    X = ufl.SpatialCoordinate(gen.domain.mesh)
    dx = ufl.dx(metadata={"quadrature_degree": 6})

    def integral(f):
        return gen.domain.comm.allreduce(fem.assemble_scalar(fem.form(f * p * dx)))

    assert np.allclose([integral(X[i]) for i in range(2)], mean, atol=1e-6)
    second = [[integral((X[i] - mean[i]) * (X[j] - mean[j])) for j in range(2)] for i in range(2)]
    assert np.allclose(second, covariance, atol=1e-6)


@pytest.mark.parallel
@pytest.mark.parametrize("scheme", ["galerkin", "dg"])
def test_mass_and_constants_do_not_depend_on_tol(scheme):
    gen = fp.Generator(
        fp.SDE(lambda x: (x[1], -x[0] - x[1]), [[0.3, 0.0], [0.0, 1.0]]),
        fp.Domain.rectangle((-4, -4), (4, 4), (6, 6)),
        degree=3,
        scheme="dg",
    )
    if scheme == "galerkin":
        gen = fp.Generator(fp.SDE(lambda x: (-x[0], -x[1]), 1.0), gen.domain, degree=3, scheme="galerkin")
    start = fp.gaussian((0.5, 0.0), 0.5)
    coarse, fine = (fp.evolve(gen, start, [0.0, 0.3, 3.0], time_rtol=tol) for tol in (0.05, 1e-8))
    assert abs(coarse.mass - 1).max() < 1e-13
    assert abs(coarse[1].raw.x.array - fine[1].raw.x.array).max() > 1e-9, "tol has no effect"
    assert (coarse.outflux == 0).all()
    constant = fp.backward(gen, 1.0, [0.3, 30.0], time_rtol=0.05)
    assert max(abs(u.function.x.array - 1).max() for u in constant) < 1e-13


@pytest.mark.parallel
def test_duality():
    """⟨u(t), p₀⟩ = ⟨g, p(t)⟩."""
    gen = fp.Generator(fp.SDE(lambda x: x[0] - x[0] ** 3, 0.1), fp.Domain.interval(-2, 2, 40), absorbing=["right"])
    times, tol = [0.01, 0.5, 4.0], 1e-8
    forward = fp.evolve(gen, fp.dirac(-0.93), times, time_rtol=tol)
    dual = fp.backward(gen, lambda x: ufl.exp(x[0]), times, time_rtol=tol)
    g = coefficients(gen, lambda x: ufl.exp(x[0]), "payoff")
    p0 = coefficients(gen, fp.dirac(-0.93), "start")
    Mg, Mp0 = gen.M.createVecLeft(), gen.M.createVecLeft()
    gen.M.mult(g, Mg)
    gen.M.mult(p0, Mp0)
    for p, u in zip(forward, dual, strict=True):
        left, right = to_vector(gen, u.function).dot(Mp0), to_vector(gen, p.raw).dot(Mg)
        assert left == pytest.approx(right, rel=1e-6)
        assert u.at([-0.93])[0] == pytest.approx(left, rel=1e-6)


@pytest.mark.parallel
def test_survival_and_outflux_of_brownian_motion():
    """P(no exit from (-1, 1) until t | start 0), and by symmetry half of the rest through each end."""
    gen = fp.Generator(fp.SDE(lambda x: 0.0, 0.5), fp.Domain.interval(-1, 1, 40), absorbing=["left", "right"])
    times = [0.1, 0.5, 1.0, 2.0]
    exact = np.array([0.996869195484, 0.685445766890, 0.370777429800, 0.107977044444])
    forward = fp.evolve(gen, fp.dirac(0.0), times, time_rtol=1e-9)
    assert np.allclose(forward.mass, exact, atol=1e-8)
    assert np.allclose(forward.outflux, 1 - exact, atol=1e-8)
    for part in ("left", "right"):
        assert np.allclose(forward.outflux_by_part[part], (1 - exact) / 2, atol=1e-8)
    survival = fp.backward(gen, 1.0, times, time_rtol=1e-9)
    assert np.allclose([u.at([0.0])[0] for u in survival], exact, atol=1e-7)
    assert abs(forward.mass + forward.outflux - 1).max() < 1e-9


@pytest.mark.parallel
def test_exponential_decay_keeps_relative_accuracy():
    gen = fp.Generator(fp.SDE(lambda x: 0.0, 0.5), fp.Domain.interval(-1, 1, 20), absorbing=["left", "right"])
    times = np.array([4.0, 8.0, 12.0, 16.0])
    mass = fp.evolve(gen, fp.dirac(0.1), times, time_rtol=1e-6).mass
    assert mass[-1] < 1e-8
    assert np.allclose(-np.diff(np.log(mass)) / 4.0, np.pi**2 / 8, rtol=1e-6)


@pytest.mark.parallel
def test_point_on_a_facet_is_shared():
    gen = fp.Generator(fp.SDE(lambda x: x[0], 0.0), fp.Domain.interval(-1, 1, 10), scheme="dg", degree=2)
    load = gen.M.createVecLeft()
    gen.M.mult(coefficients(gen, fp.dirac(0.2), "start"), load)
    f = fem.Function(gen.V)
    f.interpolate(lambda x: 3 * x[0] ** 2 - x[0] + 1)
    assert to_vector(gen, f).dot(load) == pytest.approx(3 * 0.04 - 0.2 + 1, abs=1e-12)
    big = gen.domain.comm.allreduce(int((abs(load.array_r) > 0.4).sum()))
    assert big == 2, "half of the mass in each of the two cells"


@pytest.mark.parallel
@pytest.mark.parametrize("degree", [1, 3, 4])
def test_point_load_is_evaluation(degree):
    gen = fp.Generator(
        fp.SDE(lambda x: (0.0, 0.0), 1.0), fp.Domain.rectangle((0, 0), (1, 1), (3, 3)), degree=degree, scheme="galerkin"
    )
    load = gen.M.createVecLeft()
    gen.M.mult(coefficients(gen, fp.dirac((0.37, 0.61)), "start"), load)
    f = fem.Function(gen.V)
    f.interpolate(lambda x: np.sin(3 * x[0]) * x[1] ** 2)
    value = fp.Solution(f, {}, "f").at((0.37, 0.61))[0]
    assert to_vector(gen, f).dot(load) == pytest.approx(value, abs=1e-12)


@pytest.mark.parallel
@pytest.mark.parametrize("std", [0.3, 0.06, 0.03])
def test_narrow_gaussians_are_integrated(std):
    """Cells have width 0.2; moments up to the degree survive the projection."""
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-3, 3, 30), degree=4, scheme="galerkin")
    p = fp.evolve(gen, fp.gaussian(0.13, std), [0.0])[0].raw
    x = ufl.SpatialCoordinate(gen.domain.mesh)
    dx = ufl.dx(metadata={"quadrature_degree": 8})
    moments = [gen.domain.comm.allreduce(fem.assemble_scalar(fem.form((x[0] - 0.13) ** n * p * dx))) for n in range(5)]
    assert np.allclose(moments, [1, 0, std**2, 0, 3 * std**4], atol=1e-9)


@pytest.mark.parallel
def test_a_gaussian_below_the_mesh_becomes_a_point(caplog):
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-3, 3, 30), degree=4, scheme="galerkin")
    with caplog.at_level("WARNING", logger="fpsolver"):
        narrow = coefficients(gen, fp.gaussian(0.13, 1e-3), "start")
    point = coefficients(gen, fp.dirac(0.13), "start")
    assert abs(narrow.array_r - point.array_r).max(initial=0.0) == 0.0
    if MPI.COMM_WORLD.rank == 0:
        assert "cannot tell from a point mass" in caplog.text


@pytest.mark.parallel
def test_a_function_is_taken_as_it_is():
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-3, 3, 30))
    f = fem.Function(gen.V)
    f.interpolate(lambda x: np.exp(-(x[0] ** 2)))
    found = fp.evolve(gen, f, [0.0, 0.1])
    assert abs(found[0].raw.x.array - f.x.array).max() == 0.0
    projected = fp.evolve(gen, lambda x: ufl.exp(-(x[0] ** 2)), [0.1])
    assert abs(found[1].raw.x.array - projected[0].raw.x.array).max() < 1e-5
    assert found.mass[0] == pytest.approx(np.sqrt(np.pi), abs=1e-3)


@pytest.mark.parallel
def test_what_needs_too_many_solves_says_so_and_keeps_the_rest(monkeypatch):
    monkeypatch.setattr(_expm, "MAX_BASIS", 8)
    gen = fp.Generator(fp.SDE(lambda x: 1.0, 0.0), fp.Domain.interval(-1, 1, 400), ["right"], degree=2, scheme="dg")
    with pytest.raises(NotConverged, match=r"evolution to t = 1 .* larger time_rtol") as info:
        fp.evolve(gen, fp.dirac(-0.5), [0.0, 1e-6, 1.0], time_rtol=1e-10)
    assert info.value.prefix == "fp_evolve_"
    assert list(info.value.partial.times) == [0.0, 1e-6]
    assert info.value.partial.mass == pytest.approx([1.0, 1.0])


@pytest.mark.parallel
def test_tol_below_rounding_is_told(caplog):
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-6, 6, 20))
    with caplog.at_level("WARNING", logger="fpsolver"):
        found = fp.evolve(gen, fp.gaussian(0.0, 1.0), [1.0], time_rtol=1e-14)
    assert found.stats["time_error"] < 1e-11
    if MPI.COMM_WORLD.rank == 0:
        assert "rounding" in caplog.text


BAD = [
    (dict(times=[1.0, 0.5]), "sorted"),
    (dict(times=[-1.0]), r"times is \[-1.0\]; .* non-negative"),
    (dict(times=[np.nan]), r"times is \[nan\]"),
    (dict(times=[]), r"times is \[\]"),
    (dict(time_rtol=0.0), "time_rtol is 0.0"),
    (dict(time_rtol=2), "time_rtol is 2"),
    (dict(initial=fp.gaussian((0.0, 0.0), 1.0)), r"one of 1 coordinate"),
    (dict(initial=fp.gaussian(9.0, 1.0)), "of the mass"),
    (dict(initial=fp.dirac(7.0)), "outside the mesh"),
    (dict(initial="somewhere"), "initial density is a str"),
    (dict(initial=0.0), "initial density is zero everywhere"),
    (dict(initial=lambda x: 1 / (x[0] - x[0])), "initial density"),
]


@pytest.mark.parallel
@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_input_is_named(change, message):
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-6, 6, 20))
    arguments = {"initial": fp.gaussian(0.0, 1.0), "times": [1.0], **change}
    with pytest.raises((ValueError, TypeError), match=message):
        fp.evolve(gen, **arguments)


def test_bad_descriptions_are_named():
    for make, message in (
        (lambda: fp.gaussian(0.0, 0.0), "std is 0.0"),
        (lambda: fp.gaussian(0.0, (1.0, 2.0)), r"std is \(1.0, 2.0\); a positive number, or 1 of them"),
        (lambda: fp.gaussian(np.inf, 1.0), "mean is inf"),
        (lambda: fp.dirac("here"), "point is 'here'"),
        (lambda: fp.dirac([[1.0]]), "one per coordinate"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_a_growing_mode_is_not_passed_off_as_a_solution():
    """M v' = 0.7 M v grows for ever: what an unstable discretisation does, whose relative errors look small."""
    gen = fp.Generator(fp.SDE(0.0, 0.1), fp.Domain.interval(0, 1, 4), degree=1, scheme="galerkin")
    growing = gen.M.copy()
    growing.scale(0.7)
    gen._forward = growing
    with pytest.raises(fp.NotConverged, match=r"DIVERGED_GROWTH.*growing mode"):
        fp.evolve(gen, fp.gaussian(0.5, 0.2), [1.0, 10.0, 100.0])
