"""Reported densities: non-negative everywhere, with unchanged mass, and not worse for it."""

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem
from tools import box

import fpsolver as fp
from fpsolver.discretisation.assembly import to_vector
from fpsolver.discretisation.solution import bounds, evaluate
from fpsolver.models.fields import integrate


def _points(domain, count=3000):
    """Random points of a box, the same on all ranks."""
    low, high = bounds(domain.mesh)
    return np.random.default_rng(7).uniform(low, high, (count, domain.dim))


def _mass(p):
    mesh = p.function_space.mesh
    return integrate(mesh, p, p.function_space.ufl_element().embedded_superdegree + 2)


def _smallest(p):
    return p.function_space.mesh.comm.allreduce(float(p.x.array.min(initial=np.inf)), op=MPI.MIN)


@pytest.mark.parallel
@pytest.mark.parametrize("family", ["Lagrange", "DG"])
@pytest.mark.parametrize(("dim", "degree"), [(1, 1), (1, 4), (1, 6), (2, 1), (2, 2), (2, 4), (2, 6), (3, 1), (3, 3)])
def test_nothing_negative_and_mass_unchanged(family, dim, degree):
    """A Gaussian narrower than the cells undershoots by more than a tenth of its maximum; afterwards nowhere."""
    domain = box(dim, 3 if dim == 3 else 6)
    p = fem.Function(fem.functionspace(domain.mesh, (family, degree)))
    # oscillates as badly as a projection of a point mass: positive and negative cell means
    p.interpolate(lambda x: np.exp(-8 * (x**2).sum(0)) + 0.3 * np.sin(23 * x[0] + 1) * np.cos(17 * x[1] + 5 * x[2]))
    limited = fp.make_nonnegative(p)
    points = _points(domain)
    assert _smallest(p) < -0.1
    assert _smallest(limited) >= 0
    assert evaluate(limited, points).min() >= 0
    assert _mass(limited) == pytest.approx(_mass(p), rel=1e-12)


@pytest.mark.parallel
def test_curved_cells():
    domain = fp.Domain.disk((0, 0), 1, 0.4)
    p = fem.Function(fem.functionspace(domain.mesh, ("DG", 4)))
    p.interpolate(lambda x: np.exp(-8 * (x**2).sum(0)) + 0.2 * np.sin(13 * x[0]))
    limited = fp.make_nonnegative(p)
    angle = np.linspace(0, 6, 50)
    points = np.concatenate([r * np.column_stack([np.cos(angle), np.sin(angle)]) for r in (0.3, 0.7, 0.99)])
    assert evaluate(p, points).min() < -0.1
    assert evaluate(limited, points).min() >= 0
    assert _mass(limited) == pytest.approx(_mass(p), rel=1e-12)


@pytest.mark.parallel
def test_what_is_positive_is_returned_as_it_is():
    """A cubic that is positive but has negative Bernstein coefficients is recognised as positive."""
    domain = fp.Domain.interval(0, 1, 1, comm=MPI.COMM_SELF)
    p = fem.Function(fem.functionspace(domain.mesh, ("DG", 4)))
    p.interpolate(lambda x: (2 * x[0] - 1) ** 2 + 0.1)  # Bernstein coefficients of degree two: 1.1, -0.9, 1.1
    assert fp.make_nonnegative(p) is p
    domain = box(2, 4)
    p = fem.Function(fem.functionspace(domain.mesh, ("Lagrange", 3)))
    p.interpolate(lambda x: 1 + 0.9 * np.sin(3 * x[0] + x[1]))
    assert fp.make_nonnegative(p) is p


def test_only_where_it_must():
    """Cells without negative values keep theirs when no cell mean is negative."""
    domain = fp.Domain.interval(-1, 1, 4)
    p = fem.Function(fem.functionspace(domain.mesh, ("DG", 2)))
    p.interpolate(lambda x: 1 + x[0] ** 2)
    p.interpolate(lambda x: (x[0] + 0.75) ** 2 - 0.001, np.array([0], np.int32))
    limited = fp.make_nonnegative(p)
    x = np.linspace(-0.49, 0.99, 40)
    assert abs(evaluate(limited, x) - evaluate(p, x)).max() < 1e-15
    assert evaluate(p, -0.75)[0] < 0 <= evaluate(limited, -0.75)[0]


