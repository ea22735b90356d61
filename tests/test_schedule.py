"""Schedules of the learning rate and other numbers, against exact Gaussians and closed forms."""

import numpy as np
import pytest
import scipy.linalg
from scipy.integrate import quad, solve_ivp
from tools import check, expectation, mean_and_covariance, pairing

import fpsolver as fp
from fpsolver.evolution import _scheduled

PIECES = [(0, 0.4), (0.7, 0.1), (1.5, 0.25)]


def cosine(t):
    """From 0.4 to 0.05 in two time units."""
    return 0.05 + 0.175 * (1 + np.cos(np.pi * t / 2))


def quadratic(**changes):
    """f = x²/2 with noise of variance 2: dX = −X dt + √(2η) dW."""
    process = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Covariance(2.0), **{"learning_rate": 0.3, **changes})
    return fp.Generator(process, fp.Domain.interval(-5, 5, 40), scheme="galerkin")


def variance(rate, t, start):
    """v' = −2v + 2η(t), for a function η."""
    jumps = [s for s in (0.7, 1.5) if s < t]
    gained = quad(lambda s: 2 * rate(s) * np.exp(2 * (s - t)), 0, t, points=jumps or None, epsabs=1e-13)[0]
    return start * np.exp(-2 * t) + gained


def stepped(t):
    return next(v for begin, v in PIECES[::-1] if t >= begin)


@pytest.mark.parallel
@pytest.mark.parametrize(("rate", "function"), [(PIECES, stepped), (cosine, cosine)], ids=["pieces", "cosine"])
def test_ornstein_uhlenbeck_with_a_schedule(rate, function):
    """The law stays Gaussian; outputs before, at and after the jumps."""
    gen, times = quadratic(), [0.0, 0.3, 0.7, 1.1, 2.0]
    tol = 1e-8 if rate is PIECES else 1e-6
    found = fp.evolve(gen, fp.gaussian(1.0, 0.5), times, time_rtol=tol, schedule={"learning_rate": rate})
    assert list(found.times) == times
    assert abs(found.mass - 1).max() < 1e-12
    for t, p in zip(times, found, strict=True):
        mean, cov = mean_and_covariance(gen, p.raw)
        check(mean, [np.exp(-t)], 5 * tol)
        check(cov, [[variance(function, t, 0.25)]], 5 * tol)
    assert found.stats["time_error"] <= tol
    assert gen.process.learning_rate == 0.3, "the process itself does not change"


@pytest.mark.parallel
def test_batch_size_and_learning_rate_count_by_their_ratio():
    """Growing the batch is as good as decaying the learning rate: D = η/(2B) Σ."""
    gen = quadratic(batch_size=2)
    start = fp.gaussian(1.0, 0.5)
    rate = {"learning_rate": [(0, 0.4), (0.5, 0.1)], "batch_size": 2}
    batch = {"learning_rate": 0.4, "batch_size": [(0, 2), (0.5, 8)]}
    a, b = (fp.evolve(gen, start, [1.2], time_rtol=1e-9, schedule=s)[0].raw for s in (rate, batch))
    size = abs(a.x.array).max()
    assert abs(a.x.array - b.x.array).max() < 1e-8 * size
    other = fp.evolve(gen, start, [1.2], time_rtol=1e-9)[0].raw
    assert abs(a.x.array - other.x.array).max() > 1e-3 * size


