"""The algorithm itself by its transition operator: closed forms, other programs' digits, paths."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import ufl
from tools import within

import fpsolver as fp

PAIR = fp.PerSample([lambda x: x[0], lambda x: -x[0]])
TWO_MINIMA = fp.PerSample([lambda x: (x[0] - 1) ** 2 / 2, lambda x: (x[0] + 1) ** 2 / 2])


def quartic(eta, s, n, **more):
    """Gradients x³ − x ∓ s."""

    def sample(sign):
        return lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 - sign * s * x[0]

    process = fp.SGD(None, fp.PerSample([sample(1.0), sample(-1.0)]), eta)
    return fp.Chain(process, fp.Domain.interval(-2, 1, n), ["right"], **more)


def steps(solution, point, eta):
    """Value and error bar in steps."""
    return float(solution.at([point])[0]) / eta, float(solution.error_at([point])[0]) / eta


@pytest.mark.parallel
def test_gamblers_ruin():
    chain = fp.Chain(fp.SGD(None, PAIR, 0.1), fp.Domain.interval(0, 1, 10), ["left", "right"])
    j = np.arange(1, 11)
    starts = (0.05 + 0.1 * (j - 1))[:, None]
    tau = fp.mean_exit_time(chain)
    assert np.abs(tau.at(starts) / 0.1 - j * (11 - j)).max() < 1e-11
    assert np.abs(fp.exit_probability(chain, ["right"]).at(starts) - j / 11).max() < 1e-12
    assert fp.exit_distribution(chain, starts[2]).probability == pytest.approx({"left": 8 / 11, "right": 3 / 11})
    law = fp.exit_distribution(chain, starts[2])
    assert law.mean_time == pytest.approx(24 * 0.1, rel=1e-12)
    points, shares = law.points("right")
    assert shares.sum() == pytest.approx(3 / 11, rel=1e-12)
    assert np.allclose(points, 1.0)
    with pytest.raises(ValueError, match="no density"):
        law.density("right")


def test_gamblers_ruin_on_any_mesh():
    process = fp.SGD(None, PAIR, 0.1)
    for n in (16, 23, 33):
        chain = fp.Chain(process, fp.Domain.interval(0, 1, n), ["left", "right"])
        tau = fp.mean_exit_time(chain, start=[[0.25], [0.65]])
        assert (np.abs(tau.at([[0.25], [0.65]]) - [2.4, 2.8]) <= tau.error).all()


@pytest.mark.parallel
def test_one_half_gives_the_uniform_law():
    law = fp.stationary(fp.Chain(fp.SGD(None, TWO_MINIMA, 0.5), fp.Domain.interval(-1, 1, 16)))
    assert np.abs(law.at(np.linspace(-0.9, 0.9, 7)[:, None]) - 0.5).max() < 1e-2
    assert float(law.mass_in(lambda x: x[0] < -0.5)) == pytest.approx(0.25, abs=1e-12)
    assert law.covariance().value[0, 0] == pytest.approx(1 / 3, rel=1e-11)


def test_two_thirds_gives_cantors_law():
    law = fp.stationary(fp.Chain(fp.SGD(None, TWO_MINIMA, 2 / 3), fp.Domain.interval(-1, 1, 162)))
    intervals = [(-1.0, 1.0)]
    for generation in range(1, 5):
        third = 2 / 3**generation
        intervals = [piece for a, b in intervals for piece in ((a, a + third), (b - third, b))]
        for a, b in intervals:
            mass = law.mass_in(lambda x, a=a, b=b: (x[0] > a - 1e-9) & (x[0] < b + 1e-9))
            assert abs(mass.value - 2.0**-generation) < 1e-13
    assert "singular" in law.stats["density"]


@pytest.mark.parametrize("eta", [0.1, 0.3, 0.9])
def test_variance_of_bernoulli_convolutions(eta):
    law = fp.stationary(fp.Chain(fp.SGD(None, TWO_MINIMA, eta), fp.Domain.interval(-1, 1, 20)))
    assert law.covariance().value[0, 0] == pytest.approx(eta / (2 - eta), rel=1e-9)
    assert abs(law.mean().value[0]) < 1e-10


CHARTS = [
    (0.4, 3.054, (499.951339, 71.200502, 14.262764, 3.521539)),
    (0.25, 2.998, (499.836004, 48.293875, 11.135502, 3.613711)),
    (0.1, 2.814, (499.579550, 31.297435, 10.330665, 4.362253)),
    (0.05, 2.615, (499.933006, 28.763728, 11.382804, 5.224880)),
]


@pytest.mark.parametrize(("eta", "c", "runs"), CHARTS)
def test_control_charts(eta, c, runs):
    """Average run lengths of EWMA charts (Lucas, Saccucci 1990), nine digits by Nyström's method."""
    r = c * np.sqrt(eta / (2 - eta))
    for shift, expected in zip((0.0, 0.5, 1.0, 2.0), runs, strict=True):
        process = fp.SGD(lambda x, m=shift: (x[0] - m) ** 2 / 2, fp.Isotropic(1.0), eta)
        chain = fp.Chain(process, fp.Domain.interval(-r, r, 20), ["left", "right"])
        tau = fp.mean_exit_time(chain)
        assert float(tau.at([[0.0]])[0]) / eta == pytest.approx(expected, rel=3e-8, abs=1e-6)


