"""Paths against closed forms, exact moments of the algorithm, and the PDE, within stated intervals.

Seeds are fixed; "within" means 3.5 standard deviations.
"""

import itertools

from mpi4py import MPI

import numpy as np
import pytest
import reference
import ufl
from scipy import integrate, stats
from tools import BOX, simplex, whole, within

import fpsolver as fp
from fpsolver.pointwise.dynamics import diffusion
from fpsolver.pointwise.meeting import _inverse_gaussian

TWO = [lambda x: x[0] ** 2 / 2, lambda x: x[1] ** 2 / 2]


def brownian(d):
    return fp.SDE(lambda x: (0.0,) * d if d > 1 else 0.0, 0.5)


# ---------------------------------------------------------------- exits


def test_brownian_exits_from_an_interval_are_right_for_long_steps():
    """E τ = 1 − x², P(right) = (1 + x)/2, with steps of half a standard deviation of the interval."""
    e = fp.simulate(brownian(1), fp.Domain.interval(-1, 1, 4), 0.3, absorbing=BOX[1], step=0.1)
    within(e.mean_exit_time(), 0.91)
    within(e.exit_probability("right"), 0.65)
    assert e.exit_probability("left").value + e.exit_probability("right").value == pytest.approx(1)
    np.testing.assert_allclose(np.abs(e.exit_points), 1.0, atol=1e-14)
    for t, s in zip((0.5, 1.0, 2.0), e.survival([0.5, 1.0, 2.0]), strict=True):
        within(s, stays(0.3, t))


def stays(x, t):
    """P(a Brownian motion from x has not left (−1, 1) at time t)."""
    odd = 2 * np.arange(200) + 1
    modes = np.sin(odd * np.pi / 2) * np.cos(odd * np.pi * x / 2)
    return (4 / np.pi / odd * modes * np.exp(-(odd**2) * np.pi**2 * t / 8)).sum()


def torsion(d):
    """E τ from the centre of (−1, 1)^d, where the coordinates leave independently."""
    return integrate.quad(lambda t: stays(0.0, t) ** d, 1e-3, 20)[0] + 1e-3


DOMAINS = {
    "rectangle": (lambda: fp.Domain.rectangle((-1, -1), (1, 1), (2, 2)), BOX[2], (0.0, 0.0), torsion(2)),
    "box": (lambda: fp.Domain.box((-1,) * 3, (1,) * 3, (2, 2, 2)), BOX[3], (0.0, 0.0, 0.0), torsion(3)),
    "disk": (lambda: fp.Domain.disk((0, 0), 1, 0.4), ["boundary"], (0.5, 0.0), 0.375),
    "ball": (lambda: fp.Domain.ball((0, 0, 0), 1, 0.5), ["boundary"], (0.0, 0.6, 0.0), 0.64 / 3),
    "polygon": (
        lambda: fp.Domain.polygon([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1 - 1e-6, 0.1)], 0.5),
        ["wall"], (0, 0), torsion(2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DOMAINS)
def test_brownian_exit_times_from_domains(name):
    """Torsion functions: series for square and cube, (1 − r²)/d for disk and ball."""
    make, parts, start, exact = DOMAINS[name]
    e = fp.simulate(brownian(len(start)), make(), start, absorbing=parts, step=0.01, paths=8000, seed=5)
    within(e.mean_exit_time(), exact, bias=0.004)


def test_exits_from_an_annulus_by_part():
    """P(outer) = ln(r/a)/ln(b/a)."""
    domain = fp.Domain.annulus((1.0, 0.0), 0.5, 2.0, 0.5)
    e = fp.simulate(brownian(2), domain, (2.0, 0.0), absorbing=["inner", "outer"], step=0.005)
    within(e.exit_probability("outer"), 0.5, bias=0.005)
    radius = np.linalg.norm(e.exit_points - (1.0, 0.0), axis=1)
    np.testing.assert_allclose(radius, np.where(e.exit_parts == "outer", 2.0, 0.5), atol=1e-10)


def test_exits_from_a_tetrahedron_and_through_marked_parts():
    """Straight facets in 3D against the PDE; parts of one side of a square by their marker."""
    domain = simplex([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)], 3)
    start = (0.2, 0.25, 0.2)
    with fp.Generator(brownian(3), domain, ["boundary"], degree=4) as gen:
        exact = fp.mean_exit_time(gen).at(start)[0]
    e = fp.simulate(brownian(3), domain, start, absorbing="boundary", step=1e-3, paths=1500)
    within(e.mean_exit_time(), exact, bias=0.04 * exact)
    square = fp.Domain.rectangle((0, 0), (1, 1), (4, 4))
    square.mark("high", lambda x: (x[0] > 1 - 1e-9) & (x[1] > 0.5))
    with fp.Generator(brownian(2), square, ["high", "left"]) as gen:
        exact = fp.exit_probability(gen, to=["high"]).at((0.5, 0.3))[0]
    e = fp.simulate(brownian(2), square, (0.5, 0.3), absorbing=["high", "left"], step=0.004)
    within(e.exit_probability("high"), exact, bias=0.01)
    out = e.exit_points[e.exit_parts == "high"]
    assert (out[:, 1] >= 0.5).all() and np.allclose(out[:, 0], 1)


