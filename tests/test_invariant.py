"""Several invariant laws and the mass each attracts; tightness; truncation."""

import numpy as np
import pytest
import ufl
from dolfinx import fem
from scipy import integrate, special
from tools import box, check

import fpsolver as fp

# ---------------------------------------------------------------- ergodic laws


@pytest.mark.parallel
@pytest.mark.parametrize(("eta", "tolerance"), [(1.0, 5e-7), (4.0, 1e-9)])
def test_mass_splitting_between_interpolating_minima(eta, tolerance):
    """f = (x² − 1)²/4, Σ = f: point masses at ±1; P(end at +1 | x) = I_{(1+x)/2}(4/η + 1, 4/η + 1)."""
    well = lambda x: (x[0] ** 2 - 1) ** 2 / 4  # noqa: E731
    laws = fp.ergodic_laws(fp.Generator(fp.SGD(well, fp.Covariance(well), eta), fp.Domain.interval(-1, 1, 40)))
    assert len(laws) == 2
    assert laws.points == (True, True)
    check(laws.centers, [[-1.0], [1.0]], 1e-4)
    x = np.array([-0.9, -0.5, -0.2, 0.3])
    exact = special.betainc(4 / eta + 1, 4 / eta + 1, (1 + x) / 2)
    check(laws.probabilities[1].at(x), exact, tolerance)
    known = {1.0: (0.0489273071289063, 0.26656768), 4.0: (0.15625, 0.352)}[eta]
    check(exact[1:3], known, 1e-12)
    check(laws.weights(fp.dirac(-0.5)), [1 - known[0], known[0]], tolerance)
    assert laws.weights(fp.gaussian(0.0, 0.2)).sum() == pytest.approx(1, abs=1e-12)


def test_both_sides_of_a_point_mass_are_one_law():
    """On (−2, 2) no mass crosses ±1, so that the mesh has four laws for the two point masses."""
    well = lambda x: (x[0] ** 2 - 1) ** 2 / 4  # noqa: E731
    laws = fp.ergodic_laws(fp.Generator(fp.SGD(well, fp.Covariance(well), 1.0), fp.Domain.interval(-2, 2, 40)))
    assert len(laws) == 2
    assert len(laws.rates) == 5
    check(laws.centers, [[-1.0], [1.0]], 1e-4)
    check(laws.weights(fp.dirac(-0.5)), [1 - 0.0489273071289063, 0.0489273071289063], 5e-6)
    check(laws.weights(fp.dirac(-1.5)), [1.0, 0.0], 5e-6)


@pytest.mark.parametrize(("length", "cells", "degree"), [(1.5, 20, 6), (1.5, 20, 4), (1.4, 31, 1), (2.0, 80, 2)])
def test_a_mesh_that_leaks_does_not_hide_a_law(length, cells, degree):
    """±1 inside cells, or at a node where degree 2 leaks between them: rates of 1e-7 to 1e-4 that nothing resolves."""
    well = lambda x: (x[0] ** 2 - 1) ** 2 / 4  # noqa: E731
    domain = fp.Domain.interval(-length, length, cells)
    laws = fp.ergodic_laws(fp.Generator(fp.SGD(well, fp.Covariance(well), 1.0), domain, degree=degree))
    check(laws.centers, [[-1.0], [1.0]], 2e-3)
    check(laws.weights(fp.dirac(-0.5)), [1 - 0.0489273071289063, 0.0489273071289063], 1e-4 if degree > 1 else 2e-3)


def test_stationary_says_when_the_law_may_not_be_the_only_one(caplog):
    """On a mesh that leaks: the law is a mixture that the mesh has chosen."""
    well = lambda x: (x[0] ** 2 - 1) ** 2 / 4  # noqa: E731
    gate = fp.PerSample([lambda x: x[0] ** 2 / 2, lambda x: (2 * x[0] - 1) ** 2 / 2])
    with caplog.at_level("WARNING", logger="fpsolver"):
        fp.stationary(fp.Generator(fp.SGD(None, gate, 0.1), fp.Domain.interval(-0.5, 1.2, 34)))
        assert not caplog.text
        fp.stationary(fp.Generator(fp.SGD(well, fp.Covariance(well), 1.0), fp.Domain.interval(-1.5, 1.5, 20)))
    assert "fp.ergodic_laws(gen) tells" in caplog.text


