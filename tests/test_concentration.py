"""Concentration near minima against exact laws, Gronwall's bounds, and paths of the gradient flow."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import betainc
from scipy.stats import ncx2, norm
from tools import check, mean_and_covariance, pairing

import fpsolver as fp
from fpsolver import diagnostics as dg
from fpsolver.diagnostics.concentration._regions import Flow, ball_load, share_below


def ornstein_uhlenbeck(dim, level, n, half=3.0, degree=None):
    """dX = −X dt + √(2 level) dW on (−half, half)^dim."""
    process = fp.SDE(lambda x: tuple(-x[i] for i in range(dim)), tuple(map(tuple, level * np.eye(dim))))
    make = {1: fp.Domain.interval, 2: fp.Domain.rectangle, 3: fp.Domain.box}[dim]
    low, high, cells = ((-half,) * dim, (half,) * dim, (n,) * dim) if dim > 1 else (-half, half, n)
    return fp.Generator(process, make(low, high, cells), degree=degree)


@pytest.mark.parallel
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_loads_of_balls(dim):
    """Volume and second moment of balls that no cell follows, one of them inside a single cell."""
    gen = ornstein_uhlenbeck(dim, 0.1, {1: 7, 2: 6, 3: 4}[dim], half=1.0, degree=2)
    center = np.array([0.1, 0.05, -0.07])[:dim]
    for r in (0.05, 0.7):
        volume = {1: 2 * r, 2: np.pi * r**2, 3: 4 / 3 * np.pi * r**3}[dim]
        load, change = ball_load(gen, center, r)
        weighted, _ = ball_load(gen, center, r, lambda x: ((x - center) ** 2).sum(axis=2))
        tolerance = {1: 1e-12, 2: 1e-6, 3: 1e-4}[dim]
        assert abs(load.sum() / volume - 1) < tolerance
        assert abs(change.sum() / volume) < 10 * tolerance
        assert abs(weighted.sum() / (volume * r**2 * dim / (dim + 2)) - 1) < 10 * tolerance


def test_share_of_a_simplex_below_a_level():
    rng = np.random.default_rng(0)
    for corners in (2, 3, 4):
        g = rng.normal(size=(40, corners))
        bary = rng.dirichlet(np.ones(corners), size=200_000)
        check(share_below(g), (bary @ g.T < 0).mean(axis=0), 5e-3)
        assert (share_below(np.abs(g) + 0.1) == 0).all()
        assert (share_below(-np.abs(g) - 0.1) == 1).all()


@pytest.mark.parallel
def test_mass_in_balls_of_a_normal_law():
    gen = ornstein_uhlenbeck(2, 0.1, 10)
    t = np.array([0.0, 0.5, 1.0, 2.0, 4.0])
    flow = fp.evolve(gen, fp.gaussian((1.0, 0.5), 0.3), t, time_rtol=1e-9)
    found = dg.concentration(flow, (0, 0), [0.4, 0.8], loss=lambda x: (x[0] ** 2 + x[1] ** 2) / 2)
    v = 0.1 + (0.09 - 0.1) * np.exp(-2 * t)
    m2 = 1.25 * np.exp(-2 * t)
    exact = np.stack([ncx2.cdf(r**2 / v, 2, m2 / v) for r in (0.4, 0.8)], axis=1)
    assert np.abs(found.ball_mass[:, 0] - exact).max() < 2e-5
    assert found.ball_error < 1e-4
    assert f"t = 1          mass {exact[2, 0]:.4f}, {exact[2, 1]:.4f}" in str(found)
    # the whole domain lies in the ball in which λ = 1 and S = 0.4 are measured, and L|x|² = −2|x|² + 0.4 exactly
    c = found.contraction[0]
    assert c.whole
    check([c.pull, c.noise], [1, 0.4], 1e-12)
    check(found.second_moment[:, 0], m2 + 2 * v, 1e-7)
    check(found.moment_bound[:, 0], m2 + 2 * v, 1e-7)
    assert (found.mass_bound <= found.ball_mass + 1e-12).all()
    assert found.mass_bound[-1, 0, 1] > 0.6, "1 − 0.2/0.64"
    assert (found.basin_mass[:, 0] > 1 - 1e-6).all()
    check(found.mean_loss, m2 / 2 + v, 1e-7)
    check(found.variance_loss, v**2 + v * m2, 1e-6)
    check(found.drift_rate, -(m2 + 2 * v), 1e-7)
    check(found.diffusion_rate, np.full(5, 0.2), 1e-7)
    # ½ (m₂ + 2v) = 0.2: with m₂ + 2v = 0.2 + 1.23 e^{−2t}; linear interpolation between coarse times
    end = 0.5 * np.log(1.23 / 0.2)
    assert 0.5 < end < 1 and abs(found.drift_regime_end - end) < 0.05
    fine = np.linspace(0, 3, 601)
    level = np.interp(
        0.5,
        ncx2.cdf(
            0.64 / (0.1 - 0.01 * np.exp(-2 * fine)), 2, 1.25 * np.exp(-2 * fine) / (0.1 - 0.01 * np.exp(-2 * fine))
        ),
        fine,
    )
    assert abs(found.time_to(0.5, radius=1) - level) < 0.05
    assert np.isnan(found.time_to(0.999))


@pytest.mark.parallel
def test_one_backward_solve_serves_all_initial_laws():
    process = fp.SGD(fp.landscapes.tilted_well_2d, fp.Isotropic(1.0), 0.2)
    gen = fp.Generator(process, fp.Domain.rectangle((-2, -1.5), (2, 1.5), (10, 8)), degree=3)
    x, t = fp.landscapes.tilted_well_2d.minima[0], [0.0, 0.5, 2.0]
    u = dg.concentration_backward(gen, x, 0.5, t, time_rtol=1e-10)
    for mean in ((-0.5, 0.4), (0.8, -0.3)):
        flow = fp.evolve(gen, fp.gaussian(mean, 0.25), t, time_rtol=1e-10)
        forward = dg.concentration(flow, x, 0.5, basins=False).ball_mass[:, 0, 0]
        dual = [pairing(gen, s.function, flow[0].raw) for s in u]
        assert np.abs(forward - dual).max() < 1e-9
        assert forward.max() > 0.02


@pytest.mark.parallel
def test_bounds_for_the_process_killed_at_a_sphere():
    """A quartic well on a disk that absorbs: the bound holds for what has not left, with λ < f'' measured."""
    pytest.importorskip("gmsh")
    R, eta = 0.6, 0.05
    sgd = fp.SGD(fp.landscapes.double_well_2d, fp.Isotropic(1.0), eta)
    gen = fp.Generator(sgd, fp.Domain.disk((-1, 0), R, 0.15), absorbing=["boundary"])
    flow = fp.evolve(gen, fp.gaussian((-0.75, 0.15), 0.07), [0, 0.25, 0.5, 1, 2, 4], time_rtol=1e-8)
    found = dg.concentration(flow, (-1, 0), [0.3, 0.4], attraction=R * 1.0001)
    c = found.contraction[0]
    x = -1 + R  # the least pull is at the inner end of the ball: x(x − 1) there
    assert abs(c.pull - x * (x - 1)) < 1e-3
    check(c.noise, 2 * eta, 1e-12)
    assert (found.second_moment <= found.moment_bound + 1e-9).all()
    assert found.second_moment[2, 0] > 0.5 * found.moment_bound[2, 0], "and it says something"
    assert (found.mass_bound <= found.ball_mass + 1e-9).all()
    assert found.mass_bound.max() > 0.1
    beyond = dg.contraction(gen, (-1, 0), radius=0.9)
    assert beyond.whole
    check(beyond.pull, x * (x - 1), 1e-3)  # no more than the disk is looked at


@pytest.mark.parallel
def test_mass_in_basins():
    """The separatrix x = 0.101031… of a tilted well runs through cells."""
    sgd = fp.SGD(fp.landscapes.tilted_well_2d, fp.Isotropic(1.0), 0.1)
    gen = fp.Generator(sgd, fp.Domain.rectangle((-2, -1.5), (2, 1.5), (13, 9)))
    flow = fp.evolve(gen, fp.gaussian((0.0, 0.3), 0.2), [0.0, 0.3])
    found = dg.concentration(flow, fp.landscapes.tilted_well_2d.minima, 0.3)
    left = norm.cdf(0.101031257881011 / 0.2)
    assert np.abs(found.basin_mass[0] - [left, 1 - left, 0]).max() < 2e-3
    assert 0 < found.basin_error < 5e-3
    check(found.basin_mass.sum(axis=1), flow.mass, 1e-10)


@pytest.mark.parametrize("case", ["three_hole", "kinetic"])
def test_labels_follow_the_flow(case):
    rng = np.random.default_rng(1)
    if case == "three_hole":
        landscape = fp.landscapes.three_hole
        process, minima = fp.Langevin(landscape, 0.3), np.array(landscape.minima)
        domain, x = fp.Domain.rectangle((-2, -1.5), (2, 2.5), (4, 4)), rng.uniform((-2, -1.5), (2, 2.5), (60, 2))

        def velocity(t, y, h=1e-6):
            return [-(landscape(y + h * e) - landscape(y - h * e)) / (2 * h) for e in np.eye(2)]

    else:
        process = fp.MomentumSGD(fp.landscapes.double_well, fp.Isotropic(1.0), 0.04, 0.9)  # γ = 1/2
        minima = np.array([(-1.0, 0.0), (1.0, 0.0)])
        domain, x = fp.Domain.rectangle((-2, -2), (2, 2), (4, 4)), rng.uniform(-2, 2, (60, 2))

        def velocity(t, y):
            return [y[1], -0.5 * y[1] - y[0] ** 3 + y[0]]

    labels = Flow(fp.Generator(process, domain, degree=2), minima).labels(x)
    ends = np.array([solve_ivp(velocity, (0, 80), y, rtol=1e-8, atol=1e-10).y[:, -1] for y in x])
    distance = np.linalg.norm(ends[:, None] - minima, axis=2)
    assert (distance.min(axis=1) < 1e-3).all()
    assert (labels == distance.argmin(axis=1)).all()
    assert len(set(labels)) == len(minima)


@pytest.mark.parallel
def test_drift_alone():
    """Σ = 0: the law is the initial one carried by x(t) = x₀eᵗ/√(1 + x₀²(e²ᵗ − 1))."""
    process = fp.SDE(lambda x: x[0] - x[0] ** 3, 0.0)
    gen = fp.Generator(process, fp.Domain.interval(-1.8, 1.8, 120), degree=3, scheme="dg")
    t = np.array([0.0, 0.6, 1.2])
    flow = fp.evolve(gen, fp.gaussian(0.1, 0.2), t, time_rtol=1e-8)
    found = dg.concentration(flow, (-1, 1), 0.4, loss=lambda x: (x[0] ** 2 - 1) ** 2 / 4)

    def start(x, s):  # where the flow came from
        square = 1 + x**2 * (np.exp(-2 * s) - 1)
        return x * np.exp(-s) / np.sqrt(square) if square > 0 else np.inf

    exact = [norm.cdf(start(1.4, s), 0.1, 0.2) - norm.cdf(start(0.6, s), 0.1, 0.2) for s in t]
    assert np.abs(found.ball_mass[:, 1, 0] - exact).max() < 1e-4
    left = norm.cdf(0, 0.1, 0.2)
    assert np.abs(found.basin_mass - [left, 1 - left, 0]).max() < 1e-4, "no path leaves its basin"
    assert np.abs(found.diffusion_rate).max() == 0
    assert np.isnan(found.drift_regime_end)
    assert dg.shadowing_time(gen) == np.inf
    assert all(c.collapses and c.relative_noise == 0 for c in found.collapse)
    check([c.pull for c in found.collapse], [2, 2], 1e-3)


@pytest.mark.parallel
def test_collapse_on_an_interpolating_minimum():
    """dX = −hX dt + √η a X dW: E X² = e^{−(2h − ηa²)t} E X₀², a point mass in the end if ηa² < 2h."""
    for eta, collapses in ((0.2, True), (2.5, False)):
        sgd = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Covariance(lambda x: [[x[0] ** 2]]), eta)
        gen = fp.Generator(sgd, fp.Domain.interval(-4, 4, 30))
        report = dg.collapse(gen, 0)
        assert report.stationary
        assert report.collapses == collapses
        check([report.pull, report.relative_noise, report.rate], [1, eta, 2 - eta], 1e-6)
    gen = gen.replace(learning_rate=0.2)
    t = np.array([0.0, 0.5, 1.0, 2.0])
    found = dg.concentration(fp.evolve(gen, fp.gaussian(1.0, 0.15), t, time_rtol=1e-8), 0, [0.5], basins=False)
    check(found.second_moment[:, 0], 1.0225 * np.exp(-1.8 * t), 1e-4)
    check(found.moment_bound[:, 0], 1.0225 * np.exp(-1.8 * t), 1e-4)
    assert found.collapse[0].collapses
    assert found.collapse[0].rate == pytest.approx(1.8, abs=1e-6)
    assert not dg.collapse(ornstein_uhlenbeck(1, 0.1, 4), 0).stationary


@pytest.mark.parallel
def test_two_samples_collapse_along_hyperbolas():
    """f₁ = x²/2, f₂ = y²/2: Σ = ¼ (x, −y)⊗(x, −y) of rank one, and xy decays without any noise."""
    eta = 0.4
    losses = [lambda x: x[0] ** 2 / 2, lambda x: x[1] ** 2 / 2]
    gen = fp.Generator(fp.SGD(None, fp.PerSample(losses), eta), fp.Domain.rectangle((-3, -3), (3, 3), (10, 10)))
    report = dg.collapse(gen, (0, 0))
    check([report.pull, report.relative_noise, report.rate], [0.5, eta / 4, 1 - eta / 4], 1e-6)
    assert report.collapses
    flow = fp.evolve(gen, fp.gaussian((1, 0.8), 0.15), [0, 1], time_rtol=1e-8)
    mean, covariance = mean_and_covariance(gen, flow[1].raw)
    check(mean, np.exp(-0.5) * np.array([1, 0.8]), 1e-4)
    check(covariance[0, 1] + mean[0] * mean[1], 0.8 * np.exp(-1 - eta / 4), 1e-4)
    found = dg.concentration(flow, (0, 0), 1.0, basins=False)
    check(found.second_moment[1], (1.64 + 2 * 0.0225) * np.exp(-1 + eta / 4), 1e-4)
    assert found.second_moment[1, 0] <= found.moment_bound[1, 0] * (1 + 1e-4)


@pytest.mark.parallel
def test_collapse_splits_the_mass():
    """f = (x² − 1)²/4 and Σ = f: point masses at ±1, and P(X → 1 | x) = I₍₁₊ₓ₎⸝₂(4/η + 1, 4/η + 1)."""
    eta = 1.0
    sgd = fp.SGD(fp.landscapes.double_well, fp.Covariance(lambda x: [[(x[0] ** 2 - 1) ** 2 / 4]]), eta)
    gen = fp.Generator(sgd, fp.Domain.interval(-1, 1, 40))
    for x in (-1, 1):
        report = dg.collapse(gen, x)
        check([report.pull, report.relative_noise], [2, eta], 2e-3)
        assert report.collapses
    assert not dg.collapse(gen.replace(learning_rate=4.5), 1).collapses
    u = dg.concentration_backward(gen, 1, 0.3, [12.0], time_rtol=1e-8)
    points = np.array([-0.5, -0.2, 0.0, 0.3])
    exact = betainc(4 / eta + 1, 4 / eta + 1, (1 + points) / 2)
    check(exact[:2], [0.0489273071289063, 0.26656768], 1e-8)
    assert np.abs(u[0].at(points) - exact).max() < 1e-3


@pytest.mark.parallel
def test_least_squares_with_normal_features():
    """Σ = H d dᵀ H + (d·Hd + s²) H: the second moments solve a closed linear equation."""
    H, e, s2 = np.diag([1.0, 0.25]), 0.1, 1.0

    def covariance(x):
        d = (x[0], x[1])
        level = sum(H[i, i] * d[i] ** 2 for i in range(2)) + s2
        return [
            [H[i, i] * H[j, j] * d[i] * d[j] + (level * H[i, i] if i == j else 0) for j in range(2)] for i in range(2)
        ]

    sgd = fp.SGD(lambda x: (x[0] ** 2 + 0.25 * x[1] ** 2) / 2, fp.Covariance(covariance), e)
    gen = fp.Generator(sgd, fp.Domain.rectangle((-6, -6), (6, 6), (10, 10)))
    flow = fp.evolve(gen, fp.gaussian((0, 0), 0.8), [0, 1], time_rtol=1e-8)
    found = dg.concentration(flow, (0, 0), 1.0, basins=False)

    def right(t, m):
        M = m.reshape(2, 2)
        return (-(H @ M + M @ H) + e * (H @ M @ H + np.trace(H @ M) * H + s2 * H)).ravel()

    def second_moment(t, start):
        return solve_ivp(right, (0, t), start * np.eye(2).ravel(), rtol=1e-10, atol=1e-12).y[[0, 3], -1]

    exact = second_moment(1, 0.64)
    check(found.second_moment[1, 0], exact.sum(), 1e-5)
    noiseless = solve_ivp(lambda t, m: right(t, m) - e * s2 * H.ravel(), (0, 1), np.eye(2).ravel(), rtol=1e-10)
    check(noiseless.y[[0, 3], -1], [0.173933630399734, 0.62284008592652], 1e-6)
    report = dg.collapse(gen, (0, 0))
    assert not report.stationary, "label noise does not vanish at the minimum"


def test_regime_indicator_and_shadowing():
    eta = 0.1
    gen = fp.Generator(fp.SGD(fp.landscapes.double_well, fp.Isotropic(1.0), eta), fp.Domain.interval(-2, 2, 8))
    found = dg.regime_indicator(gen)
    x = np.arange(-1.75, 2, 0.5)  # midpoints
    check(found.at(x), (x**3 - x) ** 2 / (eta / 2 * np.abs(3 * x**2 - 1)), 1e-12)
    check(dg.shadowing_time(gen), np.log(1 + 2 / eta) / 2, 1e-2)  # f'' ≥ −1, found at quadrature points
    weaker = gen.replace(learning_rate=eta / 100)
    check(dg.shadowing_time(weaker) - dg.shadowing_time(gen), np.log(100) / 2, 2e-2)
    general = dg.regime_indicator(ornstein_uhlenbeck(1, 0.1, 4), loss=lambda x: x[0] ** 2 / 2)
    check(general.at([0.75]), [0.75**2 / 0.1], 1e-12)
    with pytest.raises(ValueError, match="has no loss"):
        dg.regime_indicator(ornstein_uhlenbeck(1, 0.1, 4))


@pytest.mark.parallel
def test_bad_input():
    gen = ornstein_uhlenbeck(1, 0.1, 8)
    flow = fp.evolve(gen, fp.gaussian(0.5, 0.3), [0.1])
    for arguments, message in (
        (((0,), -1), "radius is -1"),
        (((0,), []), "radius is"),
        (((5,), 1), "outside the mesh"),
        ((((0, 0),), 1), "minima"),
        (((1,), 0.1), "does not attract"),
    ):
        with pytest.raises(ValueError, match=message):
            dg.concentration(flow, *arguments)
    with pytest.raises(ValueError, match="densities was expected"):
        dg.concentration(fp.backward(gen, 1, [0.1]), 0, 1)
    with pytest.raises(ValueError, match="there was no loss"):
        _ = dg.concentration(flow, 0, 1, basins=False).drift_regime_end
    with pytest.raises(ValueError, match="no point of the mesh"):
        dg.contraction(gen, 100, radius=0.1)
    weighted = fp.Generator(fp.Langevin(lambda x: x[0] ** 2 / 2, 1.0), fp.Domain.interval(-3, 3, 8), scheme="weighted")
    with pytest.raises(ValueError, match="weighted"):
        dg.concentration_backward(weighted, 0, 1, [1.0])
    tabulated = fp.Generator(fp.SDE(fp.batched(lambda x: -x), 0.1), fp.Domain.interval(-3, 3, 8))
    later = fp.evolve(tabulated, fp.gaussian(0.5, 0.5), [0.1])
    with pytest.raises(ValueError, match="basins=False"):
        dg.concentration(later, 0, 1)
    found = dg.concentration(later, 0, 1, basins=False)
    check(found.contraction[0].pull, 1, 1e-9)
    with pytest.raises(ValueError, match="tabulated"):
        dg.collapse(tabulated, 0)
