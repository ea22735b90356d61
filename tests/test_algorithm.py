"""One step of SGD as a map: batches and their weights, moments of a step, and what happens at the walls."""

import itertools

import numpy as np
import pytest

import fpsolver as fp
from fpsolver.montecarlo._paths import Draws
from fpsolver.pointwise.dynamics import Descent
from fpsolver.pointwise.meeting import land
from fpsolver.pointwise.walls import walls_of

THREE = [lambda x: x[0] ** 2 / 2, lambda x: (x[1] - 1) ** 4 / 4, lambda x: x[0] * x[1]]
SLOPES = [lambda x: (x[0], 0 * x[0]), lambda x: (0 * x[0], (x[1] - 1) ** 3), lambda x: (x[1], x[0])]
POINT = np.array([[0.3], [-0.7]])


@pytest.mark.parametrize(("batch", "replacement"), [(1, True), (2, True), (3, True), (2, False), (3, False)])
def test_all_batches_have_the_mean_and_covariance_of_a_step(batch, replacement):
    """By the definition: all N^B ordered draws, or those without repetition."""
    eta = 0.1
    algorithm = Descent.of(fp.SGD(None, fp.PerSample(THREE, replacement=replacement), eta, batch), 2)
    sample, weight = algorithm.all_batches(100)
    assert algorithm.batches == sample.shape[1] == len(weight) and weight.sum() == pytest.approx(1, abs=1e-14)
    y = algorithm.mean(np.repeat(POINT, len(weight), axis=1), sample)
    every = list(itertools.product(range(3), repeat=batch) if replacement else itertools.permutations(range(3), batch))
    by_hand = np.array(
        [POINT[:, 0] - eta * np.mean([[g[0] for g in SLOPES[i](POINT)] for i in draw], axis=0) for draw in every]
    )
    np.testing.assert_allclose(y @ weight, by_hand.mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(y**3 @ weight, (by_hand**3).mean(axis=0), atol=1e-14)
    assert not algorithm.gaussian and algorithm.spread(POINT, sample[:, :1]).shape == (2, 0, 1)


def test_more_batches_than_wanted_are_counted():
    algorithm = Descent.of(fp.SGD(None, fp.PerSample(THREE), 0.1, 3), 2)
    with pytest.raises(ValueError, match="10 different batches, more than 9"):
        algorithm.all_batches(9)
    with pytest.raises(ValueError, match=r"batch_size is 1\.5"):
        _ = Descent.of(fp.SGD(None, fp.PerSample(THREE), 0.1, 1.5), 2).batch_size
    assert Descent.of(fp.SGD(lambda x: x[0], fp.Isotropic(1.0), 0.1, 4), 2).batches == 1


NOISY = {
    "labels": lambda eta: fp.SGD(None, fp.PerSample(THREE) + fp.LabelNoise(THREE, 0.4), eta, 2),
    "isotropic": lambda eta: fp.SGD(None, fp.PerSample(THREE) + fp.Isotropic(0.3), eta, 2),
    "covariance alone": lambda eta: fp.SGD(THREE[2], fp.Covariance(lambda x: ((1, 0), (0, x[0] ** 2))), eta, 2),
    "momentum": lambda eta: fp.MomentumSGD(lambda x: x[0] ** 4, fp.Isotropic(0.3), eta, 0.8, 2),
}


@pytest.mark.parametrize("name", NOISY)
def test_the_gaussian_part_of_a_step(name):
    """Given the samples a step is normal: its mean and factor are those of many steps."""
    algorithm, n = Descent.of(NOISY[name](0.1), 2), 40_000
    sample = np.repeat([[0], [2]], n, axis=1)
    numbers = Draws(5, [0], np.zeros(n, dtype=int))
    drawn = (sample, *algorithm.draw(numbers)[1:])
    y = algorithm.step(np.repeat(POINT, n, axis=1), *drawn)
    F = algorithm.spread(POINT, sample[:, :1])[:, :, 0]
    assert algorithm.gaussian
    cov = F @ F.T
    std = np.sqrt(np.diag(cov))
    assert (np.abs(y.mean(axis=1) - algorithm.mean(POINT, sample[:, :1])[:, 0]) <= 4 * std / np.sqrt(n)).all()
    scale = np.sqrt((np.outer(std**2, std**2) + cov**2) / n)
    assert (np.abs(np.cov(y) - cov) <= 4 * scale + 1e-15).all()


def test_momentum_steps():
    """(x, v/√η) with v' = μ v − η g, x' = x + v'."""
    eta, mu = 0.09, 0.7
    algorithm = Descent.of(fp.MomentumSGD(None, fp.PerSample([lambda x: x[0] ** 2, lambda x: x[0] ** 3]), eta, mu), 2)
    x, v = 0.4, -0.2
    for i, slope in enumerate((2 * x, 3 * x * x)):
        after = mu * v - eta * slope
        found = algorithm.mean(np.array([[x], [v / np.sqrt(eta)]]), np.array([[i]]))[:, 0]
        np.testing.assert_allclose(found, (x + after, after / np.sqrt(eta)), rtol=1e-14)


@pytest.mark.parallel
def test_the_rule_at_walls():
    """Seen at the ends of steps: out beyond an absorbing part, mirrored elsewhere, whatever was crossed on the way."""
    domain = fp.Domain.rectangle((0, 0), (2, 1), (4, 2))
    walls = walls_of(domain, ("right",))
    before = np.tile([[1.0], [0.5]], 7)
    after = np.array([[1.5, 2.0, 2.5, -0.5, 1.2, 2.1, -7.0], [0.9, 0.5, 0.7, 0.25, 1.3, 1.4, 0.5]])
    met = land(walls, before, after)
    # the sixth crosses the top at x < 2 first, and the plane of the right side beyond the corner
    assert met.part.tolist()[:5] == [-1, 0, 0, -1, -1] and met.part[6] == -1
    np.testing.assert_allclose(met.point[:, 2], (2.0, 0.5 + 0.2 * 2 / 3))
    np.testing.assert_allclose(met.y[:, [0, 3, 4]], [[1.5, 0.5, 1.2], [0.9, 0.25, 0.7]])
    assert met.mirrored.tolist() == [i for i in (3, 4, 5, 6) if met.part[i] < 0]
    assert (walls.distance(met.y[:, ~met.out]) > -1e-12).all()  # even from seven widths away
