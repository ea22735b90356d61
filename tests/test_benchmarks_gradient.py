"""Gradient systems with D = εI against closed forms and quadratures: Ornstein-Uhlenbeck processes and double wells.

Tolerances are two to five times the discretisation error on these meshes.
"""

from functools import cache

import numpy as np
import pytest
import reference
from tools import BOX, check, mean_and_covariance, simplex

import fpsolver as fp

# ---------------------------------------------------------------- Ornstein-Uhlenbeck


@cache
def _ou():
    return fp.Generator(fp.Langevin(lambda x: x[0] ** 2 / 2, 1.0), fp.Domain.interval(-8, 8, 40))


def test_ornstein_uhlenbeck_evolution():
    """From N(1, 1/4): mean e^{-t}, variance 1 − 3/4 e^{-2t}, Gaussian at all times."""
    gen, times = _ou(), [0.1, 0.5, 1.0, 2.0]
    evolution = fp.evolve(gen, fp.gaussian(1.0, 0.5), times, time_rtol=1e-9)
    x = np.array([-1.3, 0.0, 0.7, 1.1, 2.0])
    for t, solution in zip(times, evolution, strict=True):
        mean, cov = mean_and_covariance(gen, solution.raw)
        check(mean, [np.exp(-t)], 1e-9)
        check(cov, [[1 - 0.75 * np.exp(-2 * t)]], 1e-9)
        check(solution.at(x), reference.gaussian_density(x[:, None], mean, cov), 4e-5)


def test_ornstein_uhlenbeck_entropy():
    """Relative entropy to N(0, 1) from N(1, 1/4): (m² + v − 1 − ln v)/2."""
    gen, times = _ou(), [0.5, 1.0, 2.0]
    x, w = np.polynomial.legendre.leggauss(200)
    x, w = 6 * x, 6 * w
    for t, p in zip(times, fp.evolve(gen, fp.gaussian(1.0, 0.5), times, time_rtol=1e-9), strict=True):
        density, invariant = np.abs(p.at(x)), np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
        entropy = np.sum(w * density * np.log(np.maximum(density, 1e-300) / invariant))
        m, v = np.exp(-t), 1 - 0.75 * np.exp(-2 * t)
        check(entropy, (m * m + v - 1 - np.log(v)) / 2, 1e-5)


def test_ornstein_uhlenbeck_backwards():
    """E X_t = e^{-t} x and E X_t² = e^{-2t} x² + 1 − e^{-2t}."""
    x = np.array([-1.0, 0.0, 1.5])
    check(fp.backward(_ou(), lambda y: y[0], [1.0], time_rtol=1e-9)[0].at(x), np.exp(-1) * x, 1e-9)
    second = fp.backward(_ou(), lambda y: y[0] ** 2, [1.0], time_rtol=1e-9)[0]
    check(second.at(x), np.exp(-2) * x**2 + 1 - np.exp(-2), 1e-9)


def test_ornstein_uhlenbeck_invariant_density():
    x = np.array([0.0, 1.0, -2.0])
    p = fp.stationary(_ou())
    check(p.at(x), reference.gaussian_density(x[:, None], np.zeros(1), np.eye(1)), 3e-7)
    assert p.stats["relaxation_rate"] == pytest.approx(1.0, rel=0.2)


@pytest.mark.parallel
@pytest.mark.parametrize(("R", "theta", "s2", "rtol"), [(1, 1, 2, 1e-12), (2, 1, 1, 4e-11), (3, 1, 1, 3e-9)])
def test_ornstein_uhlenbeck_exit_time(R, theta, s2, rtol):
    """(R²/s²) ₂F₂(1, 1; 3/2, 2; θR²/s²): 2558 at R = 3."""
    process = fp.SDE(lambda x: -theta * x[0], s2 / 2)
    gen = fp.Generator(process, fp.Domain.interval(-R, R, 20 * R), BOX[1])
    check(fp.mean_exit_time(gen).at(0.0), [reference.ou_exit_time(R, theta, s2)], rtol)
    half = reference.exit_time_1d(0.5, -R, R, lambda x: -theta * x, lambda x: s2 / 2)
    check(fp.mean_exit_time(gen).at(0.5), [half], rtol)