def _square_root(shape, n):
    """dX = (shape/8 − X) dt + √X/2 dW: the law is Γ(shape, 1/8), whose density is infinite at zero for shape < 1."""
    process = fp.SDE(lambda x: shape / 8 - x[0], lambda x: x[0] / 8)
    return fp.Generator(process, fp.Domain.interval(0, 2.5, n))


@pytest.mark.parallel
@pytest.mark.parametrize(("shape", "n", "tolerance"), [(0.32, 16, 1e-6), (0.32, 32, 1e-6), (0.2, 24, 2e-2)])
def test_means_of_singular_densities(shape, n, tolerance):
    """The polynomials of cells at zero undershoot by a third of the density's values and more."""
    p = fp.stationary(_square_root(shape, n))
    x = ufl.SpatialCoordinate(p.raw.function_space.mesh)[0]
    raw, mean = (integrate(p.raw.function_space.mesh, x * q, 6) for q in (p.raw, p.function))
    assert raw == pytest.approx(shape / 8, rel=1e-6)
    assert mean == pytest.approx(shape / 8, rel=tolerance)
    assert p.stats["minimum"] < -0.5  # between nodes; at nodes the smallest value is positive
    assert 0.01 < p.stats["limited"] < 0.5
    assert p.stats["mean_shift"] == pytest.approx(abs(mean - raw), abs=1e-12)
    assert p.at(np.linspace(0, 2.5, 2001)).min() >= 0


@pytest.mark.parallel
def test_means_of_evolving_singular_densities(caplog):
    gen = _square_root(0.32, 32)
    for law in fp.evolve(gen, fp.gaussian(0.5, 0.05), [1.0, 5.0]):
        mean = integrate(gen.domain.mesh, ufl.SpatialCoordinate(gen.domain.mesh)[0] * law.function, 6)
        t = float(law.name.split("=")[1])
        assert mean == pytest.approx(0.04 + 0.46 * np.exp(-t), rel=1e-6)
    if gen.domain.comm.rank == 0:
        assert "of its mass inside cells" in caplog.text


@pytest.mark.parallel
def test_moments_in_the_plane():
    """A density that is narrower than its cells: mean and mass are kept."""
    domain = fp.Domain.rectangle((-1, -1), (1, 1), (4, 4))
    p = fem.Function(fem.functionspace(domain.mesh, ("DG", 4)))
    p.interpolate(lambda x: np.exp(-40 * ((x[0] - 0.23) ** 2 + (x[1] + 0.13) ** 2)))
    limited, x = fp.make_nonnegative(p), ufl.SpatialCoordinate(domain.mesh)
    assert evaluate(p, _points(domain)).min() < -1e-3  # the smallest value at a node is positive
    for i in range(2):
        assert integrate(domain.mesh, x[i] * limited, 6) == pytest.approx(integrate(domain.mesh, x[i] * p, 6), abs=1e-6)


def test_bad_input():
    domain = fp.Domain.interval(-1, 1, 4)
    p = fem.Function(fem.functionspace(domain.mesh, ("DG", 1)))
    p.interpolate(lambda x: x[0] - 0.1)
    with pytest.raises(ValueError, match="integral"):
        fp.make_nonnegative(p)
    square = box(2, 1)
    with pytest.raises(ValueError, match="Lagrange or DG"):
        fp.make_nonnegative(fem.Function(fem.functionspace(square.mesh, ("RT", 1))))


# ---------------------------------------------------------------- answers

OU = fp.SDE(lambda x: (-x[0], -x[1]), 0.5)