def test_exit_times_converge_with_order_one_in_the_step():
    """dX = −X dt + dW from 0 to ±1: errors 0.12, 0.07, 0.04 for steps 0.1, 0.05, 0.025, each ± 0.004."""
    exact = reference.exit_time_1d(0.0, -1, 1, lambda x: -x, lambda x: 0.5)
    process, domain = fp.SDE(lambda x: -x[0], 0.5), fp.Domain.interval(-1, 1, 4)
    steps = (0.1, 0.05, 0.025)
    runs = [fp.simulate(process, domain, 0.0, absorbing=BOX[1], step=h, paths=200_000, seed=3) for h in steps]
    errors = [exact - r.mean_exit_time().value for r in runs]
    assert all(e > 0.02 for e in errors)
    assert 0.7 < np.log(errors[0] / errors[2]) / np.log(4) < 1.2
    extrapolated = 2 * runs[2].mean_exit_time().value - runs[1].mean_exit_time().value
    assert abs(extrapolated / exact - 1) < 0.02


def test_a_path_without_noise_across_the_wall_leaves_when_its_line_does():
    process = fp.SDE(lambda x: (1.0, 0.0), ((0.0, 0.0), (0.0, 0.3)))
    e = fp.simulate(process, fp.Domain.rectangle((0, -1), (1, 1), (2, 2)), (0.0, 0.0), absorbing=["right"], step=0.3)
    np.testing.assert_allclose(e.exit_times, 1.0, atol=1e-12)
    assert (e.exit_parts == "right").all() and (np.abs(e.exit_points[:, 1]) <= 1).all()


def test_first_passage_of_a_bridge():
    """The inverse Gaussian sampler has its mean and its distribution function."""
    rng = np.random.default_rng(1)
    a, b, variance = 0.7, 0.4, 0.5
    one = np.ones(50_000)
    theta = _inverse_gaussian(a * one, b * one, variance * one, rng.random(50_000), rng.random(50_000))
    mean, shape = a / b, a * a / variance
    assert stats.kstest(theta, stats.invgauss(mean / shape, scale=shape).cdf).pvalue > 0.01
    ending_at_the_wall = _inverse_gaussian(a * one, 0 * one, variance * one, rng.random(50_000), rng.random(50_000))
    assert stats.kstest(ending_at_the_wall, stats.levy(scale=shape).cdf).pvalue > 0.01


def test_reflection_is_that_of_the_pde():
    """A correlated D: the no-flux condition reflects obliquely."""
    process = fp.SDE(lambda x: (-0.5, 0.3), ((0.5, 0.3), (0.3, 0.4)))
    domain = fp.Domain.rectangle((0, 0), (1, 1), (8, 8))
    with fp.Generator(process, domain) as gen:
        exact = [fp.backward(gen, g, [0.5])[0].at((0.2, 0.7))[0] for g in (lambda x: x[0], lambda x: x[1])]
    e = fp.simulate(process, domain, (0.2, 0.7), times=[0.5], step=0.002, paths=6000)
    for i in range(2):
        within(e.expectation(lambda x, i=i: x[i])[0], exact[i], bias=0.004)
    assert (e.positions >= 0).all() and (e.positions <= 1).all()


# ---------------------------------------------------------------- the algorithm itself


SLOPES, SHIFTS = np.array([1.0, -0.5, 2.0, 0.3, 1.5]), np.array([0.2, 1.0, -0.3, 0.7, -1.1])
FIVE = [lambda x, a=a, c=c: a * x[0] ** 2 / 2 + c * x[1] + (x[0] * x[1]) for a, c in zip(SLOPES, SHIFTS, strict=True)]