@pytest.mark.parallel
@pytest.mark.parametrize("rate", [PIECES, [(0, cosine), (0.5, 0.15)]], ids=["pieces", "mixed"])
def test_duality_reverses_the_schedule(rate):
    """⟨u(T), p₀⟩ = ⟨g, p(T)⟩ although the matrices do not commute, and for each time by itself."""
    process = fp.SGD(lambda x: (x[0] ** 2 - 1) ** 2 / 4, fp.Covariance(lambda x: 1 + x[0] ** 2), 0.2)
    gen = fp.Generator(process, fp.Domain.interval(-2, 2, 24), ["right"], degree=3, scheme="dg")
    times, schedule = [0.3, 0.9], {"learning_rate": rate}
    start = fp.evolve(gen, fp.gaussian(-0.5, 0.3), [0.0])[0].raw
    payoff = fp.backward(gen, lambda x: x[0] + x[0] ** 3, [0.0])[0].raw
    tol = 1e-8 if rate is PIECES else 1e-4
    forward = fp.evolve(gen, start, times, time_rtol=tol, schedule=schedule)
    dual = fp.backward(gen, payoff, times, time_rtol=tol, schedule=schedule)
    for p, u in zip(forward, dual, strict=True):
        assert pairing(gen, u.raw, start) == pytest.approx(pairing(gen, payoff, p.raw), rel=3 * tol)
    wrong = {"learning_rate": [(0, 0.1), (0.2, 0.4)]}
    if rate is PIECES:  # the same pieces in the other order
        u = fp.backward(gen, payoff, [0.9], schedule=wrong)[0].raw
        assert abs(pairing(gen, u, start) / pairing(gen, payoff, forward[1].raw) - 1) > 1e-3


@pytest.mark.parallel
@pytest.mark.parametrize("rate", [PIECES, cosine], ids=["pieces", "cosine"])
def test_what_leaves_is_counted_while_numbers_change(rate):
    gen = fp.Generator(
        fp.SGD(lambda x: x[0] ** 2 / 2, fp.Covariance(2.0), 0.3),
        fp.Domain.interval(-1, 1.5, 20),
        ["left", "right"],
        scheme="galerkin",
    )
    times = np.array([0.2, 0.7, 1.0, 1.02, 1.04])
    tol = 1e-8 if rate is PIECES else 1e-5
    found = fp.evolve(gen, fp.gaussian(0.2, 0.2), times, time_rtol=tol, schedule={"learning_rate": rate})
    assert abs(found.mass + found.outflux - 1).max() < max(1e-9, 1e-2 * tol)
    parts = sum(found.outflux_by_part.values())
    assert abs(parts - found.outflux).max() < 10 * tol
    assert found.outflux[-1] > 0.01


@pytest.mark.parallel
@pytest.mark.parametrize("scheme", ["galerkin", "dg"])
def test_a_smooth_schedule_on_an_absorbing_domain(scheme):
    """SGD in the left well of a double well with η = 0.3/(1 + 0.1 t), absorbed at 0: mass at t = 20.

    The value is that of finite volumes and Crank–Nicolson steps, extrapolated from 800 and 1600 cells.
    """
    process = fp.SGD(lambda x: (x[0] ** 2 - 1) ** 2 / 4, fp.Isotropic(1.0), learning_rate=0.3)
    gen = fp.Generator(process, fp.Domain.interval(-2, 0, 16), ["right"], scheme=scheme)
    rate = {"learning_rate": lambda t: 0.3 / (1 + 0.1 * t)}
    found = fp.evolve(gen, fp.gaussian(-1.0, 0.1), [20.0], time_rtol=1e-5, schedule=rate)
    assert found.mass[0] == pytest.approx(0.654492, abs=2e-6)
    assert abs(found.mass + found.outflux - 1).max() < 1e-11
    alive = fp.backward(gen, 1.0, [20.0], time_rtol=1e-5, schedule=rate)
    start = fp.evolve(gen, fp.gaussian(-1.0, 0.1), [0.0])[0].raw
    assert pairing(gen, alive[0].raw, start) == pytest.approx(0.654492, abs=1e-5)


@pytest.mark.parallel
def test_annealing():
    """Langevin with temperature 1/(1 + t) on a quadratic: v' = −2v + 2T(t)."""
    gen = fp.Generator(fp.Langevin(lambda x: x[0] ** 2 / 2, 1.0), fp.Domain.interval(-7, 7, 50), scheme="galerkin")
    found = fp.evolve(
        gen, fp.gaussian(0.5, 0.6), [3.0], time_rtol=1e-6, schedule={"temperature": lambda t: 1 / (1 + t)}
    )
    gained = quad(lambda s: 2 / (1 + s) * np.exp(2 * (s - 3)), 0, 3, epsabs=1e-13)[0]
    check(mean_and_covariance(gen, found[0].raw)[1], [[0.36 * np.exp(-6) + gained]], 3e-6)