def test_regions_and_places_of_exit_where_noise_is_gaussian():
    """The limits of a chart as regions of a wider domain; the two sides are left alike."""
    eta, c = 0.25, 2.998
    r = c * np.sqrt(eta / (2 - eta))
    process = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(1.0), eta)
    wide = fp.Chain(process, fp.Domain.interval(-2 * r, 2 * r, 40))
    passage = fp.first_passage(wide, {"middle": (0.0, 0.01), "out": lambda x: np.abs(x[0]) > r})
    assert passage.times[0, 1] / eta == pytest.approx(499.836004, rel=3e-8)
    law = fp.exit_distribution(fp.Chain(process, fp.Domain.interval(-r, r, 20), ["left", "right"]), [0.0])
    points, shares = law.points("right")
    assert shares.sum() == pytest.approx(law.probability["right"], rel=1e-11)
    assert shares.sum() == pytest.approx(0.5, rel=1e-8)
    assert np.allclose(points, r)


def test_noise_of_a_density_with_samples():
    """A sum of two noises; walls on one side mirror."""
    noise = TWO_MINIMA + fp.Isotropic(0.2)
    process, domain = fp.SGD(None, noise, 0.4), fp.Domain.interval(-0.9, 1.0, 20)
    tau = fp.mean_exit_time(fp.Chain(process, domain, ["right"]), start=[0.0])
    paths = fp.simulate(process, domain, (0.0,), absorbing="right", method="sgd", paths=20_000)
    within(paths.mean_exit_time(), float(tau.at([[0.0]])[0]))
    assert tau.error[0] < 1e-4 * tau.at([[0.0]])[0]


@pytest.mark.parametrize(("eta", "s", "n", "expected"), [(0.1, 1.0, 300, 10044.705), (0.2, 0.8, 200, 1828.7)])
def test_quartic_with_two_samples(eta, s, n, expected):
    value, error = steps(fp.mean_exit_time(quartic(eta, s, n)), [-1.0], eta)
    assert abs(value - expected) < (0.005 if eta == 0.1 else 0.1)
    assert error < 1e-5 * value


def neuron(eta, cells=(28, 40), **more):
    """A sine neuron with 20 samples in the box around its worse minimum, left at the right."""
    rng = np.random.default_rng(11)
    a = 1.5 * rng.normal(size=20)
    teacher = 1.5 * rng.normal(size=2)
    y = np.sin(teacher[0] * a + teacher[1]) + 0.4 * rng.normal(size=20)

    def sample(a, y):
        return lambda w: (ufl.sin(a * w[0] + w[1]) - y) ** 2 / 2 + 0.05 * (w[0] ** 2 + w[1] ** 2)

    losses = [sample(*pair) for pair in zip(a.tolist(), y.tolist(), strict=True)]
    domain = fp.Domain.rectangle((-4.5, -4.4), (-0.47, 1.4), cells, diagonal="right")
    return fp.Chain(fp.SGD(None, fp.PerSample(losses), eta), domain, ["right"], **more)


@pytest.mark.parametrize(("eta", "expected", "tolerance"), [(0.6, 149.15, 1e-3), (0.4, 2231.0, 1e-3)])
def test_a_neuron_with_twenty_samples(eta, expected, tolerance):
    """Paths: 149.143 ± 0.032 and 2229.9 ± 2.5; the diffusion says 39.5 and 127.3."""
    tau = fp.mean_exit_time(neuron(eta, (32, 46), degree=3))
    assert float(tau.at([[-1.1048, -1.9063]])[0]) / eta == pytest.approx(expected, rel=tolerance)