@pytest.mark.parallel
@pytest.mark.parametrize("scheme", ["galerkin", "dg", "weighted"])
def test_answers_are_limited_and_the_raw_ones_kept(scheme):
    process = fp.Langevin(lambda x: (x[0] ** 2 + x[1] ** 2) / 2, 0.5)
    gen = fp.Generator(process, fp.Domain.rectangle((-4, -4), (4, 4), (8, 8)), scheme=scheme, degree=3)
    flow = fp.evolve(gen, fp.gaussian((1, 0), 0.3), [0.0, 0.1])
    points = _points(gen.domain)
    for p, mass in zip(flow, flow.mass, strict=True):
        assert p.at(points).min() >= 0
        assert _mass(p.function) == pytest.approx(_mass(p.raw), rel=1e-12)
        if scheme != "weighted":  # there the mass is that of w times the unknown, of which this is an interpolant
            assert _mass(p.function) == pytest.approx(mass, rel=1e-12)
    assert evaluate(flow[0].raw, points).min() < -1e-6
    again = fp.evolve(gen, flow[0], [0.1])
    tolerance = 1e-5 if scheme != "weighted" else 1e-1
    assert abs(again[0].raw.x.array - flow[1].raw.x.array).max(initial=0) < tolerance


@pytest.mark.parallel
def test_signed_measures_are_left_alone():
    gen = fp.Generator(OU, box(2, 4), degree=3)
    signed = fp.evolve(gen, lambda x: x[0] + 0.5 * x[1] + 0.1, [0.0, 0.1])
    assert all(p.function is p.raw for p in signed)


def test_a_limited_density_is_not_taken_for_coefficients():
    gen = fp.Generator(OU, fp.Domain.rectangle((-4, -4), (4, 4), (6, 6)), degree=3, scheme="galerkin")
    p = fp.evolve(gen, fp.gaussian((1, 0), 0.3), [0.0])[0]
    with pytest.raises(ValueError, match=r"\.raw"):
        to_vector(gen, p.function)


@pytest.mark.parallel
def test_quasi_stationary_density():
    gen = fp.Generator(fp.SDE(lambda x: -4 * x[0], 0.5), fp.Domain.interval(-3, 3, 9), ["left", "right"], degree=2)
    q = fp.quasi_stationary(gen)
    assert q.stats["minimum"] < 0
    assert q.at(np.linspace(-3, 3, 501)).min() >= 0
    assert _mass(q.density) == pytest.approx(1.0, abs=1e-12)


# ---------------------------------------------------------------- effect on error and entropy


@pytest.mark.parallel
def test_isotropic_noise_on_triangles():
    """Ornstein-Uhlenbeck from N((1, 0), 0.3²) at t = 0.5: L¹ error below 1e-4, no negative value, mass to 1e-12."""
    gen = fp.Generator(OU, fp.Domain.rectangle((-4, -4), (4, 4), (16, 16)))
    p = fp.evolve(gen, fp.gaussian((1, 0), 0.3), [0.5], time_rtol=1e-7)[0]
    variance = 0.5 * (1 - np.exp(-1)) + 0.09 * np.exp(-1)
    x = ufl.SpatialCoordinate(gen.domain.mesh)
    square = (x[0] - np.exp(-0.5)) ** 2 + x[1] ** 2
    exact = ufl.exp(-square / (2 * variance)) / (2 * np.pi * variance)
    raw, limited = (integrate(gen.domain.mesh, abs(q - exact), 14) for q in (p.raw, p.function))
    assert raw < 1e-4
    assert limited < 1e-4
    assert limited < 1.05 * raw
    assert p.at(_points(gen.domain)).min() >= 0
    assert abs(_mass(p.function) - 1) < 1e-12


