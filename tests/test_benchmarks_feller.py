"""Diffusions that vanish at the boundary or have a drift that is singular there, against closed forms.

Tolerances are two to five times the discretisation error on these meshes.
"""

from functools import cache

import numpy as np
import pytest
import reference
import ufl
from scipy import stats
from tools import BOX, check, simplex

import fpsolver as fp

# ---------------------------------------------------------------- genetics


def _graded(n):
    return fp.Domain.interval(-1, 1, n).mapped(lambda x: (0.5 + 0.5 * np.sign(x[0]) * (1 - (1 - np.abs(x[0])) ** 4),))


@cache
def _alleles(n=40):
    """L = x(1 − x)/2 ∂_xx on (0, 1), graded towards both ends, where the exit time is x ln x."""
    return fp.Generator(fp.SDE(0.0, lambda x: x[0] * (1 - x[0]) / 2), _graded(n), BOX[1])


@pytest.mark.parallel
def test_wright_fisher_exit_time():
    tau = fp.mean_exit_time(_alleles())
    x = [0.5, 0.1, 0.01]
    check(tau.at(x), [reference.wright_fisher_exit_time(s) for s in x], 2e-7)
    report = _alleles().boundary_report()
    assert (report["left"].outflow, report["right"].outflow) == (1.0, 1.0)


@pytest.mark.parallel
def test_wright_fisher_survival():
    times = [0.1, 0.5, 1.0, 2.0]
    check(
        fp.survival(_alleles(), 0.5, times, time_rtol=1e-8), [reference.wright_fisher_survival(t) for t in times], 1e-8
    )


@pytest.mark.parametrize("g", [2.0, 10.0])
def test_wright_fisher_fixation_with_selection(g):
    """L = x(1 − x)(∂_xx/2 + g ∂_x): (1 − e^{−2gx})/(1 − e^{−2g})."""
    process = fp.SDE(lambda x: g * x[0] * (1 - x[0]), lambda x: x[0] * (1 - x[0]) / 2)
    gen = fp.Generator(process, fp.Domain.interval(0, 1, 20), BOX[1])
    x = np.array([0.1, 0.5])
    check(fp.exit_probability(gen, to=["right"]).at(x), np.expm1(-2 * g * x) / np.expm1(-2 * g), 6e-9)


@pytest.mark.parallel
def test_wright_fisher_time_with_selection():
    """Values by quadrature of the speed measure."""
    for g, x, exact in ((2.0, 0.5, 1.09295986266732), (10.0, 0.1, 0.547421794665821)):
        process = fp.SDE(lambda x, g=g: g * x[0] * (1 - x[0]), lambda x: x[0] * (1 - x[0]) / 2)
        with fp.Generator(process, _graded(40), BOX[1]) as gen:
            check(fp.mean_exit_time(gen).at(x), [exact], 1e-6)


@cache
def _three_alleles():
    process = fp.SDE(
        (0, 0), lambda x: ((x[0] * (1 - x[0]) / 2, -x[0] * x[1] / 2), (-x[0] * x[1] / 2, x[1] * (1 - x[1]) / 2))
    )
    return fp.Generator(process, simplex([(0, 0), (1, 0), (0, 1)], 10), ["boundary"])


STARTS = [(1 / 3, 1 / 3), (0.2, 0.3)]


@pytest.mark.parallel
def test_first_loss_of_three_alleles():
    """All sides of the simplex are outflow without diffusion."""
    exact = [reference.wright_fisher_simplex_exit_time((a, b, 1 - a - b)) for a, b in STARTS]
    check(exact, [0.575364144903562, 0.509784243952241], 1e-13)
    check(fp.mean_exit_time(_three_alleles()).at(STARTS), exact, 8e-6)


@pytest.mark.parallel
def test_fixation_of_one_of_three_alleles():
    """What remains when the first is lost is the problem of two: −2 Σ (1 − x) ln(1 − x)."""

    def two_alleles(x):
        return -2 * sum((1 - a) * ufl.ln(1 - a) for a in (x[0], x[1], 1 - x[0] - x[1]))

    tau = fp.feynman_kac(_three_alleles(), exit=two_alleles, running=1.0)
    check(tau.at(STARTS), [1.62186043243266, 1.54952178417691], 8e-6)


@pytest.mark.parametrize("nu", [2.0, 3.0, 5.0])
def test_bessel_process_exit_time(nu):
    """L = ∂_xx/2 + (ν − 1)/(2x) ∂_x on (0, 1): (1 − x²)/ν although the drift is singular at 0."""
    gen = fp.Generator(fp.SDE(lambda x: (nu - 1) / (2 * x[0]), 0.5), fp.Domain.interval(0, 1, 10), ["right"])
    x = np.array([0.05, 0.5, 0.9])
    check(fp.mean_exit_time(gen).at(x), (1 - x**2) / nu, 1e-12)


@pytest.mark.parallel
@pytest.mark.parametrize(("mu", "s2", "exact"), [(0.1, 0.09, 5.04044594343904), (-1.0, 1.0, 0.359409649179231)])
def test_geometric_brownian_motion_exit_time(mu, s2, exact):
    process = fp.SDE(lambda x: mu * x[0], lambda x: s2 / 2 * x[0] ** 2)
    gen = fp.Generator(process, fp.Domain.interval(0.5, 2, 20), BOX[1])
    check(reference.geometric_exit_time(1.0, 0.5, 2.0, mu, s2), exact, 1e-13)
    check(fp.mean_exit_time(gen).at(1.0), [exact], 1e-7)


