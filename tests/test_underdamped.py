"""Underdamped Langevin dynamics against Gibbs' law and the kinetic Ornstein-Uhlenbeck process."""

import numpy as np
import pytest
from scipy.linalg import expm
from tools import within

import fpsolver as fp

POINTS = np.array([(0.0, 0.0), (0.5, 0.5), (-1.0, 0.3)])
QUARTIC = lambda x: x[0] ** 2 / 2 + x[0] ** 4 / 4  # noqa: E731


def gibbs(T, m):
    x, v = np.linspace(-2.5, 2.5, 801), np.linspace(-3, 3, 801)
    weight = lambda x, v: np.exp(-(x**2 / 2 + x**4 / 4 + m * v**2 / 2) / T)  # noqa: E731
    Z = np.trapezoid(np.trapezoid(weight(x[:, None], v[None]), v), x)
    return weight(*POINTS.T) / Z


@pytest.mark.parallel
def test_gibbs_law_for_every_friction():
    """One compilation for all temperatures, masses and frictions."""
    process = fp.UnderdampedLangevin(QUARTIC, temperature=0.5, friction=1.5, mass=2.0)
    gen = fp.Generator(process, fp.Domain.rectangle((-2.5, -3), (2.5, 3), (20, 20)))
    for T, m, friction in ((0.5, 2.0, 1.5), (0.8, 4.0, 0.7)):
        p = fp.stationary(gen.replace(temperature=T, mass=m, friction=friction))
        np.testing.assert_allclose(p.at(POINTS), gibbs(T, m), rtol=1e-4)


def test_paths_against_the_matrix_exponential():
    """U = x²/2: E X_t is linear, and positions and velocities become independent with variances T and T/m."""
    T, gamma, m = 0.5, 1.5, 2.0
    process = fp.UnderdampedLangevin(potential=lambda x: x[0] ** 2 / 2, temperature=T, friction=gamma, mass=m)
    paths = fp.simulate(process, None, (1.0, 0.0), times=[1.0, 12.0], step=0.005, paths=20_000)
    exact = expm(np.array([[0.0, 1.0], [-1 / m, -gamma]]))[0, 0]
    within(paths.expectation(lambda x: x[0])[0], exact)
    for f, value in ((lambda x: x[0] ** 2, T), (lambda x: x[1] ** 2, T / m)):
        within(paths.expectation(f)[1], value)


def test_energy_and_loss():
    process = fp.UnderdampedLangevin(QUARTIC, 0.5, 1.5, mass=2.0)
    space = fp.Generator(process, fp.Domain.rectangle((-1, -1), (1, 1), (2, 2)), degree=1).weak.space
    energy = process.energy(space)
    assert process.loss is QUARTIC and process.kinetic
    assert float(energy((0.5, 0.3))) == pytest.approx(0.125 + 0.5**4 / 4 + 0.09)
    assert float(fp.Noisy(process, 0.1).energy(space)((0.5, 0.3))) == pytest.approx(float(energy((0.5, 0.3))))


@pytest.mark.parametrize("name", ["temperature", "friction", "mass"])
def test_numbers_must_be_positive(name):
    with pytest.raises(ValueError, match=f"UnderdampedLangevin: {name} is -1"):
        fp.UnderdampedLangevin(**{"potential": QUARTIC, "temperature": 1.0, "friction": 1.0, name: -1.0})
    with pytest.raises(ValueError, match="2 coordinates per weight"):
        fp.Generator(fp.UnderdampedLangevin(QUARTIC, 1.0, 1.0), fp.Domain.interval(-1, 1, 4))


def test_one_warning_for_one_cause(caplog):
    """Twelve frictions on a box whose walls cut a tail off, and another degree: two sentences, not one for each."""
    domain = fp.Domain.rectangle((-2.5, -3), (2.5, 3), (4, 4))
    gen = fp.Generator(fp.UnderdampedLangevin(QUARTIC, 0.5, 1.0), domain, degree=2)
    sweep = [gen.replace(friction=friction) for friction in np.geomspace(0.1, 10.0, 12)]
    assert len(sweep) == 12 and gen.with_degree(3).degree == 3
    texts = [record.msg for record in caplog.records]
    assert len(texts) == len(set(texts)) > 0
    caplog.clear()
    fp.Generator(fp.UnderdampedLangevin(QUARTIC, 0.5, 1.0), domain, degree=2)  # which is another one
    assert len(caplog.records) == len(texts)