def regression():
    rng = np.random.default_rng(1)
    A, y = rng.normal(size=(5, 2)), 0.2 * rng.normal(size=5)

    def sample(a, b):
        return lambda x: (a[0] * x[0] + a[1] * x[1] - b) ** 2 / 2

    return A, y, [sample(a, b) for a, b in zip(A.tolist(), y.tolist(), strict=True)]


@pytest.mark.parametrize(("B", "replacement"), [(1, True), (2, True), (2, False), (5, False)])
def test_moments_of_linear_regression(B, replacement):
    """C = (I − ηH) C (I − ηH) + η² E[(fluctuation)(fluctuation)ᵀ], a linear equation for the second moments."""
    A, y, losses = regression()
    eta, N = 0.2, 5
    batches = list(product(range(N), repeat=B) if replacement else combinations(range(N), B))
    H = [sum(np.outer(A[i], A[i]) for i in b) / B for b in batches]
    h = [sum(A[i] * y[i] for i in b) / B for b in batches]
    mean = np.linalg.solve(np.mean(H, axis=0), np.mean(h, axis=0))
    maps, shifts = [np.eye(2) - eta * Hb for Hb in H], [eta * hb for hb in h]
    lift = np.mean([np.kron(F, F) for F in maps], axis=0)
    pairs = list(zip(maps, shifts, strict=True))
    constant = np.mean([F @ np.outer(mean, s) + np.outer(s, mean) @ F.T + np.outer(s, s) for F, s in pairs], axis=0)
    second = np.linalg.solve(np.eye(4) - lift, constant.ravel()).reshape(2, 2)
    process = fp.SGD(None, fp.PerSample(losses, replacement=replacement), eta, batch_size=B)
    law = fp.stationary(fp.Chain(process, fp.Domain.rectangle((-1.3, -1.3), (1.1, 1.1), (8, 8), diagonal="right")))
    assert np.abs(law.mean().value - mean).max() < 1e-8
    assert np.abs(law.covariance().value - (second - np.outer(mean, mean))).max() < 1e-8


def test_moments_with_momentum():
    """(x, V) -> (x + √η V', V'), V' = μV − √η(x ∓ 1): the covariance solves C = F C Fᵀ + η s sᵀ."""
    eta, mu = 0.1, 0.5
    root = np.sqrt(eta)
    F = np.array([[1 - eta, root * mu], [-root, mu]])
    s = np.array([eta, root])
    C = np.linalg.solve(np.eye(4) - np.kron(F, F), np.outer(s, s).ravel()).reshape(2, 2)
    domain = fp.Domain.rectangle((-2.5, -2.5), (2.5, 2.5), (6, 6))
    law = fp.stationary(fp.Chain(fp.MomentumSGD(None, TWO_MINIMA, eta, mu), domain))
    assert np.abs(law.covariance().value - C).max() < 1e-8


def test_survival_and_moments_agree_with_the_geometric_law():
    chain = quartic(0.2, 0.8, 60)
    slow = fp.quasi_stationary(chain)
    first, second = fp.exit_time_moments(chain, 2)
    start = slow.function
    K = slow.stats["steps"]
    law = fp.exit_distribution(chain, start)
    assert law.mean_time / 0.2 == pytest.approx(K, rel=1e-9)
    late = fp.survival(chain, start, [2.0, 200.0])
    assert late == pytest.approx(np.exp(-slow.rate * np.array([2.0, 200.0])), rel=1e-8)
    weight = chain.vector(slow.function)
    image = weight.duplicate()
    chain.M.mult(weight, image)
    assert image.dot(chain.vector(second.function)) == pytest.approx(0.04 * (2 * K**2 - K), rel=1e-8)
    assert image.dot(chain.vector(first.function)) == pytest.approx(0.2 * K, rel=1e-9)


