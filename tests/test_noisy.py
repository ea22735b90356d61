"""Isotropic noise added to degenerate processes, and taken away again, against exact laws."""

import numpy as np
import pytest
from tools import check, expectation, mean_and_covariance

import fpsolver as fp

DELTAS = (0.2, 0.1, 0.05)


def oscillator(delta):
    """dX = V dt, dV = −(X + V) dt + √2 dW, and √(2δ) dB in both."""
    process = fp.SDE(lambda x: (x[1], -x[0] - x[1]), ((0, 0), (0, 1.0)))
    return fp.Noisy(process, delta)


def gate(delta, eta=0.1):
    """Two samples whose gradients agree at 2/3: D = s²y²/2 + δ with y = 2/3 − x, s² = 0.225."""
    samples = fp.PerSample([lambda x: x[0] ** 2 / 2, lambda x: (2 * x[0] - 1) ** 2 / 2])
    return fp.Noisy(fp.SGD(None, samples, eta), delta)


@pytest.mark.parallel
def test_covariance_of_the_noisy_oscillator():
    """Invariant covariance (1 + 3δ, −δ, 1 + 2δ) by Lyapunov's equation: affine in δ, extrapolated exactly."""
    gen = fp.Generator(oscillator(0.1), fp.Domain.rectangle((-7, -7), (7, 7), (12, 12)), scheme="dg")

    def covariance(gen):
        cov = mean_and_covariance(gen, fp.stationary(gen).raw)[1]
        return [cov[0, 0], cov[0, 1], cov[1, 1]]

    found = fp.vanishing_noise_limit(gen, covariance, DELTAS)
    for delta, row in zip(DELTAS, found.values, strict=True):
        check(row, [1 + 3 * delta, -delta, 1 + 2 * delta], 1e-5)
    assert found.exists
    check(found.limit, [1, 0, 1], 1e-5)
    check(found.order, [1, 1, 1], 1e-3)
    assert (found.error < 1e-5).all()


@pytest.mark.parallel
def test_gate_with_less_and_less_noise():
    """Mean 4/15 for every δ, E y² = (2m²/k + 2δ)/(2k − s²), and a mass above the gate that vanishes like e^{−c/√δ}."""
    gen = fp.Generator(gate(0.1), fp.Domain.interval(-5, 5.0, 150), scheme="dg")

    def moments(gen):
        p = fp.stationary(gen).raw
        return [expectation(gen, lambda x, n=n: (2 / 3 - x[0]) ** n, p) for n in (1, 2)]

    found = fp.vanishing_noise_limit(gen, moments, (0.1, 0.05, 0.025, 0.0125))
    check(found.values[:, 0], np.full(4, 4 / 15), 1e-9)
    check(found.values[:, 1], (2 * (4 / 9) / 2.5 + 2 * found.deltas) / (5 - 0.225), 1e-8)
    assert found.limit[1] == pytest.approx(2 * (4 / 9) / 2.5 / (5 - 0.225), rel=1e-8)
    assert found.order[1] == pytest.approx(1.0, abs=1e-6)
    assert np.isnan(found.order[0]) and found.exists, "what does not change has no order, but a limit"
    assert found.predicted == 1


@pytest.mark.parametrize(("delta", "exact"), [(0.1, 0.0966495616735), (0.01, 4.17941684426e-5)])
def test_mass_behind_the_gate(delta, exact):
    """The wall is put at the gate, so that the mass on its other side is an integral over whole cells."""
    domain = fp.Domain.interval(2 / 3 - 3, 2 / 3 + 3, 240)
    gen = fp.Generator(gate(delta), domain, scheme="dg")
    p = fp.stationary(gen)
    t, w = np.polynomial.legendre.leggauss(8)
    edges = 2 / 3 + 0.025 * np.arange(60)
    x = (edges[:, None] + 0.0125 * (1 + t)).ravel()
    check(p.at(x) @ np.tile(0.0125 * w, 60), exact, 3e-6)


