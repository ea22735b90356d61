"""One process, three answers: a formula, the PDE, and paths, whose intervals contain the PDE's number.

Seeds are fixed; "within" means 3.5 standard deviations.  Where the step of paths matters, what they converge to for
that step is computed from the recursion of their moments, or removed by extrapolation: nothing is allowed for it.
"""

import numpy as np
import pytest
import reference
import ufl
from scipy import integrate, special
from scipy.interpolate import CubicSpline
from tools import BOX, box, check, expectation, whole, within

import fpsolver as fp
from fpsolver.montecarlo.ensemble import Estimate

GATE = [lambda x: x[0] ** 2 / 2, lambda x: (2 * x[0] - 1) ** 2 / 2]


def square(x):
    return x[0] ** 2


def extrapolated(coarse, fine):
    """The limit of a first-order method from estimates with a step and half of it."""
    value, error = 2 * fine.value - coarse.value, np.hypot(2 * fine.error, coarse.error)
    return Estimate(value, value - error, value + error, fine.level, fine.count)


# ---------------------------------------------------------------- noise that grows with the distance


def test_power_law_noise():
    """Σ = 1 + x²: variance η/(2 − η), of Euler's steps h η/(2 − h − η), of SGD's η/(2 − 2η)."""
    eta, h = 0.2, 0.02
    process = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Covariance(lambda x: 1 + x[0] ** 2), eta)
    with fp.Generator(process, fp.Domain.interval(-12, 12, 120)) as gen:
        pde = expectation(gen, square, fp.stationary(gen).raw)
    check(pde, eta / (2 - eta), 2e-9)
    sde = whole(process, 0.0, 8.0, step=h, paths=20_000).expectation(square)[0]
    within(sde, pde, bias=eta / (2 - h - eta) - eta / (2 - eta))
    sgd = whole(process, 0.0, 8.0, "sgd", 40_000).expectation(square)[0]
    within(sgd, eta / (2 - 2 * eta))
    assert not sgd.covers(pde)


def test_exit_with_power_law_noise():
    process = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Covariance(lambda x: 1 + x[0] ** 2), learning_rate=0.2)
    domain = fp.Domain.interval(-0.5, 0.5, 10)
    with fp.Generator(process, domain, BOX[1]) as gen:
        pde = fp.mean_exit_time(gen).at(0.0)[0]
    check(pde, reference.exit_time_1d(0.0, -0.5, 0.5, lambda x: -x, lambda x: 0.1 * (1 + x * x)), 1e-7)
    runs = [fp.simulate(process, domain, 0.0, absorbing=BOX[1], step=h) for h in (0.02, 0.01)]
    within(extrapolated(*(r.mean_exit_time() for r in runs)), pde)


# ---------------------------------------------------------------- least squares with Gaussian features


def test_least_squares_with_gaussian_features():
    """M' = −(HM + MH) + ε(HMH + tr(HM)H): M(1) from M = I; step by step the same with ε + h for the first HMH."""
    H, eta = np.diag([1.0, 0.25]), 0.1

    def covariance(x):
        q = x[0] ** 2 + x[1] ** 2 / 4
        h = (x[0], x[1] / 4)
        return ((h[0] * h[0] + q, h[0] * h[1]), (h[0] * h[1], h[1] * h[1] + q / 4))

    def stepwise(h):
        M = np.eye(2)
        for _ in range(round(1 / h)):
            A = np.eye(2) - h * H
            M = A @ M @ A + h * eta * (H @ M @ H + np.trace(H @ M) * H)
        return np.diag(M)

    exact = np.array([0.173933630399734, 0.62284008652752])
    check(2 * stepwise(1 / 20000) - stepwise(1 / 10000), exact, 1e-7)
    process = fp.SGD(lambda x: x[0] ** 2 / 2 + x[1] ** 2 / 8, fp.Covariance(covariance), eta)
    start = fp.gaussian((0.0, 0.0), 1.0)
    with fp.Generator(process, fp.Domain.rectangle((-8, -8), (8, 8), (10, 10)), scheme="galerkin") as gen:
        p = fp.evolve(gen, start, [1.0])[0].raw
        pde = [expectation(gen, lambda x, i=i: x[i] ** 2, p) for i in range(2)]
    check(pde, exact, 1e-4)
    sde, sgd = whole(process, start, 1.0, step=0.02, paths=20_000), whole(process, start, 1.0, "sgd", 40_000)
    for i in range(2):
        within(sde.expectation(lambda x, i=i: x[i] ** 2)[0], pde[i], bias=abs(stepwise(0.02)[i] - exact[i]))
        within(sgd.expectation(lambda x, i=i: x[i] ** 2)[0], stepwise(eta)[i])
    assert not sgd.expectation(square)[0].covers(pde[0])