def test_generating_function_of_the_ruin():
    """E z^K from the middle of n sites: 1 / cosh of n/2 times log((1 + √(1 − z²))/z)."""
    chain = fp.Chain(fp.SGD(None, PAIR, 0.1), fp.Domain.interval(0, 1, 10), ["left", "right"])
    z = 0.9
    u = fp.feynman_kac(chain, exit=1.0, killing=-np.log(z) / 0.1)
    r = np.log((1 + np.sqrt(1 - z * z)) / z)
    j = np.arange(1, 11)
    assert u.at((0.1 * j - 0.05)[:, None]) == pytest.approx(np.cosh((j - 5.5) * r) / np.cosh(5.5 * r), rel=1e-11)
    where = fp.feynman_kac(chain, exit=lambda x: 2 + x[0], running=lambda x: 1 + 0 * x[0])
    expected = 2 + j / 11 + 0.1 * j * (11 - j)
    assert where.at((0.1 * j - 0.05)[:, None]) == pytest.approx(expected, rel=1e-11)


def test_regions():
    process = fp.SGD(None, PAIR, 0.1)
    chain = fp.Chain(process, fp.Domain.interval(0, 1, 20))
    A, B = (lambda x: x[0] < 0.2), (lambda x: x[0] > 0.8)
    q = fp.committor(chain, A, B)
    sites = 0.05 + 0.1 * np.arange(10)
    expected = np.clip((np.arange(10) - 1) / 7, 0, 1)
    assert np.abs(q.at(sites[:, None]) - expected).max() < 1e-11
    passage = fp.first_passage(chain, {"a": lambda x: x[0] < 0.1, "b": lambda x: x[0] > 0.9})
    # n(n − 1) steps over n sites, of which the first and the last hold
    assert passage.times[0, 1] / 0.1 == pytest.approx(passage.times[1, 0] / 0.1, rel=1e-9)
    assert passage.times[0, 1] / 0.1 == pytest.approx(90.0, rel=1e-9)
    named = fp.Chain(process, fp.Domain.interval(0, 1, 20).with_region("first", A))
    assert np.abs(fp.committor(named, "first", B).at(sites[:, None]) - expected).max() < 1e-11
    rate = fp.transition_rate(chain, A, B)
    assert rate.share_A == pytest.approx(0.5, rel=1e-9)
    # uniform law on ten sites: from the second one out, 1/10 · 1/2 · 1/7 per step
    assert rate.rate * 0.1 == pytest.approx(1 / 140, rel=1e-9)


def test_spectrum_of_the_reflected_walk():
    chain = fp.Chain(fp.SGD(None, PAIR, 0.1), fp.Domain.interval(0, 1, 10), degree=0)
    found = fp.spectrum(chain, 3)
    expected = np.log(np.cos(np.pi * np.arange(3) / 10).astype(complex)) / 0.1
    assert np.sort(np.exp(0.1 * found.eigenvalues).real)[::-1][:1] == pytest.approx([1.0])
    magnitudes = np.sort(np.abs(np.exp(0.1 * found.eigenvalues)))[::-1]
    assert magnitudes[0] == pytest.approx(1.0, abs=1e-12)
    assert expected.real.max() == 0.0


@pytest.mark.parametrize("order", [1, 2])
def test_weak_order_of_the_diffusion_without_sampling_noise(order):
    """E X_T² of SGD(order) against the chain, which is exact on quadratic losses."""
    errors, rates = [], [0.1, 0.05, 0.025]
    losses = fp.PerSample([lambda x: x[0] ** 2 / 2 + 0.3 * x[0], lambda x: 1.5 * x[0] ** 2 / 2 - 0.3 * x[0]])
    domain = fp.Domain.interval(-3, 3, 24)
    for eta in rates:
        chain = fp.Chain(fp.SGD(None, losses, eta), domain)
        gen = fp.Generator(fp.SGD(None, losses, eta, order=order), domain)
        both = [fp.backward(c, lambda x: x[0], [1.0], time_rtol=1e-10)[0].at([[1.0]])[0] for c in (chain, gen)]
        errors.append(abs(both[0] - both[1]))
    slopes = np.diff(np.log(errors)) / np.diff(np.log(rates))
    assert abs(slopes[-1] - order) < 0.1


def test_diffusion_limit():
    """With η Σ fixed the chain's exit times approach the diffusion's, at order √η of exits seen late."""
    ratios = []
    rates = [0.04, 0.01, 0.0025]
    for eta in rates:
        process = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(0.4 / eta), eta)
        domain = fp.Domain.interval(-1, 1, 40)
        chain = fp.Chain(process, domain, ["left", "right"])
        gen = fp.Generator(process, domain, ["left", "right"])
        ratios.append(fp.mean_exit_time(chain).at([[0.0]])[0] / fp.mean_exit_time(gen).at([[0.0]])[0])
    gap = np.array(ratios) - 1
    slopes = np.diff(np.log(gap)) / np.diff(np.log(rates))
    assert (gap > 0).all()
    assert abs(slopes[-1] - 0.5) < 0.1