@pytest.mark.parametrize(("batch", "replacement"), [(1, True), (3, True), (1, False), (3, False), (5, False)])
def test_one_step_has_the_distribution_of_all_batches(batch, replacement):
    """Mean and covariance over all batches, enumerated; the diffusion's D has the same covariance."""
    x0, eta = np.array([0.8, -0.4]), 0.3
    g = np.stack((SLOPES * x0[0] + x0[1], SHIFTS + x0[0]), axis=1)
    draw = itertools.product if replacement else itertools.combinations
    batches = list(draw(range(5), repeat=batch) if replacement else draw(range(5), batch))
    steps = np.array([x0 - eta * g[list(b)].mean(axis=0) for b in batches])
    mean, covariance = steps.mean(axis=0), np.cov(steps.T, bias=True)
    process = fp.SGD(None, fp.PerSample(FIVE, replacement), eta, batch)
    e = whole(process, x0, eta, "sgd", 10_000)
    for i in range(2):
        within(e.expectation(lambda x, i=i: x[i])[0], mean[i], bias=1e-12)
        for j in range(2):
            product = e.expectation(lambda x, i=i, j=j: (x[i] - mean[i]) * (x[j] - mean[j]))[0]
            within(product, covariance[i, j], bias=1e-12)
    b, S = diffusion(process, 2)(x0[:, None])
    np.testing.assert_allclose(x0 + eta * b[:, 0], mean, atol=1e-14)
    np.testing.assert_allclose(eta * S[:, :, 0] @ S[:, :, 0].T, covariance, atol=1e-14)


def test_batched_gradients_are_those_of_the_samples():
    def grads(x):
        return np.stack((SLOPES * x[:, :1] + x[:, 1:], SHIFTS + x[:, :1] + 0 * SLOPES), axis=2)

    loss = lambda x: float(SLOPES.mean()) * x[0] ** 2 / 2 + float(SHIFTS.mean()) * x[1] + x[0] * x[1]  # noqa: E731
    one = whole(fp.SGD(None, fp.PerSample(FIVE), 0.1, 2), (0.5, 0.1), 0.5, "sgd", 500)
    two = whole(fp.SGD(loss, fp.PerSample(fp.batched(grads)), 0.1, 2), (0.5, 0.1), 0.5, "sgd", 500)
    np.testing.assert_allclose(one.positions, two.positions, atol=1e-13)


def test_label_noise_has_its_covariance():
    """y_i + std·ξ with fresh ξ: one step's covariance is that of samples plus std² mean(∇m ∇mᵀ)."""
    inputs, labels = (0.5, -1.0, 2.0), (1.0, 0.0, 0.5)
    models = [lambda x, a=a: a * x[0] + x[1] for a in inputs]
    losses = [lambda x, a=a, y=y: (a * x[0] + x[1] - y) ** 2 / 2 for a, y in zip(inputs, labels, strict=True)]
    x0, eta, std = np.array([0.3, 0.6]), 0.2, 0.7
    features = np.column_stack((inputs, np.ones(3)))
    g = (features @ x0 - labels)[:, None] * features
    covariance = eta**2 * (np.cov(g.T, bias=True) + std**2 * features.T @ features / 3)
    e = whole(fp.SGD(None, fp.PerSample(losses) + fp.LabelNoise(models, std), eta), x0, eta, "sgd", 20_000)
    mean = x0 - eta * g.mean(axis=0)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        within(e.expectation(lambda x, i=i, j=j: (x[i] - mean[i]) * (x[j] - mean[j]))[0], covariance[i, j])


def test_momentum():
    """Heavy ball on x²/2: stationary Var x of the algorithm and of the kinetic diffusion, D_v/γ."""
    eta, mu, s = 0.04, 0.8, 1.0
    process = fp.MomentumSGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(s), eta, mu)
    A = np.array([[1 - eta, mu * np.sqrt(eta)], [-np.sqrt(eta), mu]])  # (x, v/√η)
    noise = s * np.array([[eta**2, eta**1.5], [eta**1.5, eta]])
    exact = np.linalg.solve(np.eye(4) - np.kron(A, A), noise.ravel())
    e = whole(process, (0.0, 0.0), 12.0, "sgd", 40_000)
    within(e.expectation(lambda x: x[0] ** 2)[0], exact[0])
    within(e.expectation(lambda x: x[1] ** 2)[0], exact[3])
    gamma, D = (1 - mu) / np.sqrt(eta), np.sqrt(eta) * s / 2
    e = whole(process, (0.0, 0.0), 12.0, step=0.01)
    within(e.expectation(lambda x: x[1] ** 2)[0], D / gamma, bias=0.015 * D / gamma)


# ---------------------------------------------------------------- estimates