def test_effect_on_error_and_entropy(capsys):
    """The L¹ error grows by at most a few percent; entropy, undefined for the raw density, converges."""
    rows, exact_entropy = [], -np.log(2 * np.pi * np.e * 0.04)
    for n in (6, 9, 13, 19):
        gen = fp.Generator(OU, fp.Domain.rectangle((-1.5, -1.5), (1.5, 1.5), (n, n)), degree=3)
        p = fp.evolve(gen, fp.gaussian((0, 0), 0.2), [0.0])[0]
        mesh, x = gen.domain.mesh, ufl.SpatialCoordinate(gen.domain.mesh)
        exact = ufl.exp(-ufl.dot(x, x) / 0.08) / (2 * np.pi * 0.04)
        negative = integrate(mesh, (abs(p.raw) - p.raw) / 2, 16)
        errors = [integrate(mesh, abs(q - exact), 16) for q in (p.raw, p.function)]
        entropy = integrate(mesh, p.function * ufl.ln(ufl.max_value(p.function, 1e-300)), 16)
        rows.append((n, negative, *errors, entropy - exact_entropy))
    with capsys.disabled():
        print("\n  n  negative mass  L1 raw     L1 limited  entropy error")
        for n, *values in rows:
            print(f" {n:2d}  " + "    ".join(f"{v:9.2e}" for v in values))
    table = np.array(rows)
    assert (table[:, 1] > 0).all()
    assert (table[:, 3] < table[:, 2] + 2 * table[:, 1] + 1e-14).all()  # no more than the negative mass moved
    assert abs(table[-1, 4]) < abs(table[0, 4]) / 20
    assert abs(table[-1, 4]) < 1e-4


# ---------------------------------------------------------------- stochastic gradients of two samples

SAMPLES = ((-0.75, -0.59), (-0.42, 1.18))


def _loss(a, y):
    return lambda w: (ufl.sin(a * w[0] + w[1]) - y) ** 2 / 2 + 0.25 * (w[0] ** 2 + w[1] ** 2)


@pytest.mark.parallel
def test_rank_one_gradient_noise():
    """A sine neuron trained on two samples: no negative mass, and the quadrants' masses right to 5e-4.

    Reference: Monte Carlo of the diffusion, an explicit scheme of weak order two with steps of 0.0125, 2e4 paths over
    575 time units; standard errors of the four masses 3e-6, 2.2e-4, 2e-4, 7e-5.
    """
    process = fp.SGD(None, fp.PerSample([_loss(a, y) for a, y in SAMPLES]), learning_rate=1.0)
    gen = fp.Generator(process, fp.Domain.rectangle((-1.2, -1.75), (1.2, 1.75), (12, 14)))
    assert gen.scheme == "dg"
    p = fp.stationary(gen)
    mesh = gen.domain.mesh
    x = ufl.SpatialCoordinate(mesh)
    left, low = (ufl.conditional(ufl.lt(x[i], c), 1.0, 0.0) for i, c in ((0, 0.0), (1, 0.25)))
    masses = [integrate(mesh, p.function * a * b, 8) for a in (left, 1 - left) for b in (low, 1 - low)]
    assert np.abs(np.array(masses) - (0.00061, 0.38801, 0.45482, 0.15656)).max() < 5e-4
    assert p.stats["minimum"] < -0.01
    assert p.at(_points(gen.domain)).min() >= 0
    assert integrate(mesh, abs(p.function) - p.function, 12) < 1e-15
    assert abs(_mass(p.function) - 1) < 1e-12


@pytest.mark.parametrize("tiny", [1e-310, 1e-305, 1e-200])
def test_cells_with_next_to_nothing_take_moments_without_overflow(tiny):
    """What a cell lacks is passed on to neighbours whose mean has no finite inverse."""
    V = fem.functionspace(fp.Domain.interval(0, 3, 3).mesh, ("DG", 2))
    f = fem.Function(V)
    f.x.array[:] = tiny
    middle = V.dofmap.list[1]
    f.x.array[middle[np.argsort(V.tabulate_dof_coordinates()[middle, 0])]] = [-3.0, 0.1, 4.0]
    limited = fp.make_nonnegative(f)
    assert np.isfinite(limited.x.array).all() and _smallest(limited) >= 0
    assert _mass(limited) == pytest.approx(_mass(f), rel=1e-12)
