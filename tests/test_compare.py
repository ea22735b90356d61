"""Where the diffusion holds: the algorithm's exact moments, and the table and the order."""

from fractions import Fraction

import numpy as np
import pytest
import reference
from scipy.interpolate import CubicSpline

import fpsolver as fp
from fpsolver.montecarlo.compare import fit_order
from fpsolver.montecarlo.ensemble import Estimate


def exactly(value):
    return Estimate(value, value, value, 0.95, 1)


def tilted(order):
    """f = x²/2 + x⁴/20 with Gaussian noise of variance 0.2 + 0.1 x²."""
    loss, noise = lambda x: x[0] ** 2 / 2 + x[0] ** 4 / 20, fp.Covariance(lambda x: 0.2 + 0.1 * x[0] ** 2)
    return lambda eta: fp.SGD(loss, noise, eta, order=order)


def algorithm(eta, time, degree=2, start=1.5):
    """E X_k^degree of that algorithm by quadrature over a fine grid: the exact transition, step by step."""
    x = np.linspace(-3.5, 3.5, 2001)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    mean, std = x - eta * (x + x**3 / 5), eta * np.sqrt(0.2 + 0.1 * x * x)
    u = x**degree
    for _ in range(round(time / eta)):
        u = CubicSpline(x, u)(mean[:, None] + std[:, None] * nodes) @ weights
    return float(CubicSpline(x, u)(start))


@pytest.mark.parametrize(("order", "low", "high"), [(1, 0.97, 1.01), (2, 1.9, 2.05)])
def test_weak_order_of_the_diffusion(order, low, high):
    """E X² at time 1.2 on a loss that is not quadratic, with noise that is not constant; no Monte Carlo in it."""
    rates, gaps = (0.05, 0.025, 0.0125), []
    for eta in rates:
        with fp.Generator(tilted(order)(eta), fp.Domain.interval(-3.5, 3.5, 40)) as gen:
            pde = fp.backward(gen, lambda x: x[0] ** 2, [1.2], time_rtol=1e-10)[0].at(1.5)[0]
        gaps.append(exactly(algorithm(eta, 1.2) - pde))
    assert low < fit_order(rates, gaps).value < high
    assert abs(np.log2(abs(gaps[1].value / gaps[2].value)) - order) < 0.05 * order


@pytest.mark.parametrize("order", [1, 2])
def test_weak_order_against_the_chain(order):
    """The same without noise of sampling, from the table: its chain is the algorithm."""
    rates, options = (0.05, 0.025, 0.0125), {"quantity": lambda x: x[0] ** 2, "time": 1.2, "paths": 50}
    result = fp.compare(tilted(order), fp.Domain.interval(-3.5, 3.5, 160), rates, 1.5, **options)
    for row in result.rows:
        assert row.chain.value == pytest.approx(algorithm(row.learning_rate, 1.2), abs=2e-8)
    assert abs(result.order.value - order) < 0.1


def test_order_two_is_no_better_for_the_stationary_variance_of_a_quadratic():
    """Exact fractions: both miss η s²/(h(2 − ηh)) by O(η²), order two by twice as much."""
    gaps = []
    for eta in (Fraction(1, 10), Fraction(1, 100)):
        true = eta / (2 - eta)
        gaps.append((abs(true - eta / 2), abs(true - eta / (2 + eta))))
    assert all(1.9 < two / one < 2.0 for one, two in gaps)
    assert all(90 < a / b < 115 for a, b in zip(*gaps, strict=True))


def test_fit_of_a_known_order():
    rates = [0.4, 0.2, 0.1]
    fitted = fit_order(rates, [Estimate(r**2, r**2 * 0.9, r**2 * 1.1, 0.95, 100) for r in rates])
    assert fitted.value == pytest.approx(2) and fitted.covers(2) and 0.05 < fitted.error < 0.3
    noisy = [Estimate(0.01, -0.1, 0.12, 0.95, 100), exactly(0.02), exactly(0.01)]
    fitted = fit_order(rates, noisy)
    assert fitted.value == pytest.approx(1) and "1 learning rate" in fitted.note
    assert fit_order(rates, [noisy[0]] * 3) is None


