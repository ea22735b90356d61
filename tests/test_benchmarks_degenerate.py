"""Diffusions that degenerate inside, at the boundary or everywhere, against closed forms.

Tolerances are two to five times the discretisation error on these meshes.
"""

from functools import cache

import numpy as np
import pytest
import reference
import ufl
from tools import box, check, l2_error, triangulated

import fpsolver as fp

# ---------------------------------------------------------------- degenerate inside


def test_grushin_payoffs():
    """L = (∂_xx + x² ∂_yy)/2 from 0: E cos Y_t = cosh(t)^{-1/2}, E Y_t² = t²/2."""
    process = fp.SDE((0, 0), lambda x: ((0.5, 0), (0, x[0] ** 2 / 2)))
    gen = fp.Generator(process, fp.Domain.rectangle((-6, -12), (6, 12), (12, 24)), scheme="dg")
    check(fp.backward(gen, lambda x: ufl.cos(x[1]), [1.0], time_rtol=1e-8)[0].at((0, 0)), [np.cosh(1) ** -0.5], 5e-5)
    check(fp.backward(gen, lambda x: x[1] ** 2, [1.0], time_rtol=1e-8)[0].at((0, 0)), [0.5], 4e-7)


def _rotational(x):
    """D = zzᵀ/2 with z = (−y, x): noise along the circles only."""
    return ((x[1] ** 2 / 2, -x[0] * x[1] / 2), (-x[0] * x[1] / 2, x[0] ** 2 / 2))


@pytest.mark.parallel
@pytest.mark.parametrize("k", [0.0, 0.2])
def test_rotational_noise_drives_outwards_in_ito_form(k):
    """Drift −kx: |X(t)| = |X(0)| e^{(1/2 − k)t} for every path, T = 2 ln(2/r)/(1 − 2k) in the annulus 1 < r < 2."""
    domain = fp.Domain.annulus((0, 0), 1, 2, 0.25)
    gen = fp.Generator(fp.SDE(lambda x: (-k * x[0], -k * x[1]), _rotational), domain, ["outer"])
    radii = np.array([1.0, 1.1, 1.5, 1.9])
    points = np.column_stack([radii * np.cos(2.0), radii * np.sin(2.0)])
    check(fp.mean_exit_time(gen).at(points), 2 * np.log(2 / radii) / (1 - 2 * k), 1e-5)


@pytest.mark.parametrize(
    ("process", "what"),
    [
        (fp.SDE((0, 0), _rotational, convention="divergence"), "the divergence form of the same D keeps |X|"),
        (fp.SDE(lambda x: (-x[0], -x[1]), _rotational), "|X| = |X(0)| e^{-t/2} shrinks"),
    ],
    ids=["divergence-form", "pulled-inwards"],
)
@pytest.mark.parametrize("h", [0.25, 0.12])
def test_no_exit_time_where_rotational_noise_never_leaves(process, what, h):
    """No number may come out, least of all a negative one, also where curved facets only approximate the circle."""
    domain = fp.Domain.annulus((0, 0), 1, 2, h)
    with pytest.raises((ValueError, fp.NotConverged)):
        fp.mean_exit_time(fp.Generator(process, domain, ["outer"], scheme="dg"))
        pytest.fail(f"an exit time was given although {what}")


# ---------------------------------------------------------------- one direction without noise: time itself


@cache
def _space_time():
    domain = box(2, 8).mapped(lambda x: (x[0], (1 + x[1]) / 2))
    return fp.Generator(fp.SDE((0, 1), ((0.5, 0), (0, 0))), domain, ["left", "right", "top"])


def test_space_time_exit_time():
    """L = ∂_xx/2 + ∂_y on (−1, 1) × (0, 1): min(τ, 1 − y), no data at the bottom."""
    points = [(0, 0), (0, 0.5)]
    check(fp.mean_exit_time(_space_time()).at(points), [reference.space_time_exit_time(y) for _, y in points], 8e-8)
    report = _space_time().boundary_report()
    check([report["bottom"].inflow, report["top"].outflow, report["left"].diffusive], [2, 2, 1], 1e-12)


def test_space_time_exit_probability():
    """The top is reached by what survives a time 1 − y."""
    q = fp.exit_probability(_space_time(), to=["top"])
    check(q.at([(0, 0), (0, 0.5)]), [reference.interval_survival(1.0), reference.interval_survival(0.5)], 2e-7)


def test_space_time_in_three_dimensions():
    """Planar Brownian motion in a square and time: ∫₀^{1−z} P(τ > s)² ds."""
    domain = box(3, 4).mapped(lambda x: (x[0], x[1], (1 + x[2]) / 2))
    process = fp.SDE((0, 0, 1), ((0.5, 0, 0), (0, 0.5, 0), (0, 0, 0)))
    gen = fp.Generator(process, domain, ["left", "right", "front", "back", "top"], degree=2)
    t, w = np.polynomial.legendre.leggauss(40)
    exact = np.sum(w / 4 * np.array([reference.interval_survival(s) ** 2 for s in (1 + t) / 4]))
    check(fp.mean_exit_time(gen).at((0, 0, 0.5)), [exact], 5e-3)