@pytest.mark.parallel
@pytest.mark.parametrize("cells", [40, 41])
def test_two_components(cells):
    """b = x − x³, D = x²/10 in Itô form: nothing crosses 0, and ρ ∝ x⁸ e^{−5x²} on either side.

    With 41 cells the gate lies inside a cell.
    """
    process = fp.SDE(lambda x: x[0] - x[0] ** 3, lambda x: 0.1 * x[0] ** 2)
    gen = fp.Generator(process, fp.Domain.interval(-2.2, 2.2, cells))
    if cells == 40:  # with 41 the mesh leaks at a rate of 1e-9
        with pytest.raises(ValueError, match=r"not unique.*ergodic_laws"):
            fp.stationary(gen)
    laws = fp.ergodic_laws(gen)
    assert len(laws) == 2
    assert laws.points == (False, False)
    rho = lambda x: x**8 * np.exp(-5 * x**2)  # noqa: E731
    Z, mean = (integrate.quad(lambda x, k=k: x**k * rho(x), 0, 2.2, epsabs=1e-14)[0] for k in (0, 1))
    check(laws.centers, [[-mean / Z], [mean / Z]], 2e-5)
    x = np.array([0.5, 0.9, 1.4])
    check(laws.laws[1].at(x), rho(x) / Z, 2e-4)
    check(laws.laws[0].at(-x), rho(x) / Z, 2e-4)
    assert laws.laws[0].at(np.linspace(-2.2, 2.2, 301)).min() >= 0
    assert laws.supports[1, 0, 0] > 0 > laws.supports[0, 1, 0]
    check(laws.probabilities[0].at([-1.0, -0.3, 0.3, 1.0]), [1, 1, 0, 0], 1e-6)


@pytest.mark.parallel
def test_one_way_gates():
    """D = 0.3(1 − x²)², b = x(4 − x²)/3: out through ±1 and never back; probabilities by the scale function."""
    process = fp.SDE(lambda x: x[0] * (4 - x[0] ** 2) / 3, lambda x: 0.3 * (1 - x[0] ** 2) ** 2)
    laws = fp.ergodic_laws(fp.Generator(process, fp.Domain.interval(-2.6, 2.6, 52)))
    assert len(laws) == 2

    def density(x):  # s'(x) = exp(−∫₀ˣ b/D)
        return np.exp(-integrate.quad(lambda y: y * (4 - y * y) / (0.9 * (1 - y * y) ** 2), 0, x, epsabs=1e-13)[0])

    whole = 2 * integrate.quad(density, 0, 0.999, epsabs=1e-13)[0]
    x = np.array([-0.5, 0.0, 0.3])
    exact = [0.5 + np.sign(y) * integrate.quad(density, 0, abs(y), epsabs=1e-13)[0] / whole for y in x]
    check(laws.probabilities[1].at(x), exact, 1e-6)
    check(laws.probabilities[1].at([-1.5, 1.5]), [0.0, 1.0], 1e-6)


@pytest.mark.parallel
def test_weights_of_a_gaussian_in_two_dimensions():
    """Half planes that nothing leaves: the weight is the initial mass of each."""
    process = fp.SDE(lambda x: (x[0] - x[0] ** 3, -x[1]), lambda x: ((0.1 * x[0] ** 2, 0), (0, 0.2)))
    gen = fp.Generator(process, fp.Domain.rectangle((-2, -2), (2, 2), (8, 4)), degree=3)
    laws = fp.ergodic_laws(gen)
    assert len(laws) == 2
    right = special.ndtr(0.3 / 0.25)
    check(laws.weights(fp.gaussian((0.3, 0.5), 0.25)), [1 - right, right], 1e-5)


@pytest.mark.parallel
def test_slow_is_not_invariant():
    """A double well with rate 7e-4 has one law, that of stationary; a tolerance above the rate makes two of it."""
    gen = fp.Generator(fp.Langevin(fp.landscapes.double_well, 0.05), fp.Domain.interval(-2, 2, 40))
    laws = fp.ergodic_laws(gen)
    assert len(laws) == 1
    x = np.array([-1.0, 0.2, 1.1])
    check(laws.laws[0].at(x), fp.stationary(gen).at(x), 1e-8)
    check(laws.probabilities[0].at(x), np.ones(3), 1e-9)
    rate = laws.rates[1]
    assert rate == pytest.approx(abs(fp.spectrum(gen, 2).eigenvalues[1]), rel=1e-6)
    assert len(fp.ergodic_laws(gen, tolerance=2 * rate)) == 2


def test_bad_input():
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), box(1, 8), ["right"])
    with pytest.raises(ValueError, match="right"):
        fp.ergodic_laws(gen)
    with pytest.raises(ValueError, match="tolerance is -1"):
        fp.ergodic_laws(fp.Generator(fp.SDE(lambda x: -x[0], 1.0), box(1, 8)), tolerance=-1)


def test_a_set_of_fixed_points_has_too_many_laws():
    """Neither drift nor noise on |x| < 1/2: every point there is invariant."""
    outside = lambda x: ufl.max_value(abs(x[0]) - 0.5, 0.0)  # noqa: E731
    process = fp.SDE(lambda x: -ufl.sign(x[0]) * outside(x), lambda x: outside(x) ** 2)
    gen = fp.Generator(process, fp.Domain.interval(-1, 1, 80), scheme="dg")
    with pytest.raises(ValueError, match="or more invariant laws"):
        fp.ergodic_laws(gen)