def test_geometric_brownian_motion_down_to_zero():
    """On (0, 1) with μ = σ² = 1: 2 ln(1/x), unbounded at 0, where nothing can be imposed."""
    domain = fp.Domain.interval(0, 1, 40).mapped(lambda x: (x[0] ** 4,))
    gen = fp.Generator(fp.SDE(lambda x: x[0], lambda x: x[0] ** 2 / 2), domain, ["right"])
    x = np.array([0.01, 0.1, 0.5])
    check(fp.mean_exit_time(gen).at(x), 2 * np.log(1 / x), 1e-6)
    assert gen.boundary_report()["left"].characteristic == 1.0


def test_disk_with_tangential_noise_at_its_boundary():
    """D = I − xxᵀ, b = −3x: x and 2r² − 1 decay with rates 3 and 8, without any boundary data."""
    domain = fp.Domain.disk((0, 0), 1, 0.3)
    process = fp.SDE(
        lambda x: (-3 * x[0], -3 * x[1]), lambda x: ((1 - x[0] ** 2, -x[0] * x[1]), (-x[0] * x[1], 1 - x[1] ** 2))
    )
    gen = fp.Generator(process, domain, scheme="dg")
    points = np.array([(0.5, 0.2), (-0.1, 0.6)])
    t = 0.2
    check(fp.backward(gen, lambda x: x[0], [t], time_rtol=1e-8)[0].at(points), np.exp(-3 * t) * points[:, 0], 2e-5)
    r2 = np.sum(points**2, axis=1)
    second = fp.backward(gen, lambda x: 2 * (x[0] ** 2 + x[1] ** 2) - 1, [t], time_rtol=1e-8)[0]
    check(second.at(points), np.exp(-8 * t) * (2 * r2 - 1), 4e-4)


# ---------------------------------------------------------------- square-root noise


def _square_root(theta):
    """dX = (θ − X) dt + √X dW."""
    return fp.SDE(lambda x: theta - x[0], lambda x: x[0] / 2)


@pytest.mark.parallel
def test_square_root_process_exit_time():
    """θ = 1: from 1 and from 0, which the process leaves and never reaches, up to 3."""
    gen = fp.Generator(_square_root(1.0), fp.Domain.interval(0, 3, 20), ["right"])
    assert gen.boundary_report()["left"].inflow == 1.0
    check(fp.mean_exit_time(gen).at([1.0, 0.0]), [16.059977965112, 17.5493214261871], 1e-9)


@pytest.mark.parallel
def test_square_root_process_reflected_at_zero():
    """θ = 1/4: zero is reached, and without data there the smooth solution is the reflected one."""
    gen = fp.Generator(_square_root(0.25), fp.Domain.interval(0, 1, 20), ["right"])
    assert gen.boundary_report()["left"].outflow == 1.0
    check(fp.mean_exit_time(gen).at(0.1), [8.57505275654664], 2e-8)


@pytest.mark.parallel
def test_square_root_process_density():
    """θ = 1 from 1 after t = 1: a noncentral χ² law."""
    gen = fp.Generator(_square_root(1.0), fp.Domain.interval(0, 16, 64))
    p = fp.evolve(gen, fp.dirac(1.0), [1.0], time_rtol=1e-8)[0]
    c = 2 / (1 - np.exp(-1))  # p(x) = 2c χ²(2cx; 4, 2c e^{-1})
    x = np.array([1.0, 0.5, 3.0])
    exact = 2 * c * stats.ncx2.pdf(2 * c * x, 4, 2 * c * np.exp(-1))
    check(exact[:2], [0.579988855202416, 0.723151520543018], 1e-12)
    check(p.at(x), exact, 2e-8)


@pytest.mark.parallel
def test_option_price_with_stochastic_volatility():
    """Heston's model: dS = S √v dW₁, dv = κ(θ − v) dt + σ √v dW₂, with v = 0 reached and left again (2κθ < σ²).

    One backward solve in (ln S/K, v) gives E (S_T − K)⁺ from all starts; without data at v = 0 the solution is that of
    the process reflected there.  The price is that of the characteristic function.
    """
    kappa, theta, sigma, rho, K = 1.5768, 0.0398, 0.5751, -0.5711, 100.0
    domain = fp.Domain.rectangle((-2, 0), (2, 1), (48, 8))
    # fine at the kink of the payoff and at 0
    domain = domain.mapped(lambda x: (2 * np.sinh(2 * x[0]) / np.sinh(4), x[1] ** 2))
    noise = lambda x: (  # noqa: E731
        (x[1] / 2, rho * sigma * x[1] / 2),
        (rho * sigma * x[1] / 2, sigma**2 * x[1] / 2),
    )
    gen = fp.Generator(fp.SDE(lambda x: (-x[1] / 2, kappa * (theta - x[1])), noise), domain)
    assert gen.scheme == "dg"
    assert gen.boundary_report()["bottom"].outflow == pytest.approx(4.0)
    price = fp.backward(gen, lambda x: K * ufl.max_value(ufl.exp(x[0]) - 1, 0), 1.0, time_rtol=1e-7)[0]
    check(price.at([(0.0, 0.0175)]), [5.785155434376], 2e-5)
