"""Spectra and quasi-stationary laws against closed forms and published digits."""

import numpy as np
import pytest

import fpsolver as fp
from fpsolver.discretisation.assembly import to_vector
from fpsolver.landscapes import double_well

DOUBLE_WELL = {  # -L of the quartic well, two spectral methods agreeing to these digits
    1.0: (0.79208842658, 3.5488891823),
    0.5: (0.422944645398, 2.31491324699),
    0.2: (0.13477798375, 1.3125808218),
    0.1: (0.033545287308, 0.927372102608, 1.68026376739),
    0.05: (0.0027761406366, 0.822247124501),
    0.025: (1.9589273e-5, 0.904243117103),
}


@pytest.mark.parametrize("scheme", ["galerkin", "dg", "weighted"])
@pytest.mark.parametrize("eps", [0.025, 0.05, pytest.param(0.1, marks=pytest.mark.parallel), 0.2, 0.5, 1.0])
def test_spectrum_of_the_double_well(eps, scheme):
    # cells must resolve the weights wherever the domain goes: not far beyond the wells for the weighted scheme
    end = {1.0: 3.2, 0.5: 2.9, 0.025: 1.9}.get(eps, 2.5) if scheme == "weighted" else 4
    gen = fp.Generator(fp.Langevin(double_well, eps), fp.Domain.interval(-end, end, 80), scheme=scheme)
    found = fp.spectrum(gen, 1 + len(DOUBLE_WELL[eps]))
    assert abs(found.eigenvalues[0]) < 1e-9
    # the plain schemes resolve the narrow wells of the lowest temperature less well
    rtol = 1e-4 if eps == 0.025 and scheme != "weighted" else 2e-6
    assert np.allclose(found.eigenvalues[1:].real, -np.array(DOUBLE_WELL[eps]), rtol=rtol, atol=0)
    assert np.allclose(found.timescales[1:], 1 / np.array(DOUBLE_WELL[eps]), rtol=rtol, atol=0)


@pytest.mark.parallel
def test_kinetic_ornstein_uhlenbeck_has_complex_pairs():
    """Eigenvalues -(n₁ λ₊ + n₂ λ₋) with λ± = (1 ± i√3)/2."""
    process = fp.SDE(lambda x: (x[1], -x[0] - x[1]), ((0, 0), (0, 1.0)))
    gen = fp.Generator(process, fp.Domain.rectangle((-6, -6), (6, 6), (14, 14)))
    found = fp.spectrum(gen, 4).eigenvalues
    lam = (1 + 1j * np.sqrt(3)) / 2
    exact = [0, -lam, -lam.conjugate(), -1]
    assert np.allclose(
        sorted(found, key=lambda z: (round(-z.real, 3), z.imag)),
        sorted(exact, key=lambda z: (round(-z.real, 3), z.imag)),
        atol=5e-5,
    )


@pytest.mark.parallel
def test_modes_are_biorthogonal():
    gen = fp.Generator(fp.Langevin(double_well, 0.1), fp.Domain.interval(-4, 4, 60), scheme="galerkin")
    modes = fp.spectrum(gen, 3)
    right, left = ([to_vector(gen, pair[0]) for pair in side] for side in (modes.right, modes.left))
    products = np.zeros((3, 3))
    for j, p in enumerate(right):
        Mp = gen.M.createVecLeft()
        gen.M.mult(p, Mp)
        products[:, j] = [q.dot(Mp) for q in left]
    assert np.allclose(products, np.eye(3), atol=1e-7)


def test_quasi_stationary_law_of_the_interval():
    gen = fp.Generator(fp.SDE(0.0, 0.5), fp.Domain.interval(-1, 1, 10), ["left", "right"])
    law = fp.quasi_stationary(gen)
    x = np.array([-0.5, 0.0, 0.7])
    assert law.rate == pytest.approx(np.pi**2 / 8, rel=1e-9)
    assert np.allclose(law.at(x), np.pi / 4 * np.cos(np.pi * x / 2), rtol=1e-6)


@pytest.mark.parametrize(("dim", "exact"), [(2, 2.89159298147339), (3, 4.93480220054468)])
def test_quasi_stationary_rate_of_the_ball(dim, exact):
    domain = fp.Domain.disk((0, 0), 1, 0.25) if dim == 2 else fp.Domain.ball((0, 0, 0), 1, 0.45)
    gen = fp.Generator(fp.SDE((0,) * dim, 0.5), domain, ["boundary"])
    assert fp.quasi_stationary(gen).rate == pytest.approx(exact, rel=1e-5 if dim == 2 else 2e-3)


@pytest.mark.parametrize(
    ("R", "rate"), [(2**-0.5, 2.0), (1, 0.798459832032057), (2, 0.0374612092816752), (3, 0.000391082929748591)]
)
def test_quasi_stationary_rate_of_an_ornstein_uhlenbeck_process(R, rate):
    """Zeros of Kummer's M(-λ/2, 1/2, R²) for dX = -X dt + dW on (-R, R)."""
    gen = fp.Generator(
        fp.SDE(lambda x: -x[0], 0.5), fp.Domain.interval(-R, R, 40), ["left", "right"], scheme="galerkin"
    )
    assert fp.quasi_stationary(gen).rate == pytest.approx(rate, rel=1e-7)