@cache
def _round(dim):
    if dim == 2:
        return fp.Domain.disk((0, 0), 1, 0.2)
    return fp.Domain.ball((0, 0, 0), 1, 0.5)


@pytest.mark.parametrize(
    ("dim", "eps", "rtol"), [(2, 0.5, 2e-5), (2, 0.1, 6e-5), (2, 0.05, 2e-3), (3, 0.5, 6e-4), (3, 0.1, 5e-2)]
)
def test_radial_ornstein_uhlenbeck_exit_time(dim, eps, rtol):
    """Unit ball from its centre: 1245 in the plane at ε = 0.05."""
    process = fp.Langevin(lambda x: sum(x[i] ** 2 for i in range(dim)) / 2, eps)
    gen = fp.Generator(process, _round(dim), ["boundary"])
    check(fp.mean_exit_time(gen).at((0,) * dim), [reference.radial_ou_exit_time(eps, dim)], rtol)


# Planes through the origin may reflect what is radial: a narrow cone has the exit times of the ball.


def _cone(n, width=0.02):
    """n layers between the origin and the unit sphere, thinner towards the sphere, which is the part "sphere"."""
    domain = simplex([(0, 0, 0), (1, 0, 0), (1, width, 0), (1, width, width)], n)
    domain = domain.mapped(lambda x: x[0] * (2 - x[0]) * x / np.maximum(np.linalg.norm(x, axis=0), 1e-300))
    domain.mark("sphere", lambda x: np.linalg.norm(x, axis=0) > 1 - 1e-9)
    return domain


@pytest.mark.parallel
@pytest.mark.parametrize(("eps", "exact"), [(0.05, 373.905502332379), (0.02, 272362017.462503)])
def test_radial_ornstein_uhlenbeck_exit_time_at_low_noise(eps, exact):
    process = fp.Langevin(lambda x: (x[0] ** 2 + x[1] ** 2 + x[2] ** 2) / 2, eps)
    check(reference.radial_ou_exit_time(eps, 3), exact, 1e-10)
    gen = fp.Generator(process, _cone(10), ["sphere"], scheme="weighted")
    check(fp.mean_exit_time(gen).at((0, 0, 0)), [exact], 1e-3)


@pytest.mark.parallel
def test_ornstein_uhlenbeck_committor_in_the_annulus():
    """|x| = 3/2 before 1/2 from |x| = 1, ε = 0.1: against the drift."""
    process = fp.Langevin(lambda x: (x[0] ** 2 + x[1] ** 2) / 2, 0.1)
    gen = fp.Generator(process, fp.Domain.annulus((0, 0), 0.5, 1.5, 0.2), ["inner", "outer"], scheme="galerkin")
    check(fp.exit_probability(gen, to=["outer"]).at((0.6, 0.8)), [0.00495001922735013], 2e-4)


@pytest.mark.parallel
def test_ornstein_uhlenbeck_committor_in_the_shell():
    """The same in three dimensions, in a pyramid with reflecting sides."""
    domain = fp.Domain.box((0.5, 0, 0), (1.5, 0.005, 0.005), (12, 1, 1))
    domain = domain.mapped(lambda x: x[0] * np.array([1 + 0 * x[0], x[1], x[2]]) / np.sqrt(1 + x[1] ** 2 + x[2] ** 2))
    process = fp.Langevin(lambda x: (x[0] ** 2 + x[1] ** 2 + x[2] ** 2) / 2, 0.1)
    gen = fp.Generator(process, domain, ["left", "right"], scheme="galerkin")
    point = np.array([1, 0.002, 0.003])
    check(fp.exit_probability(gen, to=["right"]).at(point / np.linalg.norm(point)), [0.00822970658354425], 3e-4)