def test_intervals_cover_what_they_claim():
    domain = fp.Domain.interval(-1, 1, 4)
    covered = [0, 0]
    for seed in range(20):
        e = fp.simulate(brownian(1), domain, 0.0, absorbing=BOX[1], step=0.1, paths=1000, seed=seed)
        covered[0] += e.mean_exit_time().covers(1.0)
        covered[1] += e.exit_probability("left").covers(0.5)
    assert all(17 <= c <= 20 for c in covered)


def test_stopped_paths_are_not_passed_over():
    domain = fp.Domain.interval(-1, 1, 4)
    e = fp.simulate(brownian(1), domain, 0.0, absorbing=BOX[1], step=0.05, horizon=1.5, paths=20_000)
    with pytest.raises(ValueError, match=r"had not left at time 1\.5"):
        e.mean_exit_time()
    bound, tail = e.mean_exit_time(tail="bound"), e.mean_exit_time(tail="exponential")
    assert bound.high < 1.0 and "lower bound" in bound.note
    within(tail, 1.0, bias=0.003)
    assert "exponential" in tail.note and tail.error > bound.error
    with pytest.raises(ValueError, match=r"stopped at 1\.5"):
        e.survival(2.0)


def test_start_from_a_gaussian_or_one_point_per_path():
    still = fp.SDE(lambda x: (0.0, 0.0), 1e-30)
    domain = fp.Domain.rectangle((0, -4), (4, 4), (2, 2))
    e = fp.simulate(still, domain, fp.gaussian((0.0, 1.0), 0.5), times=[1.0], step=1.0)
    assert (e.positions[0, :, 0] > 0).all()
    within(e.expectation(lambda x: x[0])[0], 0.5 * np.sqrt(2 / np.pi))
    points = np.random.default_rng(1).random((3000, 2))
    e = fp.simulate(still, domain, points, times=[1.0], step=1.0, paths=3000)
    np.testing.assert_allclose(e.positions[0], points, atol=1e-12)


@pytest.mark.parallel
def test_the_result_does_not_depend_on_the_number_of_ranks():
    process, answers = fp.SGD(None, fp.PerSample(TWO), 0.4), []
    for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
        domain = fp.Domain.rectangle((-2, -2), (2, 0.8), (4, 4), comm=comm)
        for method in ("sde", "sgd"):
            options = {"absorbing": ["top", "left"], "times": [0.4, 2.0], "horizon": 8.0, "method": method}
            answers.append(fp.simulate(process, domain, (1.0, -0.5), paths=3000, seed=7, **options))
    for world, alone in zip(answers[:2], answers[2:], strict=True):
        np.testing.assert_array_equal(world.positions, alone.positions)
        np.testing.assert_array_equal(world.exit_times, alone.exit_times)
        np.testing.assert_array_equal(world.exit_parts, alone.exit_parts)


@pytest.mark.parallel
def test_bad_input_is_refused_on_every_rank():
    process, domain = fp.SGD(None, fp.PerSample(TWO), 0.4), fp.Domain.rectangle((0, 0), (1, 1), (2, 2))

    def refused(match, error=ValueError, process=process, domain=domain, start=(0.5, 0.5), **more):
        with pytest.raises(error, match=match):
            fp.simulate(process, domain, start, **{"absorbing": ["left"], "paths": 2000, **more})

    refused("paths is 0", paths=0)
    refused("start .* lies outside", start=(2.0, 0.5))
    refused("start is not finite", start=(np.nan, 0.5))
    refused("start has shape", start=(0.5,))
    refused("'lft'", absorbing=["lft"])
    refused("method is 'em'", method="em")
    refused("step is -1", step=-1)
    refused("seed is -3", seed=-3)
    refused("give step=", process=fp.SDE(lambda x: (0, 0), 1.0))
    refused("needs fp.SGD", process=fp.Langevin(lambda x: x[0], 1.0), method="sgd")
    refused("step= is for", method="sgd", step=0.1)
    refused("increasing", times=[2.0, 1.0])
    refused("is beyond the horizon", times=[2.0], horizon=1.0)
    refused("nothing absorbs", absorbing=[])
    refused("not finite after a step", process=fp.SGD(lambda x: 1 / (x[0] - x[0]), fp.Isotropic(1.0), 0.1))
    refused("returned shape", process=fp.SGD(fp.batched(lambda x: x[:3]), fp.Isotropic(1.0), 0.1))
    refused("positive semi-definite", process=fp.SDE(lambda x: (0, 0), lambda x: ((x[0], 1), (1, x[1]))), step=0.1)
    e = fp.simulate(process, None, (1.0, 1.0), times=[1.0], paths=10)
    for ask in (e.mean_exit_time, lambda: e.exit_probability("left")):
        with pytest.raises(ValueError, match="nothing absorbs"):
            ask()