# ---------------------------------------------------------------- two samples: noise of rank one


def test_two_samples():
    """From (1, 1): E X, E X², E XY; SGD multiplies one of the two by 1 − η in each step, so XY is (1 − η)^k."""
    eta, t, h = 0.4, 2.0, 0.02
    process = fp.SGD(None, fp.PerSample([lambda x: x[0] ** 2 / 2, lambda x: x[1] ** 2 / 2]), eta)
    payoffs = (lambda x: x[0], square, lambda x: x[0] * x[1])
    exact = np.exp([-t / 2, (eta / 4 - 1) * t, -(1 + eta / 4) * t])
    n, k = round(t / h), round(t / eta)
    euler = [(1 - h / 2) ** n, ((1 - h / 2) ** 2 + h * eta / 4) ** n, ((1 - h / 2) ** 2 - h * eta / 4) ** n]
    steps = [(1 - eta / 2) ** k, ((1 + (1 - eta) ** 2) / 2) ** k, (1 - eta) ** k]
    with fp.Generator(process, fp.Domain.rectangle((-5, -5), (5, 5), (10, 10))) as gen:
        pde = [fp.backward(gen, g, [t], time_rtol=1e-7)[0].at((1.0, 1.0))[0] for g in payoffs]
    check(pde, exact, 2e-5)
    sde, sgd = whole(process, (1.0, 1.0), t, step=h), whole(process, (1.0, 1.0), t, "sgd")
    for i, g in enumerate(payoffs):
        within(sde.expectation(g)[0], pde[i], bias=abs(euler[i] - exact[i]))
        within(sgd.expectation(g)[0], steps[i], bias=1e-14)
        assert not sgd.expectation(g)[0].covers(pde[i])
    spread = [
        np.abs(whole(process, (1.0, 1.0), t, step=s).positions[0].prod(axis=1) - exact[2]).max() for s in (h, h / 4)
    ]
    assert spread[1] < 0.6 * spread[0]  # on every path, with strong order one half


# ---------------------------------------------------------------- a one-way gate


def gate_moments(h, s2, eta=0.1, delta=0.0, m=2 / 3, k=2.5):
    """Stationary E y² of y' = y + h(m − k y) + noise of variance h(s2 y² + 2δ)."""
    return (2 * m * m / k - h * m * m + 2 * delta) / (2 * k - h * k * k - s2)


def test_a_one_way_gate():
    """Below 2/3 in the long run, with mean 4/15 from there; SGD's variance is larger by 15 %."""
    eta, s2, h = 0.1, 0.225, 0.005
    process, y = fp.SGD(None, fp.PerSample(GATE), eta), lambda x: 2 / 3 - x[0]
    with fp.Generator(process, fp.Domain.interval(-1, 2 / 3, 60)) as gen:
        p = fp.stationary(gen).raw
        pde = [expectation(gen, lambda x, n=n: y(x) ** n, p) for n in (1, 2)]
    check(pde, [4 / 15, 0.00335078534031414 + (4 / 15) ** 2], 1e-8)
    check(pde[1], gate_moments(0.0, s2), 1e-8)
    sde, sgd = whole(process, 1.0, 6.0, step=h), whole(process, 1.0, 6.0, "sgd", 40_000)
    assert (sde.positions < 2 / 3).all() and (sgd.positions < 2 / 3).all()
    for e in (sde, sgd):
        within(e.expectation(y)[0], pde[0], bias=1e-6)  # what is left of the start
    within(sde.expectation(lambda x: y(x) ** 2)[0], pde[1], bias=abs(gate_moments(h, s2) - pde[1]))
    second = sgd.expectation(lambda x: y(x) ** 2)[0]
    within(second, gate_moments(eta, s2))
    assert not second.covers(pde[1])


def test_time_down_to_the_gate():
    """From 5/3 to 2/3, which no noise crosses."""
    process, domain = fp.SGD(None, fp.PerSample(GATE), learning_rate=0.1), fp.Domain.interval(2 / 3, 6, 60)
    with fp.Generator(process, domain, ["left"]) as gen:
        pde = fp.mean_exit_time(gen).at(5 / 3)[0]
    check(pde, 0.615036296897802, 1e-9)
    runs = [fp.simulate(process, domain, 5 / 3, absorbing="left", step=h, paths=10_000) for h in (0.01, 0.005)]
    within(extrapolated(*(r.mean_exit_time() for r in runs)), pde)