@pytest.mark.parallel
def test_distance_to_a_collapsing_law_is_of_order_one_half():
    """Without noise everything falls into the minimum: the law N(0, δ) is at W₂ distance √δ from it."""
    pytest.importorskip("ot")
    gen = fp.Generator(fp.Noisy(fp.SDE(lambda x: -x[0], 0.0), 0.1), fp.Domain.interval(-2, 2, 80), scheme="dg")
    deltas = (0.04, 0.02, 0.01)
    found = fp.vanishing_noise_limit(
        gen, lambda g: fp.wasserstein(fp.stationary(g), fp.dirac(0.0)), deltas, predicted=0.5
    )
    check(found.values, np.sqrt(deltas), 1e-6)
    assert found.order == pytest.approx(0.5, abs=1e-5)
    assert abs(found.limit) < 1e-5
    known = fp.vanishing_noise_limit(
        gen, lambda g: expectation(g, lambda x: x[0] ** 2, fp.stationary(g).raw), deltas, reference=0.0
    )
    assert known.order == pytest.approx(1.0, abs=1e-6), "a smooth observable sees δ, not √δ"


@pytest.mark.parallel
def test_wasserstein_distances_of_gaussians():
    """W₁ of a shift is the shift; W₂² = (m − n)² + (s − r)² in one dimension."""
    gen = fp.Generator(fp.SDE(lambda x: -x[0], 1.0), fp.Domain.interval(-6, 7, 130), scheme="galerkin")
    p, q, r = (fp.evolve(gen, fp.gaussian(m, s), [0.0])[0] for m, s in ((0.0, 0.5), (0.7, 0.5), (0.3, 0.8)))
    assert fp.wasserstein(p, q, order=1) == pytest.approx(0.7, abs=1e-5)
    assert fp.wasserstein(p, p, order=1) == 0
    pytest.importorskip("ot")
    assert fp.wasserstein(p, r) == pytest.approx(np.hypot(0.3, 0.3), abs=2e-4)


@pytest.mark.parallel
def test_wasserstein_in_the_plane():
    """Between N(0, 0.36 I) and N((0.5, 0), 0.36 I) mass is shifted."""
    pytest.importorskip("ot")
    gen = fp.Generator(fp.SDE((0, 0), 1.0), fp.Domain.rectangle((-2, -2), (2.5, 2), (9, 8)), degree=2)
    p, q = (fp.evolve(gen, fp.gaussian((m, 0), 0.5), [0.0])[0] for m in (0.0, 0.5))
    assert fp.wasserstein(p, q) == pytest.approx(0.5, abs=5e-3)


@pytest.mark.parallel
def test_exit_times_without_a_limit_are_recognised():
    """Against the drift: T grows like e^{1/(2δ)}, and without δ nothing ever leaves."""
    gen = fp.Generator(fp.Noisy(fp.SDE(lambda x: -x[0], 0.0), 0.2), fp.Domain.interval(-1, 1, 40), ["left", "right"])
    found = fp.vanishing_noise_limit(gen, lambda g: fp.mean_exit_time(g).at(0.0)[0], (0.2, 0.1, 0.05))
    assert not found.exists
    assert found.limit == np.inf and found.order < 0
    assert "no limit" in repr(found)
    with pytest.raises((ValueError, fp.NotConverged)):
        fp.mean_exit_time(gen.replace(delta=0.0))


def test_exit_times_with_a_limit_along_the_drift():
    """With the drift: T = (1 − δ(1 − e^{−1/δ})) for x' = 1 + √(2δ)B' reflected at 0: order one."""
    gen = fp.Generator(fp.Noisy(fp.SDE(lambda x: 1.0, 0.0), 0.1), fp.Domain.interval(0, 1, 60), ["right"], scheme="dg")
    deltas = (0.08, 0.04, 0.02)
    found = fp.vanishing_noise_limit(gen, lambda g: fp.mean_exit_time(g).at(0.0)[0], deltas)
    check(found.values, 1 - np.array(deltas) * (1 - np.exp(-1 / np.array(deltas))), 1e-8)
    assert found.order == pytest.approx(1.0, abs=1e-4)
    assert found.limit == pytest.approx(1.0, abs=1e-4)
    assert abs(found.limit - 1) <= 2 * found.error + 1e-9


