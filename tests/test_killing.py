"""Negative killing rates: expectations that are finite are right, those that are infinite are refused."""

import numpy as np
import pytest

import fpsolver as fp

SIDES = ["left", "right"]


def _brownian(scheme, absorbing=SIDES):
    """d²/dx² on (−1, 1): with both ends absorbing the principal eigenvalue of −L is (π/2)² = 2.467."""
    return fp.Generator(fp.SDE(0.0, 1.0), fp.Domain.interval(-1, 1, 8), absorbing=absorbing, scheme=scheme)


@pytest.fixture(scope="module", params=["galerkin", "dg"])
def gen(request):
    return _brownian(request.param)


@pytest.mark.parallel
@pytest.mark.parametrize("rate", [2.0, 2.4, 2.467])
def test_below_the_principal_eigenvalue(gen, rate):
    """E exp(rate τ) = 1/cos √rate, which has 12 to 7832 as its values here."""
    answer, exact = fp.feynman_kac(gen, exit=1.0, killing=-rate, start=(0.0,)), 1 / np.cos(np.sqrt(rate))
    true = abs(answer.at((0.0,))[0] - exact)
    assert true < 1e-6 * exact
    assert answer.error[0] >= 0.5 * true


@pytest.mark.parallel
@pytest.mark.parametrize("killing", [-2.47, -3.0, -50.0, -1e4, lambda x: -3 + 0 * x[0], lambda x: -3 - 3 * x[0]])
@pytest.mark.parametrize(
    "data", [{"exit": 1.0}, {"exit": {"left": -1.0, "right": lambda x: 2 + x[0]}, "running": lambda x: x[0]}]
)
def test_beyond_it_the_expectation_is_infinite(gen, killing, data):
    """Between higher eigenvalues the solution of the equation may even be positive: it is no expectation."""
    with pytest.raises(ValueError, match=r"infinite.*principal eigenvalue of s − L is -"):
        fp.feynman_kac(gen, killing=killing, **data)


@pytest.mark.parallel
def test_where_only_killing_ends_it():
    gen = _brownian("galerkin", [])
    assert fp.feynman_kac(gen, running=1.0, killing=2.0).at(0.3) == pytest.approx(0.5)
    for killing in (-1.0, lambda x: x[0]):
        with pytest.raises(ValueError, match="infinite"):
            fp.feynman_kac(gen, running=1.0, killing=killing)
    # u = 1 + x²/10 solves u″ − s u + f = 0 with s = (f + 1/5)/u, which is negative in the middle
    cost, u = (lambda x: 3 * x[0] ** 2 - 0.3), (lambda x: 1 + 0.1 * (x[0] ** 2 - x[0] ** 4 / 2))
    rate = lambda x: (cost(x) + 0.2 - 0.6 * x[0] ** 2) / u(x)  # noqa: E731
    assert fp.feynman_kac(gen, running=cost, killing=rate).at(0.3) == pytest.approx(u([0.3]), rel=1e-7)


@pytest.mark.parallel
def test_metastable_wells():
    """From the bottom of a well left with rate λ = 1.6e-6, E exp(a λ τ) = 1/(1 − a) up to the time inside the well."""
    process = fp.Langevin(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 0.02)
    gen = fp.Generator(process, fp.Domain.interval(-2.5, 0, 60), absorbing=["right"], scheme="weighted")
    rate = fp.quasi_stationary(gen).rate
    assert fp.feynman_kac(gen, exit=1.0, killing=-0.9 * rate).at(-1.0) == pytest.approx(10, rel=1e-4)
    for killing in (-1.1 * rate, -1.0, lambda x: -1.1 * rate + 0 * x[0]):
        with pytest.raises(ValueError, match="infinite"):
            fp.feynman_kac(gen, exit=1.0, killing=killing)


@pytest.mark.parallel
def test_killing_that_misses_a_place_that_is_never_left():
    """b = −x without noise ends at zero; killed for x > 1/2 only, or around zero."""
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 0.0), fp.Domain.interval(-1, 1, 9))
    with pytest.raises(ValueError, match="stays for ever"):
        fp.feynman_kac(gen, running=1.0, killing=lambda x: (x[0] - 0.5 + abs(x[0] - 0.5)) / 2)
    u = fp.feynman_kac(gen, running=lambda x: 1 + x[0] ** 2, killing=lambda x: 1 - x[0] ** 2 / 9)
    assert u.stats["digits"] > 10


@pytest.mark.parallel
def test_survival_is_a_probability():
    """Near the exit, and long after everything has left, undershoots and the error in time would be negative."""
    gen = fp.Generator(fp.SDE(0.0, 1.0), fp.Domain.interval(-1, 1, 3), absorbing=SIDES, degree=3)
    survival = fp.survival(gen, start=np.array([[0.0], [0.999999], [-1.0]]), times=[1e-4, 0.1, 10.0, 100.0])
    assert survival.min() >= 0
    assert survival.max() <= 1
    assert survival[0, 1] == pytest.approx(0.94931, abs=2e-3)