def test_a_gate_with_isotropic_noise():
    """With δ = 0.1: the same mean, E y² affine in δ."""
    delta, eta, s2, h = 0.1, 0.1, 0.225, 0.005
    process, y = fp.Noisy(fp.SGD(None, fp.PerSample(GATE), eta), delta), lambda x: 2 / 3 - x[0]
    with fp.Generator(process, fp.Domain.interval(-5, 5, 100)) as gen:
        p = fp.stationary(gen).raw
        pde = [expectation(gen, lambda x, n=n: y(x) ** n, p) for n in (1, 2)]
    check(pde, [4 / 15, gate_moments(0.0, s2, delta=delta)], 1e-8)
    sde = whole(process, 0.4, 5.0, step=h)
    sgd = whole(fp.SGD(None, fp.PerSample(GATE) + fp.Isotropic(2 * delta / eta), eta), 0.4, 5.0, "sgd", 20_000)
    within(sde.expectation(y)[0], pde[0])
    within(sgd.expectation(y)[0], pde[0])
    within(sde.expectation(lambda x: y(x) ** 2)[0], pde[1], bias=abs(gate_moments(h, s2, delta=delta) - pde[1]))
    within(sgd.expectation(lambda x: y(x) ** 2)[0], gate_moments(eta, s2, delta=delta))
    assert not sgd.expectation(lambda x: y(x) ** 2)[0].covers(pde[1])


# ---------------------------------------------------------------- noise that follows the loss


def test_mass_splits_between_interpolating_minima():
    """f = Σ = (x² − 1)²/4: P(end at 1 | x) = I_{(1+x)/2}(4/η + 1, 4/η + 1); Euler's own answer by quadrature."""
    eta, h, t = 4.0, 0.02, 6.0
    process = fp.SGD(lambda x: (x[0] ** 2 - 1) ** 2 / 4, fp.Covariance(lambda x: (x[0] ** 2 - 1) ** 2 / 4), eta)
    with fp.Generator(process, fp.Domain.interval(-1, 1, 40)) as gen:
        laws = fp.ergodic_laws(gen)
        (to_one,) = [p for p, center in zip(laws.probabilities, laws.centers, strict=True) if center[0] > 0]
    x = np.linspace(-2, 2, 1001)
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    mean, std = x - h * x * (x * x - 1), np.sqrt(h * eta) * np.abs(x * x - 1) / 2
    u = (1 + x) / 2
    for _ in range(round(t / h)):
        ends = np.clip(mean[:, None] + std[:, None] * nodes, -2, 2)  # paths come nowhere near these
        u = CubicSpline(x, u)(ends) @ weights / weights.sum()
    for start in (-0.5, -0.2):
        pde, exact = to_one.at(start)[0], special.betainc(2, 2, (1 + start) / 2)
        check(pde, exact, 1e-3)
        e = whole(process, start, t, step=h, paths=6000).expectation(lambda x: (1 + x[0]) / 2)[0]
        euler = float(CubicSpline(x, u)(start))
        within(e, euler)
        within(e, pde, bias=abs(euler - exact))


# ---------------------------------------------------------------- the algorithm is not its diffusion


def test_stationary_variance_of_the_algorithm_and_of_its_diffusions():
    """f = h x²/2: η s²/(h(2 − ηh)) for SGD, η s²/(2h) and η s²/(h(2 + ηh)) for orders one and two."""
    h, eta, s, step = 1.0, 0.1, 1.0, 0.01
    process = fp.SGD(lambda x: h * x[0] ** 2 / 2, fp.Isotropic(s), eta)
    second = fp.SGD(process.loss, process.noise, eta, order=2)
    sgd = whole(process, 0.0, 8.0, "sgd", 60_000).expectation(square)[0]
    within(sgd, eta * s / (h * (2 - eta * h)), bias=1e-8)
    for p, variance in ((process, eta * s / (2 * h)), (second, eta * s / (h * (2 + eta * h)))):
        with fp.Generator(p, fp.Domain.interval(-2, 2, 20)) as gen:
            pde = expectation(gen, square, fp.stationary(gen).raw)
        check(pde, variance, 1e-7)
        rate = eta * s / (2 * variance)  # of the drift; with steps the variance is larger by 1/(1 − rate·step/2)
        within(whole(p, 0.0, 8.0, step=step).expectation(square)[0], pde, bias=pde * (1 / (1 - rate * step / 2) - 1))
        assert not sgd.covers(pde)


# ---------------------------------------------------------------- two-layer scalar neuron with label noise


def layers(c, eta):
    """f = (ab − 1)²/2 with label noise of variance c/η: Σ = s² (b, a)(b, a)ᵀ."""
    label = fp.LabelNoise([lambda x: x[0] * x[1]], float(np.sqrt(c / eta)))
    return fp.SGD(lambda x: (x[0] * x[1] - 1) ** 2 / 2, label, eta)


def gap(x):
    return x[0] ** 2 - x[1] ** 2


def product(x):
    return x[0] * x[1]