# ---------------------------------------------------------------- no noise at all


def test_transport_density():
    """x' = −x carries N(m, s²) to N(m e^{-t}, s² e^{-2t})."""
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 0.0), fp.Domain.interval(-3, 3, 60))
    t = 0.5
    evolution = fp.evolve(gen, fp.gaussian(0.5, 0.4), [t], time_rtol=1e-7)
    x = np.array([0.0, 0.3, 0.6])
    mean, cov = np.array([0.5 * np.exp(-t)]), np.array([[0.16 * np.exp(-2 * t)]])
    check(evolution[0].at(x), reference.gaussian_density(x[:, None], mean, cov), 6e-6)
    check(evolution.mass, [1.0], 1e-12)


def test_transport_in_a_double_well():
    """x' = x − x³: x(t) = x₀ eᵗ/√(1 + x₀²(e^{2t} − 1)); backwards a payoff is composed with the flow."""
    gen = fp.Generator(fp.SDE(lambda x: x[0] - x[0] ** 3, 0.0), fp.Domain.interval(-1.5, 1.5, 60))
    x0, t = np.array([0.1, -0.4, 0.8]), 2.0
    flow = x0 * np.exp(t) / np.sqrt(1 + x0**2 * np.expm1(2 * t))
    check(flow[0], 0.596205490696493, 1e-14)
    check(fp.backward(gen, lambda x: x[0] ** 2, [t], time_rtol=1e-7)[0].at(x0), flow**2, 1e-5)


def test_transport_exit_time():
    """The time from 0.1 to 0.9 along x' = x − x³."""
    gen = fp.Generator(fp.SDE(lambda x: x[0] - x[0] ** 3, 0.0), fp.Domain.interval(0.05, 0.9, 40), ["right"])
    check(fp.mean_exit_time(gen).at(0.1), [3.02256501282032], 1e-7)


# ---------------------------------------------------------------- discontinuous diffusion


def _ring(n):
    """(−1, 1)² without (−1/2, 1/2)²."""
    return fp.Domain(triangulated(-1, 1, n, lambda x: np.abs(x).max(axis=1) > 0.5))


def _angle(x):
    a = ufl.atan2(x[1], x[0])
    return ufl.conditional(ufl.lt(x[1], 0), a + 2 * ufl.pi, a)


def _ring_solution(x):
    t = _angle(x) - ufl.pi
    return ufl.conditional(ufl.gt(x[1], 0), t**2, 3 * ufl.pi * t)


def _ring_running(x):
    upper, r2 = ufl.gt(x[1], 0), x[0] ** 2 + x[1] ** 2
    return ufl.conditional(upper, 2 * (_angle(x) - ufl.pi) - 2 * ufl.pi, 3 * ufl.pi) / r2


def _ring_error(n, degree):
    from dolfinx import fem

    domain = _ring(n)
    nu = fem.Function(fem.functionspace(domain.mesh, ("DG", 0)))
    nu.interpolate(lambda x: np.where(x[1] > 0, np.pi, 0.0))
    process = fp.SDE(
        lambda x: (x[1] / (x[0] ** 2 + x[1] ** 2), -x[0] / (x[0] ** 2 + x[1] ** 2)), nu, convention="divergence"
    )
    with fp.Generator(process, domain, ["boundary"], degree=degree) as gen:
        u = fp.feynman_kac(gen, exit=_ring_solution, running=_ring_running)
        assert gen.scheme == "dg"
        upper = lambda t: t**2  # noqa: E731
        lower = lambda t: 3 * np.pi * t  # noqa: E731

        def exact(x):
            t = np.mod(np.arctan2(x[1], x[0]), 2 * np.pi) - np.pi
            return np.where(x[1] > 0, upper(t), lower(t))

        error = 0.0
        for side, points in ((1, [(0.7, 0.1), (-0.6, 0.4)]), (-1, [(0.7, -0.1), (-0.2, -0.8)])):
            assert all(side * y > 0 for _, y in points)
            error = max(error, np.abs(u.at(points) - exact(np.array(points).T)).max())
        return error


def test_ring_with_half_of_it_diffusive():
    """Di Pietro, Ern, Guermond (2008): ν = π above and 0 below; where drift enters the noise, u jumps by 2π²."""
    coarse, fine = _ring_error(8, 2), _ring_error(16, 2)
    assert fine < 0.02
    assert fine < coarse / 3


def test_transport_error_is_that_of_the_mesh():
    """The L2 norm of what the projection loses bounds what transport by a constant drift loses."""
    gen = fp.Generator(fp.SDE(1.0, 0.0), fp.Domain.interval(0, 10, 50), degree=3)
    p = fp.evolve(gen, fp.gaussian(3.0, 0.5), [2.0], time_rtol=1e-8)[0]

    def exact(x):
        return np.exp(-0.5 * ((x[0] - 5) / 0.5) ** 2) / np.sqrt(2 * np.pi) / 0.5

    assert l2_error(p.function, exact) < 1e-3