@pytest.mark.parallel
def test_rank_one_noise_with_a_schedule():
    """Two samples: E X² = exp(∫ (η/4 − 1)), XY = exp(−∫ (1 + η/4)) on every path, from (1, 1)."""
    noise = fp.PerSample([lambda x: x[0] ** 2 / 2, lambda x: x[1] ** 2 / 2])
    gen = fp.Generator(fp.SGD(None, noise, 0.4), fp.Domain.rectangle((-3, -3), (3, 3), (6, 6)))
    assert gen.scheme == "dg"
    total = 0.4 * 0.7 + 0.1 * 0.3
    schedule = {"learning_rate": PIECES}
    u = fp.backward(gen, lambda x: x[0] * x[1], [1.0], time_rtol=1e-7, schedule=schedule)[0]
    check(u.at((0.5, 0.5)), [0.25 * np.exp(-1 - total / 4)], 1e-5)
    u = fp.backward(gen, lambda x: x[0] ** 2, [1.0], time_rtol=1e-7, schedule=schedule)[0]
    check(u.at((0.5, 0.5)), [0.25 * np.exp(-1 + total / 4)], 2e-4)


@pytest.mark.parallel
def test_momentum_schedule():
    """Heavy ball on f = x²/2 with growing momentum: a linear law with piecewise constant friction."""
    eta, mu = 0.25, [(0, 0.2), (0.5, 0.7)]
    process = fp.MomentumSGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(4.0), learning_rate=eta, momentum=0.5)
    gen = fp.Generator(process, fp.Domain.rectangle((-6, -6), (6, 6), (12, 12)), degree=3)
    found = fp.evolve(gen, fp.gaussian((1, 0), 0.8), [1.2], time_rtol=1e-7, schedule={"momentum": mu})
    mean, cov, begin = np.array([1.0, 0.0]), 0.64 * np.eye(2), 0.0
    for (_, m), end in zip(mu, (0.5, 1.2), strict=True):
        A = np.array([[0, 1], [-1, -(1 - m) / np.sqrt(eta)]])
        Q = np.diag([0, np.sqrt(eta) * 4.0])
        E = scipy.linalg.expm(A * (end - begin))
        F = scipy.linalg.expm(np.block([[-A, Q], [np.zeros((2, 2)), A.T]]) * (end - begin))
        mean, cov, begin = E @ mean, E @ cov @ E.T + F[2:, 2:].T @ F[:2, 2:], end
    m, c = mean_and_covariance(gen, found[0].raw)
    check(m, mean, 1e-4)
    check(c, cov, 1e-4)


def test_least_squares_with_a_schedule():
    """Linear regression on Gaussian features: M = E XXᵀ solves M' = −HM − MH + η(t) (HMH + tr(HM) H + s H)."""
    h, s = np.array([1.0, 0.5]), 1.0

    def covariance(x):
        loss = h[0] * x[0] ** 2 + h[1] * x[1] ** 2
        return [[h[i] * x[i] * h[j] * x[j] + (h[i] * (loss + s) if i == j else 0) for j in range(2)] for i in range(2)]

    loss = lambda x: (h[0] * x[0] ** 2 + h[1] * x[1] ** 2) / 2  # noqa: E731
    gen = fp.Generator(
        fp.SGD(loss, fp.Covariance(covariance), 0.1), fp.Domain.rectangle((-4, -4), (4, 4), (8, 8)), degree=3
    )
    rate = lambda t: cosine(t) / 8  # noqa: E731 (larger ones make tails that the domain would cut off)
    start, end, H = np.array([0.8, -0.5]), 1.0, np.diag(h)

    def right(t, m):
        M = m.reshape(2, 2)
        return (-H @ M - M @ H + rate(t) * (H @ M @ H + np.trace(H @ M) * H + s * H)).ravel()

    M0 = np.outer(start, start) + 0.09 * np.eye(2)
    exact = solve_ivp(right, (0, end), M0.ravel(), rtol=1e-11, atol=1e-12).y[:, -1].reshape(2, 2)
    p = fp.evolve(gen, fp.gaussian(start, 0.3), [end], time_rtol=1e-4, schedule={"learning_rate": rate})[0].raw
    found = [[expectation(gen, lambda x, i=i, j=j: x[i] * x[j], p) for j in range(2)] for i in range(2)]
    check(found, exact, 2e-4)