@pytest.mark.parallel
def test_exit_from_the_quasi_stationary_law_is_exponential():
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 0.5), fp.Domain.interval(-1, 1, 12), ["left", "right"])
    law = fp.quasi_stationary(gen)
    times = np.array([0.5, 2.0])
    assert np.allclose(fp.survival(gen, law.density, times, time_rtol=1e-9), np.exp(-law.rate * times), rtol=1e-7)
    assert fp.exit_distribution(gen, law.density).mean_time == pytest.approx(1 / law.rate, rel=1e-8)


@pytest.mark.parallel
@pytest.mark.parametrize("scheme", ["galerkin", "dg"])
def test_modes_of_multiple_eigenvalues_are_biorthogonal(scheme):
    """The square has each mode with n != m twice; two modes of one side must not be paired with one of the other."""
    domain, walls = fp.Domain.rectangle((-1, -1), (1, 1), (3, 3)), ["left", "right", "bottom", "top"]
    gen = fp.Generator(fp.SDE(lambda x: (0, 0), 0.5), domain, walls, scheme=scheme)
    for k in (2, 3, 4):
        found = fp.spectrum(gen, k)
        assert found.eigenvalues == pytest.approx(-np.array([2, 5, 5, 8][:k]) * np.pi**2 / 8, rel=1e-4)
        products = np.zeros((k, k))
        for j in range(k):
            p, Mp = to_vector(gen, found.right[j][0]), gen.G.createVecLeft()
            gen.M.mult(p, Mp)
            products[:, j] = [to_vector(gen, q).dot(Mp) for q, _ in found.left]
        assert products == pytest.approx(np.eye(k), abs=1e-8)


@pytest.mark.parallel
@pytest.mark.parametrize("degree", [1, 2])
def test_genetic_drift_of_three_alleles(degree):
    """The uniform law decays like e^{-3t} exactly, and without exits three laws are invariant."""
    domain = fp.Domain.polygon([(0, 0), (1, 0), (0, 1)], h=0.35)
    D = lambda x: ((x[0] * (1 - x[0]) / 2, -x[0] * x[1] / 2), (-x[0] * x[1] / 2, x[1] * (1 - x[1]) / 2))  # noqa: E731
    process = fp.SDE(lambda x: (0, 0), D)
    gen = fp.Generator(process, domain, domain.parts, degree=degree)
    assert fp.spectrum(gen, 3).eigenvalues == pytest.approx([-3, -6, -6], abs=1e-10)
    q = fp.quasi_stationary(gen)
    assert q.rate == pytest.approx(3, abs=1e-10)
    assert q.at([(0.2, 0.2), (0.7, 0.1)]) == pytest.approx(2, abs=1e-9)
    kernel = fp.spectrum(fp.Generator(process, domain, degree=degree), 3).eigenvalues
    assert abs(kernel).max() < 1e-10


@pytest.mark.parallel
def test_quasi_stationary_law_needs_an_exit():
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 0.5), fp.Domain.interval(-1, 1, 4))
    with pytest.raises(ValueError, match="nothing absorbs"):
        fp.quasi_stationary(gen)


@pytest.mark.parallel
def test_number_of_modes_is_checked():
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 0.5), fp.Domain.interval(-1, 1, 4))
    with pytest.raises(ValueError, match="an integer between 1 and"):
        fp.spectrum(gen, 0)


# -- where a process leaves


@pytest.mark.parallel
@pytest.mark.parametrize("scheme", ["galerkin", "dg"])
def test_exit_sides_of_the_square(scheme):
    """Harmonic measure of a side of the unit square, by its Fourier series."""
    domain = fp.Domain.rectangle((0, 0), (1, 1), (5, 5))
    gen = fp.Generator(fp.SDE((0, 0), 0.5), domain, domain.parts, scheme=scheme, degree=5)
    left = fp.exit_distribution(gen, (0.25, 0.5))
    assert sum(left.probability.values()) == pytest.approx(1, abs=1e-11)
    assert left.probability["right"] == pytest.approx(0.0954141179666134, abs=1e-6)
    assert left.probability["top"] == pytest.approx(left.probability["bottom"], abs=1e-8)
    assert left.mean_time == pytest.approx(fp.mean_exit_time(gen).at((0.25, 0.5))[0], rel=1e-10)
    flux = left.density("right")
    points, density, weights = flux.points, flux.density, flux.weights
    assert np.allclose(points[:, 0], 1)
    assert density @ weights == pytest.approx(left.probability["right"], abs=1e-12)


@pytest.mark.parallel
def test_exit_density_of_the_disk_is_the_poisson_kernel():
    gen = fp.Generator(fp.SDE((0, 0), 0.5), fp.Domain.disk((0, 0), 1, 0.15), ["boundary"])
    flux = fp.exit_distribution(gen, fp.gaussian((0.4, 0.0), 0.05)).density("boundary")
    points, density, weights = flux.points, flux.density, flux.weights
    kernel = (1 - 0.4**2) / (2 * np.pi * ((points[:, 0] - 0.4) ** 2 + points[:, 1] ** 2))
    assert abs(density - kernel) @ weights < 2e-3  # harmonic functions: a radial start is a point start
    assert density @ weights == pytest.approx(1, abs=1e-10)


@pytest.mark.parallel
def test_exit_distribution_needs_an_exit():
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 0.5), fp.Domain.interval(-1, 1, 4))
    for verb in (lambda: fp.exit_distribution(gen, 0.0), lambda: fp.survival(gen, 0.0, [1.0])):
        with pytest.raises(ValueError, match="nothing absorbs"):
            verb()