# ---------------------------------------------------------------- double wells


def _well(eps, tilt=0.0):
    return fp.Langevin(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + tilt * x[0], eps)


@pytest.mark.parametrize(("eps", "rtol"), [(1.0, 1e-10), (0.2, 5e-11), (0.1, 1e-10), (0.05, 4e-10)])
def test_double_well_exit_times(eps, rtol):
    """From −1 to the other minimum and to the saddle; (−∞, 1) is truncated at −3 (at −4.5 for ε = 1)."""
    left = -4.5 if eps == 1 else -3.0
    for target in (1.0, 0.0):
        gen = fp.Generator(_well(eps), fp.Domain.interval(left, target, 100), ["right"])
        check(fp.mean_exit_time(gen).at(-1.0), [reference.double_well_exit_time(eps, target)], rtol)


@pytest.mark.parallel
@pytest.mark.parametrize("eps", [0.1, 0.05])
def test_tilted_double_well_exit_times(eps):
    """Both ways between the minima of (x² − 1)²/4 + x/10."""
    left, right = reference.double_well_minima(0.1)
    gen = fp.Generator(_well(eps, 0.1), fp.Domain.interval(-3, right, 100), ["right"])
    check(fp.mean_exit_time(gen).at(left), [reference.double_well_exit_time(eps, right, 0.1, left)], 1.5e-9)
    gen = fp.Generator(_well(eps, 0.1), fp.Domain.interval(left, 3, 100), ["left"])
    check(fp.mean_exit_time(gen).at(right), [reference.double_well_exit_time(eps, -left, -0.1, -right)], 1.5e-9)


@pytest.mark.parallel
def test_double_well_committor():
    """Probability of reaching +1 before −1: ∫e^{f/ε}, ε = 0.1."""
    gen = fp.Generator(_well(0.1), fp.Domain.interval(-1, 1, 50), BOX[1])
    t, w = np.polynomial.legendre.leggauss(60)

    def integral(a, b):
        x = (a + b) / 2 + (b - a) / 2 * t
        return np.sum(w * (b - a) / 2 * np.exp((x**2 - 1) ** 2 / 0.4))

    x = [-0.2, 0.0, 0.5]
    exact = [integral(-1, s) / integral(-1, 1) for s in x]
    check(exact[0], 0.285308791833179, 1e-13)
    check(fp.exit_probability(gen, to=["right"]).at(x), exact, 5e-11)


@pytest.mark.parametrize("eps", [0.5, 0.1])
def test_double_well_invariant_density(eps):
    """Gibbs' e^{-f/ε}; the relaxation rate of ε = 0.1 is 0.0335."""
    gen = fp.Generator(_well(eps), fp.Domain.interval(-4, 4, 160))
    p = fp.stationary(gen)
    x = np.linspace(-4, 4, 4001)
    weight = np.exp(-((x**2 - 1) ** 2) / 4 / eps)
    Z = np.sum(weight) * (x[1] - x[0])
    check(p.at([-1.0, 0.0, 1.3]), np.exp(-((np.array([-1.0, 0.0, 1.3]) ** 2 - 1) ** 2) / 4 / eps) / Z, 2e-10)
    if eps == 0.1:
        assert p.stats["relaxation_rate"] == pytest.approx(0.033545287308, rel=0.01)


def test_separable_well_in_the_plane_is_the_one_on_the_line():
    """Exit through a straight line from (x² − 1)²/4 + 2 y², grid not aligned with anything by symmetry."""
    eps = 0.2
    process = fp.Langevin(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + 2 * x[1] ** 2, eps)
    gen = fp.Generator(process, fp.Domain.rectangle((-2.6, -1.6), (1.0, 1.6), (12, 8)), ["right"])
    check(fp.mean_exit_time(gen).at((-1.0, 0.0)), [reference.double_well_exit_time(eps, 1.0)], 8e-7)