def test_smooth_steps_keep_the_tolerance():
    """Against a much smaller tolerance, so that the mesh plays no part."""
    gen = quadratic()
    run = lambda tol: fp.evolve(gen, fp.gaussian(1.0, 0.3), [1.0], time_rtol=tol, schedule={"learning_rate": cosine})  # noqa: E731
    fine, work = run(1e-7)[0].raw.x.array, []
    for tol in (1e-2, 1e-4, 1e-5):
        found = run(tol)
        assert np.linalg.norm(found[0].raw.x.array - fine) < 2 * tol * np.linalg.norm(fine)
        work.append(found.stats["factorisations"])
    assert work[0] < work[2] < 500


def test_outputs_do_not_shorten_smooth_steps():
    gen = quadratic()
    one = fp.evolve(gen, fp.gaussian(1.0, 0.3), [1.0], time_rtol=1e-4, schedule={"learning_rate": cosine})
    many = fp.evolve(
        gen, fp.gaussian(1.0, 0.3), np.linspace(0, 1, 9), time_rtol=1e-4, schedule={"learning_rate": cosine}
    )
    assert many.stats["steps"] == one.stats["steps"]
    exact = fp.evolve(
        gen, fp.gaussian(1.0, 0.3), np.linspace(0, 1, 9), time_rtol=1e-5, schedule={"learning_rate": cosine}
    )
    for a, b in zip(many, exact, strict=True):
        assert np.linalg.norm(a.raw.x.array - b.raw.x.array) < 2e-4 * np.linalg.norm(b.raw.x.array)


def test_steps_of_the_algorithm():
    assert list(fp.count_steps(0.1, [0.0, 1.0, 2.5])) == pytest.approx([0, 10, 25])
    assert list(fp.count_steps([(0, 0.4), (10, 0.1), (20, 0.02)], [4.0, 10.0, 11.0, 21.0])) == pytest.approx(
        [10, 25, 35, 175]
    )
    assert fp.count_steps(lambda t: 0.1 * np.exp(-t), 2.0)[0] == pytest.approx(10 * np.expm1(2.0))
    assert fp.count_steps([(0, lambda t: 0.1 + t), (1, 0.5)], [2.0])[0] == pytest.approx(np.log(11) + 2)


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({}, "dictionary"),
        ([0.1], "dictionary"),
        ({"rate": 0.1}, r"no numeric parameter 'rate'; it has \['batch_size', 'learning_rate'\]"),
        ({"learning_rate": [(1, 0.1)]}, r"the list of its times is \[1.0\]; an increasing one"),
        ({"learning_rate": [(0, 0.1), (0, 0.2)]}, "increasing"),
        ({"learning_rate": [0.1, 0.2]}, "pairs"),
        ({"learning_rate": "cosine"}, "pairs"),
        ({"learning_rate": [(0, 0.1), (1, -0.1)]}, "positive"),
        ({"learning_rate": lambda t: 0.1 - t}, "positive"),
        ({"learning_rate": lambda t: "0.1"}, "finite number"),
    ],
)
def test_unsuitable_schedules(schedule, message):
    gen = quadratic()
    with pytest.raises(ValueError, match=message):
        fp.evolve(gen, fp.gaussian(0.0, 0.5), [1.0], schedule=schedule)


@pytest.mark.parallel
def test_what_cannot_be_scheduled():
    process = fp.MomentumSGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(1.0), 0.1, 0.5)
    gen = fp.Generator(process, fp.Domain.rectangle((-2, -2), (2, 2), (2, 2)), degree=1)
    with pytest.raises(ValueError, match="'learning_rate' of MomentumSGD scales its velocities"):
        fp.evolve(gen, fp.gaussian((0, 0), 0.5), [1.0], schedule={"learning_rate": cosine})
    gen = fp.Generator(fp.Langevin(lambda x: x[0] ** 2, 1.0), fp.Domain.interval(-2, 2, 8), scheme="weighted")
    with pytest.raises(ValueError, match="weighted"):
        fp.evolve(gen, fp.gaussian(0.0, 0.5), [1.0], schedule={"temperature": [(0, 1.0)]})
    with pytest.raises(ValueError, match="positive number"):
        fp.count_steps(0.0, 1.0)