def test_table_of_an_expectation():
    """SDE paths agree with the PDE; SGD differs by first order in η."""
    process = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(0.1), 0.1)
    domain = fp.Domain.interval(-3, 3, 40)
    options = {"quantity": lambda x: x[0] ** 2, "time": 1.0, "paths": 10_000, "seed": 2}
    result = fp.compare(process, domain, [0.5, 0.25], 1.0, **options)
    for row in result.rows:
        eta, k = row.learning_rate, round(1 / row.learning_rate)
        diffusion = np.exp(-2) + eta * 0.1 / 2 * (1 - np.exp(-2))
        discrete = (1 - eta) ** (2 * k) + eta**2 * 0.1 * (1 - (1 - eta) ** (2 * k)) / (1 - (1 - eta) ** 2)
        assert abs(row.pde.value - diffusion) < 2 * row.pde.error < 1e-6
        assert abs(row.sde.value - row.pde.value) < 1.8 * row.sde.error + 0.02 * eta / 0.5 * row.pde.value
        assert abs(row.sgd.value - discrete) < 1.8 * row.sgd.error
        assert abs(row.chain.value - discrete) < 1e-12
        assert row.discrepancy.error < 1e-6  # no noise of sampling in it
        assert row.significant
    assert 0.7 < result.order.value < 1.4
    lines = str(result).splitlines()
    assert len(lines) == 5 and "±" in lines[2] and lines[-1].startswith("order of the discrepancy in η: ")


def test_error_bars_of_the_pde():
    """On three cells of degree 2, f = x²/2 with D = 2η: the bar holds the true error."""
    process = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(4.0), 0.1)
    options = {"absorbing": ["left", "right"], "paths": 500, "degree": 2, "scheme": "galerkin"}
    result = fp.compare(process, fp.Domain.interval(-1, 1, 3), [0.2, 0.1], 0.0, **options)
    for row, line in zip(result.rows, str(result).splitlines()[2:4], strict=True):
        exact = reference.exit_time_1d(0.0, -1, 1, lambda x: -x, lambda x, d=2 * row.learning_rate: d)
        off = abs(row.pde.value - exact / row.learning_rate)
        assert 0.5 * off < row.pde.error < 2 * off
        assert f"{row.pde} " in line
        assert row.discrepancy.error == pytest.approx((row.chain.error + row.pde.error) / row.pde.value)


@pytest.mark.parallel
def test_error_bar_of_an_expectation():
    """Brownian motion killed at ±1, E[X²; t < τ] from 0.3 by a series, on three cells of degree 2."""
    process = fp.SGD(lambda x: 0.0 * x[0], fp.Isotropic(10.0), 0.1)  # D = 1/2
    domain, g = fp.Domain.interval(-1, 1, 3), lambda x: x[0] ** 2
    options = {"quantity": g, "time": 0.5, "absorbing": ["left", "right"], "degree": 2, "paths": 200}
    row = fp.compare(process, domain, [0.1], 0.3, **options).rows[0]
    a = (2 * np.arange(50) + 1) * np.pi / 2
    modes = 2 * np.sin(a) / a - 4 * np.sin(a) / a**3  # of cos(a x), without the cosines of a, which vanish
    exact = (modes * np.cos(0.3 * a) * np.exp(-(a**2) * 0.25)).sum()
    off = abs(row.pde.value - exact)
    assert 1e-5 < off < 1e-2 and 0.5 * off < row.pde.error < 2 * off


@pytest.mark.parallel
def test_exit_times_in_steps():
    """A family of processes; the PDE's exit time lies in the SDE paths' interval and the O(step) of their steps."""

    def family(eta):
        return fp.SGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(4.0), eta)

    result = fp.compare(family, fp.Domain.interval(-1, 1, 10), [0.2, 0.1], 0.0, absorbing=["left", "right"], paths=3000)
    for row in result.rows:
        assert abs(row.sde.value / row.pde.value - 1) < 1.8 * row.sde.error / row.pde.value + 0.04
        assert row.sgd.value > row.sde.value  # it may leave at the ends of steps only
        assert row.discrepancy.value == pytest.approx(row.chain.value / row.pde.value - 1)
        assert abs(row.chain.value - row.sgd.value) < row.chain.error + 1.8 * row.sgd.error and not row.doubts
    assert "mean exit time in steps" in str(result)


@pytest.mark.parallel
def test_bad_comparisons():
    process, domain = fp.SGD(lambda x: x[0] ** 2, fp.Isotropic(1.0), 0.1), fp.Domain.interval(-1, 1, 4)
    for match, arguments, more in (
        ("a positive number", ([-0.1],), {"absorbing": "left"}),
        ("nothing absorbs", ([0.1],), {}),
        ("quantity is 'variance'", ([0.1],), {"quantity": "variance"}),
        ("give time=", ([0.1],), {"quantity": lambda x: x[0]}),
        ("no whole number of steps", ([0.3],), {"quantity": lambda x: x[0], "time": 1.0}),
    ):
        with pytest.raises(ValueError, match=match):
            fp.compare(process, domain, *arguments, 0.0, **more)
    with pytest.raises(TypeError, match=r"expected fp\.SGD or a function"):
        fp.compare(3, domain, [0.1], 0.0)