# ---------------------------------------------------------------- tightness


@pytest.mark.parallel
def test_lyapunov_bound_of_noise_that_grows():
    """f = x²/2, Σ = 1 + x²: L x² = −(2 − η) x² + η, so that E x² = η/(2 − η) on the line, and the bound is sharp."""
    eta = 0.8
    process = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Covariance(lambda x: 1 + x[0] ** 2), eta)
    found = fp.diagnostics.tightness(fp.Generator(process, fp.Domain.interval(-4, 4, 20)))
    assert found.tight
    assert found.rate == pytest.approx(2 - eta, rel=1e-4)
    assert found.constant == pytest.approx(eta, rel=1e-4)
    assert found.bound == pytest.approx(eta / (2 - eta), rel=1e-4)
    assert found.inwards == pytest.approx(eta - (2 - eta) * 3.6**2, rel=1e-9)  # at the layer's inner edge
    assert found.wall == pytest.approx(2 * 4 * eta / 2 * 17, rel=1e-9)
    assert str(found).startswith("tight: ") and "E V <= 0.6667" in str(found)


@pytest.mark.parallel
def test_what_is_not_tight():
    gen = fp.Generator(fp.SDE(lambda x: (x[0], -x[1]), 0.1), box(2, 4))
    found = fp.diagnostics.tightness(gen)
    assert not found.tight
    assert found.inwards > 0
    with pytest.raises(ValueError, match="non-negative"):
        fp.diagnostics.tightness(gen, lyapunov=lambda x: x[0])


@pytest.mark.parallel
def test_lyapunov_function_of_a_kinetic_process():
    """Friction acts on v alone: |x|² + |v|² increases where v = 0, x² + v² + xv serves."""
    process = fp.SDE(lambda x: (x[1], -x[0] - x[1]), ((0, 0), (0, 0.1)))
    gen = fp.Generator(process, box(2, 4, -3, 3))
    assert fp.diagnostics.tightness(gen).inwards == pytest.approx(0.2, rel=1e-9)
    assert fp.diagnostics.tightness(gen, lyapunov=lambda x: x[0] ** 2 + x[1] ** 2 + x[0] * x[1]).inwards < 0


# ---------------------------------------------------------------- truncation


@pytest.mark.parametrize("half", [2, 4, 8])
def test_algebraic_tails(half):
    """ρ ∝ (1 + x²)^{−2.25}: the change on a 1.25 times larger interval is the mass beyond the smaller one."""
    process = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Covariance(lambda x: 1 + x[0] ** 2), 0.8)
    gen = fp.Generator(process, fp.Domain.interval(-half, half, 80))
    before = gen.domain.mesh.geometry.x.copy()
    found = fp.diagnostics.truncation(gen)
    small, large = (integrate.quad(lambda x: (1 + x * x) ** -2.25, -a, a, epsabs=1e-14)[0] for a in (half, 1.25 * half))
    assert found.outside == pytest.approx(1 - small / large, rel=1e-6)
    assert found.change == pytest.approx(1 - small / large, rel=1e-6)
    assert found.walls["right"].density == pytest.approx((1 + half**2) ** -2.25 / small, rel=1e-5)
    cell = integrate.quad(lambda x: (1 + x * x) ** -2.25, half * (1 - 2 / 80), half)[0] / small
    assert found.walls["left"].mass == pytest.approx(cell, rel=1e-5)
    assert found.walls["left"].flux < 1e-7
    assert f"left: mass in its cells {cell:.2e}" in str(found)
    assert (gen.domain.mesh.geometry.x == before).all()


@pytest.mark.parallel
def test_exponential_tails_in_two_dimensions():
    process = fp.Langevin(lambda x: x[0] ** 2 / 2 + x[1] ** 2, 0.5)
    found = fp.diagnostics.truncation(fp.Generator(process, fp.Domain.rectangle((-2, -2), (2, 2), (10, 10))))
    small, large = (special.erf(a) * special.erf(np.sqrt(2) * a) for a in (2.0, 2.5))
    assert found.outside == pytest.approx(1 - small / large, rel=1e-3)
    assert abs(found.mean).max() < 1e-8
    assert set(found.walls) == {"left", "right", "bottom", "top"}


def test_bad_truncation():
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), box(1, 8))
    with pytest.raises(ValueError, match="enlarge is 1"):
        fp.diagnostics.truncation(gen, enlarge=1)
    f = fem.Function(fem.functionspace(gen.domain.mesh, ("Lagrange", 1)))
    f.interpolate(lambda x: -x[0])
    with pytest.raises(ValueError, match="drift: the Function lives on another mesh"):
        fp.diagnostics.truncation(fp.Generator(fp.SDE(f, 1.0), gen.domain))