def test_validity_of_the_diffusion():
    """Two-point noise has a finite range: the diffusion escapes much too fast, and the more so the smaller η."""

    def sample(sign):
        return lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 - sign * x[0]

    process, domain = fp.SGD(None, fp.PerSample([sample(1.0), sample(-1.0)]), 0.2), fp.Domain.interval(-2, 1, 100)
    found = fp.diagnostics.validity(process, domain, [-1.0], absorbing=["right"], learning_rates=[0.2, 0.1])
    assert found.chain[0] == pytest.approx(10044.705, rel=1e-4)
    assert found.ratio[0] > found.ratio[1] > 1.0
    assert found.valid_from == 0.2
    assert list(found.valid) == [False, True]
    assert "within 10% of the algorithm from η = 0.2 on" in str(found)
    strict = replace(found, tol=0.05)
    assert strict.valid_from is None
    assert "not within 5%" in str(strict)


@pytest.mark.parallel
def test_chains_on_disks_follow_them_by_chords():
    losses = [lambda w, a=a, b=b: (w[0] - a) ** 2 / 2 + (w[1] - b) ** 2 / 2 for a, b in ((2, 0), (-1, 1.7), (-1, -1.7))]
    sgd, disk = fp.SGD(None, fp.PerSample(losses), 0.3), fp.Domain.disk((0, 0), 0.8, 0.1)
    with pytest.raises(ValueError, match=r"domain\.straightened\(\)"):
        fp.Chain(sgd, disk, ["boundary"])
    tau = fp.mean_exit_time(fp.Chain(sgd, disk.straightened(), ["boundary"]), start=(0.1, 0.05)).in_steps()
    paths = fp.simulate(sgd, disk, (0.1, 0.05), absorbing="boundary", method="sgd", paths=100_000, seed=3)
    assert float(tau) == pytest.approx(paths.mean_exit_time().value / 0.3, rel=0.02)


@pytest.mark.parallel
@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_gaussian_noise_in_the_plane_by_its_density(correlation):
    """The chart beside a second coordinate, which is mirrored and correlated and changes nothing."""
    eta, c = 0.25, 2.998
    r = c * np.sqrt(eta / (2 - eta))
    noise = fp.Covariance(((1.0, correlation), (correlation, 1.0)))
    process = fp.SGD(lambda x: (x[0] ** 2 + x[1] ** 2) / 2, noise, eta)
    chain = fp.Chain(process, fp.Domain.rectangle((-r, -0.6), (r, 0.6), (6, 3)), ["left", "right"])
    assert chain.degree == 3 and chain.stats()["batches"] == 1
    tau = fp.mean_exit_time(chain)
    assert float(tau.at((0.0, 0.0))[0]) / eta == pytest.approx(499.836004, rel=2e-4)
    assert fp.exit_probability(chain, "right").at((0.0, 0.0)) == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(ValueError, match="densities do not tell where steps leave"):
        fp.exit_distribution(chain, (0.0, 0.0)).points("left")


def test_gaussian_noise_in_a_box_that_absorbs_all_around():
    """Both coordinates stay inside by chances that multiply."""
    eta, r = 0.25, 0.8
    line = fp.Chain(
        fp.SGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(1.0), eta), fp.Domain.interval(-r, r, 12), ["left", "right"]
    )
    alone = fp.survival(line, 0.0, eta * np.arange(400))
    square = fp.Domain(fp.Domain.rectangle((-r, -r), (r, r), (5, 5)).mesh)
    process = fp.SGD(lambda x: (x[0] ** 2 + x[1] ** 2) / 2, fp.Isotropic(1.0), eta)
    value, error = steps(fp.mean_exit_time(fp.Chain(process, square, ["boundary"])), (0.0, 0.0), eta)
    assert abs(value - (np.asarray(alone) ** 2).sum()) < 2 * error < 1e-3 * value


def test_gaussian_noise_is_drawn_where_several_names_absorb():
    process = fp.SGD(lambda x: (x[0] ** 2 + x[1] ** 2) / 2, fp.Isotropic(1.0), 0.25)
    chain = fp.Chain(process, fp.Domain.rectangle((-1, -1), (1, 1), (5, 5)), ["left", "top"])
    assert chain.stats()["batches"] == 64 and chain.degree == 2
