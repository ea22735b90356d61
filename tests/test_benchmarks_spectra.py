"""Spectra and quasi-stationary rates of processes in the plane and in space, against closed forms and published digits.

Tolerances are two to five times the discretisation error on these meshes.
"""

import numpy as np
import pytest
from scipy import special
from tools import BOX, check, simplex

import fpsolver as fp
from fpsolver.landscapes import muller_brown, three_hole

PARALLEL = pytest.mark.parallel


def rates(gen, count):
    """The ``count`` slowest decay rates, which must be real."""
    values = fp.spectrum(gen, count).eigenvalues[:count]
    assert np.abs(values.imag).max() <= 1e-7 * np.abs(values).max()
    return np.sort(-values.real)


# ---------------------------------------------------------------- Brownian motion, absorbed


@PARALLEL
def test_disk():
    """j²/2 for the zeros j of J₀ and, twice, of J₁."""
    gen = fp.Generator(fp.SDE((0, 0), 0.5), fp.Domain.disk((0, 0), 1, 0.25), ["boundary"])
    exact = [2.89159298147339, 7.34098532106, 7.34098532106]
    check(exact, [special.jn_zeros(n, 1)[0] ** 2 / 2 for n in (0, 1, 1)], 1e-11)
    check(rates(gen, 3), exact, 2e-5)


@PARALLEL
def test_annulus():
    """k²/2 with J₀(k) Y₀(2k) = J₀(2k) Y₀(k)."""
    gen = fp.Generator(fp.SDE((0, 0), 0.5), fp.Domain.annulus((0, 0), 1, 2, 0.3), ["inner", "outer"])
    check(rates(gen, 1), [4.87666106237536], 4e-5)


@PARALLEL
def test_triangle():
    """8π²/3 for the equilateral triangle of side 1."""
    domain = simplex([(0, 0), (1, 0), (0.5, np.sqrt(3) / 2)], 5)
    gen = fp.Generator(fp.SDE((0, 0), 0.5), domain, ["boundary"])
    check(rates(gen, 1), [26.3189450695716], 6e-7)


@pytest.mark.parametrize("dim", [pytest.param(2, marks=PARALLEL), 3])
def test_ornstein_uhlenbeck_process_in_a_ball(dim):
    """dX = −X dt + dW in |x|² < d/2 leaves at rate 2 with the mode 1 − 2|x|²/d."""
    R = np.sqrt(dim / 2)
    domain = fp.Domain.disk((0, 0), R, 0.25) if dim == 2 else fp.Domain.ball((0, 0, 0), R, 0.6)
    gen = fp.Generator(fp.SDE(lambda x: [-x[i] for i in range(dim)], 0.5), domain, ["boundary"])
    law = fp.quasi_stationary(gen)
    check(law.rate, 2.0, 3e-5 if dim == 2 else 2e-3)
    points = np.vstack([np.zeros(dim), 0.5 * R * np.eye(dim)])
    mode = fp.Solution(law.mode, {}, "mode").at(points)
    check(mode / mode[0], 1 - 2 * np.sum(points**2, axis=1) / dim, 1e-5 if dim == 2 else 6e-4)


# ---------------------------------------------------------------- gradient systems


@PARALLEL
def test_rotated_double_well():
    """A quadratic direction of stiffness k adds multiples of k to the spectrum; the mesh is aligned with neither."""
    angle, k, eps = 0.6, 0.5, 0.1
    c, s = np.cos(angle), np.sin(angle)

    def loss(x):
        u, v = c * x[0] + s * x[1], -s * x[0] + c * x[1]
        return (u**2 - 1) ** 2 / 4 + k * v**2 / 2

    gen = fp.Generator(fp.Langevin(loss, eps), fp.Domain.rectangle((-3, -3), (3, 3), (18, 18)), scheme="galerkin")
    slow, next_ = 0.033545287308, 0.927372102608
    check(rates(gen, 6), [0, slow, k, k + slow, next_, 2 * k], 2e-7)


@PARALLEL
def test_rotated_double_well_exit_through_a_line():
    angle, eps = 0.6, 0.1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([(-2.4, -2.0), (1.0, -2.0), (1.0, 2.0), (-2.4, 2.0)]) @ turn.T

    def loss(x):
        u, v = turn[0, 0] * x[0] + turn[1, 0] * x[1], turn[0, 1] * x[0] + turn[1, 1] * x[1]
        return (u**2 - 1) ** 2 / 4 + v**2 / 2

    domain = fp.Domain.polygon(corners, 0.3, {"exit": [1]})
    gen = fp.Generator(fp.Langevin(loss, eps), domain, ["exit"], scheme="galerkin")
    start = turn @ np.array([-1.0, 0.3])
    check(fp.mean_exit_time(gen).at(start), [66.268626364918], 4e-7)