@pytest.mark.parallel
@pytest.mark.parametrize("method", ["sde", "sgd"])
def test_paths_that_come_to_rest_end_a_simulation_without_horizon(method):
    """Both samples are fitted at 0: SGD multiplies by 1 − η or 1 − 2η, and few paths of the diffusion leave."""
    process = fp.SGD(None, fp.PerSample([lambda x: x[0] ** 2 / 2, lambda x: x[0] ** 2]), 0.4)
    with pytest.raises(ValueError, match=r"did not move in the last 1000 steps.*horizon="):
        fp.simulate(process, fp.Domain.interval(-1, 1, 4), 0.5, absorbing=BOX[1], method=method, paths=20)
    e = fp.simulate(process, fp.Domain.interval(-1, 1, 4), 0.5, absorbing=BOX[1], method=method, paths=20, horizon=9.0)
    assert len(e) == 20


def test_bad_processes():
    with pytest.raises(ValueError, match="batch_size is 3, but there are only 2 samples"):
        fp.SGD(None, fp.PerSample(TWO), 0.1, 3)
    with pytest.raises(ValueError, match=r"learning_rate is -0\.1"):
        fp.SGD(None, fp.PerSample(TWO), -0.1)
    with pytest.raises(ValueError, match="order is 3"):
        fp.SGD(None, fp.PerSample(TWO), 0.1, order=3)
    with pytest.raises(ValueError, match="std is -1"):
        fp.LabelNoise([lambda x: x[0]], -1)
    with pytest.raises(ValueError, match="different numbers of samples"):
        whole(fp.SGD(None, fp.PerSample(TWO) + fp.LabelNoise([lambda x: x[0]], 1.0), 0.1), (1.0, 1.0), 1.0, "sgd", 10)


@pytest.mark.parallel
def test_compiled_code_gives_the_same_paths():
    """Samples with labels, a given covariance, momentum, order two, and a diffusion whose matrix is not constant."""
    domain = fp.Domain.rectangle((-1, -1), (1, 1), (2, 2))
    labels = fp.LabelNoise([lambda x, a=a: a * x[0] + x[1] for a in SLOPES.tolist()], 0.3)
    quartic = lambda x: x[0] ** 4 / 4 + x[1] ** 2  # noqa: E731
    two = fp.PerSample([lambda x: x[0], lambda x: -x[0]])
    cases = [
        (fp.SGD(None, fp.PerSample(FIVE) + labels + fp.Isotropic(0.1), 0.1, 2), ("sde", "sgd")),
        (fp.SGD(None, fp.PerSample(FIVE, replacement=False), 0.1, 2, order=2), ("sde", "sgd")),
        (fp.SGD(quartic, fp.PerSample(FIVE), 0.1), ("sgd",)),
        (fp.MomentumSGD(lambda x: x[0] ** 4, two, 0.1, 0.5), ("sde", "sgd")),
        (fp.SDE(lambda x: (-x[0], ufl.sin(x[1])), lambda x: ((1 + x[0] ** 2, 0.1), (0.1, 0.3))), ("sde",)),
    ]  # fmt: skip
    for process, methods in cases:
        for method in methods:
            options = {"absorbing": "left", "paths": 500, "times": [0.2], "horizon": 3.0, "method": method}
            if method == "sde":
                options["step"] = 0.05
            runs = [fp.simulate(process, domain, (0.5, 0.1), backend=b, **options) for b in ("numpy", "c")]
            np.testing.assert_allclose(runs[0].positions, runs[1].positions, atol=1e-10)
            np.testing.assert_allclose(runs[0].exit_times, runs[1].exit_times, atol=1e-10)
            assert runs[0].stats["backend"] == "numpy" and runs[1].stats["backend"] == "c"


def test_what_a_backend_cannot_do_is_refused():
    process = fp.SGD(lambda x: x[0], fp.PerSample(fp.batched(lambda x: np.zeros((len(x), 3, 1)))), 0.1)
    for method in ("sde", "sgd"):
        with pytest.raises(ValueError, match="backend='c' compiles formulas"):
            whole(process, 0.5, 1.0, method, backend="c", paths=10)
    assert whole(process, 0.5, 1.0, paths=10).stats["backend"] == "numpy"
    with pytest.raises(ValueError, match="backend is 'jax'; one of 'auto'"):
        whole(process, 0.5, 1.0, backend="jax")