def test_label_noise_balances_the_layers():
    """E(a² − b²) = e^{−ct}(a₀² − b₀²) and E ab(t) by the PDE in the plane, with noise of rank one, and by paths.

    A step h multiplies a² − b² by 1 − c h ξ² − h²(ab − 1)² and a term of mean zero, be it Euler's or SGD's, h = η.
    """
    c, t, start = 0.4, 1.5, (1.6, 0.7)
    with fp.Generator(layers(c, 0.1), fp.Domain.rectangle((0, -1.5), (3.5, 3.5), (8, 11)), scheme="dg") as gen:
        pde = [fp.backward(gen, g, [t], time_rtol=1e-6)[0].at(start)[0] for g in (gap, product)]
    check(pde[0], (start[0] ** 2 - start[1] ** 2) * np.exp(-c * t), 1e-4)
    for method in ("sde", "sgd"):
        products = []
        for h in (0.1, 0.05):
            more = {"step": h} if method == "sde" else {}
            n = round(t / h)
            process, times = layers(c, h if method == "sgd" else 0.1), h * np.arange(1, n + 1)
            e = fp.simulate(process, None, start, times=times, method=method, paths=20_000, **more)
            before = np.concatenate((np.tile(start, (1, len(e), 1)), e.positions[:-1])).transpose(2, 0, 1)
            lost = h**2 * (gap(before) * (product(before) - 1) ** 2).mean(axis=1)
            remains = (1 - c * h) ** np.arange(n)
            stepwise = gap(np.array(start)) * (1 - c * h) ** n - remains[::-1] @ lost
            within(e.expectation(gap)[-1], stepwise)
            products.append(e.expectation(product)[-1])
        within(extrapolated(*products), pde[1])


def test_balance_by_the_pde():
    """L(a² − b²) = −ηs² (a² − b²), to rounding, with noise of rank one."""
    c = 0.4
    with fp.Generator(layers(c, 0.1), box(2, 3, 0.5, 1.5), BOX[2], degree=2, scheme="dg") as gen:
        u = fp.feynman_kac(gen, exit=gap, running=lambda x: c * gap(x))
        assert np.abs(u.at([(0.7, 1.2), (1.1, 0.6)]) - [0.49 - 1.44, 1.21 - 0.36]).max() < 1e-12


LOWEST = -100.0


@pytest.mark.parametrize("c", [0.2, 0.5, 1.0, 1.5, 2.5, 3.0])
def test_the_neuron_collapses_beyond_a_strength_of_label_noise(c):
    """On a = b, v = ln ab has drift 2 − c − 2e^v and D = 2c: E ab = 1 − c/2 below c = ηs² = 2; beyond it v → −∞.

    On v > −100 the PDE's invariant law is e^{(1/c − 1/2)v − e^v/c}: its mass is at the upper end or at the lower one.
    """
    line = fp.SDE(lambda v: 2 - c - 2 * ufl.exp(v[0]), 2 * c)
    density = lambda v: np.exp((1 / c - 0.5) * v - (np.exp(v) - 1) / c)  # noqa: E731
    t = 8.0
    with fp.Generator(line, fp.Domain.interval(LOWEST, 3.5, 414)) as gen:
        p = fp.stationary(gen).raw
        mean, low = expectation(gen, np_exp, p), expectation(gen, lambda v: v[0], p)
        at_t = fp.backward(gen, lambda v: ufl.exp(v[0]), [t], time_rtol=1e-6)[0].at(0.0)[0]
    points = [-50, -20, -5, -1, 1, 2]
    mass, first, place = (
        integrate.quad(lambda v, g=g: g(v) * density(v), LOWEST, 3.5, points=points, limit=500, epsabs=0)[0]
        for g in (lambda v: 1.0, np.exp, lambda v: v)
    )
    check(mean, first / mass, 1e-6)
    check(low, place / mass, 1e-6)
    if c < 2:
        check(mean, 1 - c / 2, 1e-6)
        assert low > LOWEST / 4
    else:
        assert mean < 1e-4 and low < 0.8 * LOWEST
    runs = [whole(layers(c, eta), (1.0, 1.0), t, "sgd", 8000) for eta in (0.02, 0.01)]
    within(extrapolated(*(r.expectation(product)[0] for r in runs)), at_t)


def np_exp(v):
    return np.exp(v[0])


def test_strong_label_noise_collapses_the_neuron():
    """c = ηs² beyond 2: ab → 0, in SGD as in its diffusion."""
    for method, more in (("sde", {"step": 0.005}), ("sgd", {})):
        e = whole(layers(3.0, 0.01), (1.0, 1.0), 15.0, method, 500, **more)
        assert np.median(product(e.positions[0].T)) < 1e-2