def _sublevel(loss, height, center, h, corners=64):
    """The star-shaped region around ``center`` where the loss is below ``height``, as a polygon."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    r = np.linspace(0, 6, 6001)
    f = np.array([loss((center[0] + r * d[0], center[1] + r * d[1])) for d in directions])
    above = f > height
    first = np.argmax(np.logical_and.accumulate(above[:, ::-1], axis=1)[:, ::-1], axis=1)
    return fp.Domain.polygon(np.array(center) + r[first, None] * directions, h)


@pytest.mark.parametrize(
    ("eps", "exact"),
    [
        (20.0, (4.51545469, 47.95609146, 99.3156653, 144.253887)),
        pytest.param(10.0, (0.1999391, 41.3217453, 44.823014), marks=PARALLEL),
    ],
)
def test_mueller_brown(eps, exact):
    """-L on the plane by two spectral methods; the domain ends where the density is e^{-35} of its maximum."""
    with np.errstate(over="ignore"):
        domain = _sublevel(muller_brown, -146.7 + 35 * eps, (-0.3, 0.7), 0.16)
    gen = fp.Generator(fp.Langevin(muller_brown, eps), domain, scheme="galerkin")
    found = rates(gen, 1 + len(exact))
    assert abs(found[0]) < 1e-7
    for value, digits in zip(found[1:], exact, strict=True):
        check(value, digits, 4e-5 if value < 1 else 6e-7)


def test_three_hole_potential_by_two_schemes():
    eps = 0.6
    domain = _sublevel(three_hole, -4 + 25 * eps, (0.0, 0.4), 0.35)
    one, two = (
        rates(fp.Generator(fp.Langevin(three_hole, eps), domain, scheme=s), 4)[1:] for s in ("galerkin", "weighted")
    )
    check(two, one, 1e-7)


# ---------------------------------------------------------------- kinetic processes


@pytest.mark.parametrize(
    ("beta", "gamma", "exact", "rtol"),
    [
        pytest.param(5.0, 1.0, (0.096028449, 0.99159763), 4e-7, marks=PARALLEL),
        (10.0, 1.0, (0.022519212, 0.71195911), 3e-6),
        (10.0, 0.2, (0.02043,), 3e-4),
    ],
)
def test_kinetic_double_well(beta, gamma, exact, rtol):
    """dV = −(f' + γV) dt + √(2γ/β) dW: published gaps; Kramers' rate fails at low friction (0.0334 for 0.0204)."""
    process = fp.SDE(lambda x: (x[1], x[0] - x[0] ** 3 - gamma * x[1]), ((0, 0), (0, gamma / beta)))
    # at x = 2 the diffusion that dg adds at walls on which the drift presses would change the second rate by 5e-6
    a, b, rows = (2.3, 2.6, 16) if beta == 5 else (2.1, 2.1, 18)
    gen = fp.Generator(process, fp.Domain.rectangle((-a, -b), (a, b), (20, rows), diagonal="right"))
    found = fp.spectrum(gen, 1 + len(exact)).eigenvalues
    assert abs(found[0]) < 1e-7
    for value, digits in zip(found[1:], exact, strict=False):
        check(-value.real, digits, rtol)


# ---------------------------------------------------------------- degenerate at the boundary


@PARALLEL
def test_wright_fisher():
    """n(n + 1)/2 for two alleles."""
    gen = fp.Generator(fp.SDE(0.0, lambda x: x[0] * (1 - x[0]) / 2), fp.Domain.interval(0, 1, 8), BOX[1])
    check(rates(gen, 4), [1, 3, 6, 10], 1e-8)


@PARALLEL
def test_legendre():
    """∂(1 − x²)∂ needs no data at ±1: n(n + 1)."""
    process = fp.SDE(0.0, lambda x: 1 - x[0] ** 2, convention="divergence")
    gen = fp.Generator(process, fp.Domain.interval(-1, 1, 8))
    check(rates(gen, 4), [0, 2, 6, 12], 1e-8)


@PARALLEL
def test_wright_fisher_of_three_alleles():
    """All three are there with probability ~ e^{−3t} x₁x₂x₃."""
    process = fp.SDE(
        (0, 0), lambda x: ((x[0] * (1 - x[0]) / 2, -x[0] * x[1] / 2), (-x[0] * x[1] / 2, x[1] * (1 - x[1]) / 2))
    )
    gen = fp.Generator(process, simplex([(0, 0), (1, 0), (0, 1)], 4), ["boundary"])
    law = fp.quasi_stationary(gen)
    check(law.rate, 3.0, 1e-9)
    x, y = points = np.array([(1 / 3, 0.2, 0.1), (1 / 3, 0.3, 0.2)])
    mode = fp.Solution(law.mode, {}, "mode").at(points.T)
    check(mode / mode[0], 27 * x * y * (1 - x - y), 1e-8)


@PARALLEL
def test_disk_with_tangential_noise_at_its_boundary():
    """D = I − xxᵀ, b = −3x, no data: n(n + 2), each n + 1 times."""
    process = fp.SDE(
        lambda x: (-3 * x[0], -3 * x[1]), lambda x: ((1 - x[0] ** 2, -x[0] * x[1]), (-x[0] * x[1], 1 - x[1] ** 2))
    )
    gen = fp.Generator(process, fp.Domain.disk((0, 0), 1, 0.3), scheme="dg")
    check(rates(gen, 6), [0, 3, 3, 8, 8, 8], 2e-4)