def test_a_jump_inside_a_function_is_resolved_at_a_price():
    """Declared as pieces it costs two factorisations."""
    gen = fp.Generator(quadratic().process, fp.Domain.interval(-5, 5, 8), degree=2, scheme="galerkin")
    jump = np.e / 4
    hidden = {"learning_rate": lambda t: 0.4 if t < jump else 0.01}
    declared = {"learning_rate": [(0, 0.4), (jump, 0.01)]}
    a, b = (fp.evolve(gen, fp.gaussian(1.0, 1.0), [1.0], time_rtol=1e-4, schedule=s) for s in (hidden, declared))
    difference = np.linalg.norm(a[0].raw.x.array - b[0].raw.x.array)
    assert 0 < difference < 2e-4 * np.linalg.norm(b[0].raw.x.array)
    assert a.stats["factorisations"] > 8 * b.stats["factorisations"]


def test_what_cannot_be_resolved_is_told(monkeypatch):
    monkeypatch.setattr(_scheduled, "TRIALS", 0)
    gen = fp.Generator(quadratic().process, fp.Domain.interval(-5, 5, 8), degree=2, scheme="galerkin")
    rate = {"learning_rate": [(0, 0.3), (0.5, lambda t: 0.4)]}  # a first step that is too long, and no other try
    with pytest.raises(fp.NotConverged, match="begin a new piece") as info:
        fp.evolve(gen, fp.gaussian(1.0, 1.0), [0.5, 1.0], time_rtol=1e-8, schedule=rate)
    assert list(info.value.partial.times) == [0.5]


def test_heavy_ball_is_the_kinetic_process_to_first_order():
    """v ← μv − ηg, x ← x + v on f = x²/2 with noise s: its exact stationary law against that of (x, v/√η).

    The algorithm is linear, so that its covariance solves C = ACAᵀ + Q; the process' variances are both √η s/(2γ) =
    η s/(2(1 − μ)).  With γ = (1 − μ)/√η kept, the difference is of first order in the time √η of one step.
    """
    s, gamma, errors = 2.0, 0.6, []
    for eta in (1e-2, 1e-4):
        mu = 1 - gamma * np.sqrt(eta)
        A = np.array([[1 - eta, mu], [-eta, mu]])  # x + v and v after the step
        Q = eta**2 * s * np.ones((2, 2))
        C = scipy.linalg.solve_discrete_lyapunov(A, Q)
        process = fp.MomentumSGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(s), learning_rate=eta, momentum=mu)
        assert process.time_per_step == pytest.approx(np.sqrt(eta))
        D = np.sqrt(eta) / 2 * s
        assert gamma == pytest.approx((1 - process.momentum) / np.sqrt(eta))
        kinetic = scipy.linalg.solve_continuous_lyapunov(np.array([[0, 1], [-1, -gamma]]), -2 * np.diag([0, D]))
        assert np.diag(kinetic) == pytest.approx(eta * s / (2 * (1 - mu)))
        errors.append(abs(C / np.outer([1, np.sqrt(eta)], [1, np.sqrt(eta)]) - kinetic).max() / kinetic.max())
    assert errors[1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)


def test_evolutions_in_steps():
    """Times of the same solutions, counted in steps of one learning rate; not where it changes."""
    process, domain = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(1.0), 0.2), fp.Domain.interval(-1, 1, 8)
    for gen in (fp.Generator(process, domain, ["right"]), fp.Chain(process, domain, ["right"])):
        flow = fp.evolve(gen, fp.gaussian(0.0, 0.2), [0.4, 1.0])
        steps = flow.in_steps()
        assert steps.times == pytest.approx([2.0, 5.0])
        assert steps.outflux == pytest.approx(flow.outflux) and steps[0] is flow[0]
        with pytest.raises(AttributeError):
            flow.name = "other"
    scheduled = fp.evolve(gen, fp.gaussian(0.0, 0.2), [0.4], schedule={"learning_rate": 0.1})
    with pytest.raises(ValueError, match="count_steps"):
        scheduled.in_steps()