def test_logarithms_have_no_limit_either():
    gen = fp.Generator(fp.Noisy(fp.SDE(0.0, 1.0), 0.1), fp.Domain.interval(0, 1, 2), degree=1)
    found = fp.vanishing_noise_limit(gen, lambda g: np.log(g.process.delta), (0.4, 0.1, 0.02))
    assert found.limit == -np.inf and abs(found.order) < 1e-6
    found = fp.vanishing_noise_limit(gen, lambda g: 3 + g.process.delta**1.5, (0.4, 0.1, 0.02), predicted=1.5)
    assert found.order == pytest.approx(1.5) and found.limit == pytest.approx(3)


@pytest.mark.parallel
def test_potential_of_a_noisy_gibbs_process():
    """Langevin with temperature T and δ is Langevin with T + δ, also in the weighted scheme."""
    loss = lambda x: (x[0] ** 2 - 1) ** 2 / 4  # noqa: E731
    domain = fp.Domain.interval(-2, 0.0, 30)
    a = fp.mean_exit_time(fp.Generator(fp.Noisy(fp.Langevin(loss, 0.03), 0.02), domain, ["right"], scheme="weighted"))
    b = fp.mean_exit_time(fp.Generator(fp.Langevin(loss, 0.05), domain, ["right"], scheme="weighted"))
    check(a.at([-1.0, -0.5]), b.at([-1.0, -0.5]), 1e-10)


def test_a_noisy_process_passes_on_what_it_wraps():
    noisy = gate(0.1)
    assert noisy.numbers() == {"learning_rate": 0.1, "batch_size": 1.0, "delta": 0.1}
    assert noisy.with_parameters(learning_rate=0.2, delta=0.3) == fp.Noisy(
        noisy.process.with_parameters(learning_rate=0.2), 0.3
    )
    assert noisy.time_per_step == 0.1
    momentum = fp.Noisy(fp.MomentumSGD(lambda x: x[0] ** 2, fp.Isotropic(1.0), 0.04, 0.5), 0.1)
    assert momentum.time_per_step == pytest.approx(0.2) and momentum.scaling == ("learning_rate",)
    gen = fp.Generator(momentum, fp.Domain.rectangle((-2, -2), (2, 2), (2, 2)), degree=1)
    assert gen.weak.space.dim == 1
    assert fp.evolve(gen, fp.gaussian((0, 0), 1.0), [0.1], schedule={"delta": [(0, 0.1), (0.05, 0)]}).mass[0] == (
        pytest.approx(1.0)
    )


@pytest.mark.parallel
def test_bad_input():
    gen = fp.Generator(gate(0.1), fp.Domain.interval(-1, 1, 8), degree=1)
    one = lambda g: 1.0  # noqa: E731
    with pytest.raises(TypeError, match="not noisy yet, not Noisy"):
        fp.Noisy(gate(0.1), 0.1)
    with pytest.raises(ValueError, match=r"delta is -0.1; a finite number of at least 0"):
        gate(-0.1)
    with pytest.raises(ValueError, match="SGD has no parameter delta"):
        fp.vanishing_noise_limit(fp.Generator(gate(0.1).process, fp.Domain.interval(-1, 1, 8), degree=1), one, DELTAS)
    for deltas in ((0.1, 0.05), (0.1, 0.2, 0.3), (0.1, 0.05, 0.0)):
        with pytest.raises(ValueError, match="three or more decreasing positive"):
            fp.vanishing_noise_limit(gen, one, deltas)
    with pytest.raises(ValueError, match="finite numbers"):
        fp.vanishing_noise_limit(gen, lambda g: np.nan, DELTAS)
    with pytest.raises(ValueError, match="reference has 2 numbers"):
        fp.vanishing_noise_limit(gen, one, DELTAS, reference=[1, 2])
    p = fp.evolve(gen, lambda x: 1.0 + 0 * x[0], [0.0])[0]
    with pytest.raises(ValueError, match="density of mass one"):
        fp.wasserstein(p, p, order=1)
    with pytest.raises(ValueError, match="order is 3"):
        fp.wasserstein(p, p, order=3)
